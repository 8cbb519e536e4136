"""Reads what sentence-transformers puts beside a text encoder: how its tokens become one vector."""

import dataclasses
from pathlib import Path
from typing import Any

from tljax.errors import InputError
from tljax.io import harmless_keys
from tljax.io.json_keys import Keys, load_json
from tljax.weights.catalog import Pretrained

DENSE = "2_Dense"  # the folder of a dense layer, which is called so in all repositories
ACTIVATIONS = {"torch.nn.modules.activation.Tanh": "tanh", "torch.nn.modules.linear.Identity": "identity"}
_WAY_OUT = "set backbone.pool to cls, mean or max, and what modules.json says is left out"
_MODES = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max"}
# Those that no network here has, under sentence-transformers' two spellings.
_OTHERS = {"pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_lasttoken": "lasttoken"}
_OTHERS |= {"pooling_mode_weightedmean_tokens": "weightedmean"}


def pooled(row: Pretrained, folder: Path) -> Pretrained:
    """Returns the row with the pooling that `modules.json` describes; the row itself where there is no such file.

    Raises:
        InputError: a module or a way of pooling is not known here, or a file is missing or damaged.
    """
    modules = load_json(folder / "modules.json", f"{row.uri}: modules.json")
    if modules is None:
        return row
    if not isinstance(modules, list):
        raise InputError(f"{row.uri}: modules.json must be a list of modules; {_WAY_OUT}")
    places = [Keys(module, f"modules.json: module {i}", row.uri) for i, module in enumerate(modules)]
    pooling: dict[str, Any] = {}
    origin = ""
    for place in places:
        kind, path = place.text("type").rsplit(".", 1)[-1], place.text("path")
        place.get("idx"), place.get("name"), place.get("kwargs")
        place.finish()
        if kind == "Transformer" and not path and not pooling:
            continue
        if kind == "Pooling" and not pooling:
            pooling["pool"] = _mode(folder, row.uri, path)
            origin = f"{path}/config.json"
        elif kind == "Dense" and path == DENSE and set(pooling) == {"pool"}:
            pooling |= _dense(folder, row)
            origin += f" and {DENSE}/config.json"
        elif kind == "Normalize" and pooling:
            pooling["normalize"] = True
            origin += " and modules.json: Normalize"
        else:
            raise place.refusal("type", f"is not supported there; {_WAY_OUT}")
    prompt = Keys(_object(folder, row.uri, "config_sentence_transformers.json"), "config_sentence_transformers.json")
    if "default_prompt_name" in prompt:
        raise prompt.refusal("default_prompt_name", f"puts words before each text, which is not supported; {_WAY_OUT}")
    if "pool" not in pooling:
        raise InputError(f"{row.uri}: modules.json has no Pooling; {_WAY_OUT}")
    return dataclasses.replace(row, architecture=row.architecture | pooling, origins=row.origins | {"pool": origin})


def _object(folder: Path, uri: str, name: str) -> Any:
    content = load_json(folder / name, f"{uri}: {name}")
    return {} if content is None else content


def _dense(folder: Path, row: Pretrained) -> dict[str, Any]:
    """Returns the attributes of a dense layer that follows the pooling."""
    name = f"{DENSE}/config.json"
    config = load_json(folder / name, f"{row.uri}: {name}")
    if config is None:
        raise InputError(f"{row.uri}: {name} is missing, which modules.json names; {_WAY_OUT}")
    keys = Keys(config, name, row.uri, harmless_keys.SENTENCE)
    keys.only(in_features=row.architecture["width"], bias=True)
    attributes = {"dense_width": keys.whole("out_features")}
    default = "torch.nn.modules.activation.Tanh"
    attributes["dense_activation"] = keys.choice("activation_function", default, ACTIVATIONS)
    keys.finish()
    return attributes


def _mode(folder: Path, uri: str, path: str) -> str:
    """Returns our word for how the tokens are pooled."""
    name = f"{path}/config.json"
    config = load_json(folder / path / "config.json", f"{uri}: {name}") if ".." not in path else None
    if config is None:
        raise InputError(f"{uri}: {name} is missing, which modules.json names; {_WAY_OUT}")
    keys = Keys(config, name, uri, harmless_keys.SENTENCE)
    known = {mode: mode for mode in _MODES.values()}
    flags = [flag for flag in (*_MODES, *_OTHERS) if keys.flag(flag, False)]
    if "pooling_mode" in keys:
        modes = keys.get("pooling_mode")
        modes, key = (modes if isinstance(modes, list) else [modes]), "pooling_mode"
    else:
        modes, key = [(_MODES | _OTHERS)[flag] for flag in flags] or ["mean"], (flags or ["pooling_mode"])[-1]
    if len(modes) != 1 or modes[0] not in known:
        raise keys.refusal(key, f"is not supported, only one of {', '.join(known)}; {_WAY_OUT}")
    keys.finish()
    return modes[0]
