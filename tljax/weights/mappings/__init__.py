"""Names of other libraries' parameters, a file a family, each beside the names that they have here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tljax.models.text.bert import Bert
from tljax.models.vision.bit import BiT
from tljax.models.vision.convnext import ConvNeXt
from tljax.models.vision.efficientnet import EfficientNet
from tljax.models.vision.mobilenetv3 import MobileNetV3
from tljax.models.vision.regnet import RegNet
from tljax.models.vision.resnet import ResNet
from tljax.models.vision.vit import ViT
from tljax.weights.mapping import Table
from tljax.weights.mappings.text import bert
from tljax.weights.mappings.vision import bit, convnext, efficientnet, regnet, resnet, vit
from tljax.weights.readers import files

_TABLES: dict[type, Callable[[Any], dict[str, Table]]] = {
    Bert: bert.tables,
    BiT: bit.tables,
    ConvNeXt: convnext.tables,
    EfficientNet: efficientnet.tables,
    MobileNetV3: efficientnet.mobilenetv3_tables,
    RegNet: regnet.tables,
    ResNet: resnet.tables,
    ViT: vit.tables,
}


def tables(backbone: Any) -> dict[str, Table]:
    """Returns the tables that convert a backbone's weights, each under the name of the library whose names it reads.

    Raises:
        InputError: a user's backbone has none.
    """
    return _TABLES[type(backbone)](backbone) if type(backbone) in _TABLES else dict(backbone.weight_mappings)


def attributes_in(backbone: Any, file: Path) -> dict[str, Any]:
    """Returns attributes that names in a file of weights tell, of a family whose file no config need describe."""
    return vit.attributes_in(backbone, files.read(file)) if isinstance(backbone, ViT) else {}
