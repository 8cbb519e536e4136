"""What an export asks of a network before it says of it that another library has it."""

from collections.abc import Mapping
from typing import Any

from tljax.errors import InputError


def only(library: str, attributes: Mapping[str, Any], **values: Any) -> None:
    """Raises InputError where attributes differ from what a library has.

    Args:
        library: its name.
        attributes: of a network.
        values: the value of each attribute that it has.
    """
    for key, value in values.items():
        if attributes.get(key, value) != value:
            raise InputError(f"{library} has no such network: only {key}={value!r}, not {attributes[key]!r}")


def timm_pool(attributes: Mapping[str, Any], pools: Mapping[str, str]) -> str:
    """Returns timm's word for how a network with such `attributes` pools, out of `pools`: timm's word -> ours.

    Raises:
        InputError: timm has none.
    """
    for theirs, ours in pools.items():
        if ours == attributes["pool"]:
            return theirs
    raise InputError(f"timm has no such network that pools by {attributes['pool']!r}, only {', '.join(pools.values())}")
