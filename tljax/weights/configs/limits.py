"""What a network of ours must be for another library to have it."""

from collections.abc import Mapping
from typing import Any

from tljax.errors import InputError

Attributes = Mapping[str, Any]  # of a module of tljax.models


def only(library: str, attributes: Attributes, **values: Any) -> None:
    """Checks attributes that the library has one value of.

    Args:
        library: its name, for errors.
        attributes: the network's.
        values: attribute -> that value; a network without the attribute has it.

    Raises:
        InputError: the network has another.
    """
    for key, value in values.items():
        if attributes.get(key, value) != value:
            raise InputError(f"{library} has no such network: only {key}={value!r}, not {attributes[key]!r}")


def timm_pool(attributes: Attributes, pools: Mapping[str, str]) -> str:
    """Returns timm's word for how the network pools.

    Raises:
        InputError: it has none.
    """
    for theirs, ours in pools.items():
        if ours == attributes["pool"]:
            return theirs
    raise InputError(f"timm has no such network that pools by {attributes['pool']!r}, only {', '.join(pools.values())}")
