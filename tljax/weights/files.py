"""Reads the arrays out of a checkpoint file as `name -> numpy array`."""

import re
from pathlib import Path

import numpy as np

from tljax.errors import InputError


def read(path: Path) -> dict[str, np.ndarray]:
    """Every array in a checkpoint file, under the name that the file gives it.

    Raises:
        InputError: the kind of file is not known, or the file is damaged.
    """
    readers = {".onnx": _read_onnx, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        raise InputError(f"{path}: cannot read weights from a {path.suffix!r} file; known: {', '.join(readers)}")
    try:
        return readers[path.suffix](path)
    except InputError:
        raise
    except Exception as error:  # each format's library has exceptions of its own
        raise InputError(f"{path}: damaged or not a {path.suffix} file ({error})") from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


# Names that an exporter made up, `onnx::MatMul_1966` or `Conv__440_weights`, change with every export.
_MADE_UP = re.compile(r"onnx::\w+|\w+?__\d+(_.*)?")


def _read_onnx(path: Path) -> dict[str, np.ndarray]:
    """An ONNX graph's initializers; one with a made-up name is called `output#input` after its (only) node."""
    import onnx

    graph = onnx.load(path).graph
    names = {array.name: array.name for array in graph.initializer}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in names and _MADE_UP.fullmatch(name):
                names[name] = f"{node.output[0]}#{index}"
    return {names[array.name]: onnx.numpy_helper.to_array(array) for array in graph.initializer}
