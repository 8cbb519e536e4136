"""Draws `multipliers.svg`: what six strategies do to each group of ViT-Ti/16, as the strategies themselves say.

python docs/multipliers.py
"""

from pathlib import Path

from flax.traverse_util import flatten_dict

import tljax

STRATEGIES = {
    "linear_probe": {},
    "last_k, k=3": {"k": 3},
    "layer_decay, decay=0.75": {"decay": 0.75},
    "bias_only": {},
    "lora, rank=8": {"rank": 8},
    "full": {},
}
LEFT, TOP, WIDTH, HEIGHT = 190, 64, 44, 34
SHORT = {"bias_only": "bias", "lora": "A, B"}


def cells(encoder: tljax.Encoder, strategy: str, arguments: dict) -> dict[str, tuple[float, bool]]:
    """Returns of each group its highest multiplier, and whether all of its parameters train."""
    model = encoder.with_head(10, strategy=strategy, **arguments)
    groups: dict[str, list[float]] = {group: [] for group in model.layout.groups}
    for path, multiplier in flatten_dict(model.multipliers, sep="/").items():
        groups[model.layout.group_of[path]].append(float(multiplier))
    return {group: (max(values), all(values)) for group, values in groups.items()}


def cell(x: int, y: int, multiplier: float, whole: bool, word: str) -> str:
    """Returns a group's cell: the darker, the faster it learns; a stripe where only a part of it trains."""
    frozen = f'<rect x="{x}" y="{y}" width="{WIDTH - 4}" height="{HEIGHT - 6}" rx="4" fill="#e6e8ec"/>'
    if not multiplier:
        return f'{frozen}<text x="{x + 20}" y="{y + 18}" class="frozen">0</text>'
    height = HEIGHT - 6 if whole else 8
    strength = 0.25 + 0.75 * multiplier
    top = y + HEIGHT - 6 - height
    trained = f'<rect x="{x}" y="{top}" width="{WIDTH - 4}" height="{height}" rx="4" fill="#0b7285"'
    said = f"{multiplier:.2g}".replace("0.", ".") if whole else word
    place, kind = (y + 18, "light" if strength > 0.6 else "dark") if whole else (y + 15, "dark")
    return (
        f'{frozen}{trained} fill-opacity="{strength:.2f}"/><text x="{x + 20}" y="{place}" class="{kind}">{said}</text>'
    )


def main() -> None:
    """Writes the picture beside this file."""
    encoder = tljax.load_backbone(name="vit_tiny_patch16", image_size=32)
    groups = (*encoder.groups, "head")
    width, height = LEFT + WIDTH * len(groups) + 16, TOP + HEIGHT * len(STRATEGIES) + 44
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-size="12"'
        ' font-family="system-ui, sans-serif">',
        "<title>The multiplier of each group of a Vision Transformer under six strategies</title>",
        "<style>text{fill:#212529}.light,.dark,.frozen{text-anchor:middle;font-size:11px}.light{fill:#fff}"
        ".frozen{fill:#868e96}.group{text-anchor:middle;font-size:10.5px}</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>',
        f'<text x="{LEFT}" y="22">input →</text>',
        f'<text x="{width - 20}" y="22" text-anchor="end">→ output</text>',
    ]
    for place, group in enumerate(groups):
        name = group.replace("block_", "")
        lines.append(f'<text x="{LEFT + WIDTH * place + 20}" y="{TOP - 10}" class="group">{name}</text>')
    for row, (name, arguments) in enumerate(STRATEGIES.items()):
        y, strategy = TOP + HEIGHT * row, name.partition(",")[0]
        lines.append(f'<text x="16" y="{y + 18}">{name}</text>')
        for place, (multiplier, whole) in enumerate(cells(encoder, strategy, arguments).values()):
            lines.append(cell(LEFT + WIDTH * place, y, multiplier, whole, SHORT.get(strategy, "")))
    note = "0: frozen. 1: the run's learning rate. A stripe: some parameters of the group train, or new ones beside it."
    lines += [f'<text x="16" y="{height - 16}">{note}</text>', "</svg>"]
    (Path(__file__).parent / "multipliers.svg").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
