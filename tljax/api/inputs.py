"""What a user gives to an encoder or a run: images or texts, always several."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tljax.errors import InputError


def listed(inputs: Any) -> Iterable[Any]:
    """Returns the inputs as they are.

    Raises:
        InputError: a single one, as a text, a path or a picture, whose letters or rows would be taken for inputs.
    """
    path = str(inputs) if isinstance(inputs, str | Path) and len(str(inputs)) <= 200 else ""
    if path and Path(path).is_dir():
        raise InputError(f"{path} is a folder: give a list of its files, as sorted(Path({path!r}).iterdir())")
    if isinstance(inputs, str | Path | bytes | Image.Image):
        raise InputError(f"give a list of images or texts; of a single one, [{repr(path) if path else 'it'}]")
    if isinstance(inputs, np.ndarray) and inputs.ndim not in (1, 4):
        raise InputError(f"images as one array are uint8 [n, height, width, channels], not {list(inputs.shape)}")
    return inputs


def name_of(value: Any, place: int) -> str:
    """Returns what errors call an input: a path or short text itself, else its place."""
    is_text = isinstance(value, str | Path) and len(str(value)) <= 200
    return str(value) if is_text else f"inputs[{place}]"
