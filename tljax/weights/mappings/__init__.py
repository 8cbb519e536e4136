"""Names of other libraries' parameters, a file a family, each beside the names that they have here."""

from collections.abc import Callable
from typing import Any

from tljax.models.text.bert import Bert
from tljax.models.vision.bit import BiT
from tljax.models.vision.resnet import ResNet
from tljax.models.vision.vit import ViT
from tljax.weights.mapping import Table
from tljax.weights.mappings.text import bert
from tljax.weights.mappings.vision import bit, resnet, vit

_TABLES: dict[type, Callable[[Any], dict[str, Table]]] = {
    Bert: bert.tables,
    BiT: bit.tables,
    ResNet: resnet.tables,
    ViT: vit.tables,
}


def tables(backbone: Any) -> dict[str, Table]:
    """Returns the tables that convert a backbone's weights, each under the name of the library whose names it reads."""
    return _TABLES[type(backbone)](backbone)
