"""JSON as every reader takes it: without NaN and infinity, and with each key once."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any


def dumps(value: Any, **options: Any) -> str:
    """Returns a value as JSON, with null for each number that is not finite.

    Args:
        value: what `json.dumps` takes.
        options: as of `json.dumps`.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, **options)


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the pairs of an object as a dictionary, as `object_pairs_hook` of `json.loads`.

    Raises:
        ValueError: a key is there twice, of which nothing says which is meant.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"has the key {key!r} twice")
    return content


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
