"""What the `config.json` of transformers' encoders of images and of texts call alike."""

from typing import Any

from tljax.io.json_keys import Keys

GELU = {"gelu": "erf", "gelu_python": "erf", "gelu_new": "tanh", "gelu_fast": "tanh", "gelu_pytorch_tanh": "tanh"}


def sizes(keys: Keys, width: int = 768, depth: int = 12, heads: int = 12) -> dict[str, Any]:
    """Returns width, depth and heads, as most transformers call them.

    Args:
        keys: the config's.
        width, depth, heads: what they are where it does not say.

    Raises:
        InputError: the heads do not divide the width.
    """
    numbers = {
        "width": keys.whole("hidden_size", width),
        "depth": keys.whole("num_hidden_layers", depth),
        "heads": keys.whole("num_attention_heads", heads),
    }
    if numbers["width"] % numbers["heads"]:
        raise keys.refusal("num_attention_heads", f"does not divide the width of {numbers['width']}")
    return numbers
