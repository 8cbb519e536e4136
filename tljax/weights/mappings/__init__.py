"""Names of other libraries' parameters, a file a family, each beside the names that they have here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tljax.models.text.albert import Albert
from tljax.models.text.bert import Bert
from tljax.models.text.deberta import Deberta
from tljax.models.text.electra import Electra
from tljax.models.text.modernbert import ModernBert
from tljax.models.text.mpnet import MPNet
from tljax.models.vision.beit import BEiT
from tljax.models.vision.bit import BiT
from tljax.models.vision.convnext import ConvNeXt
from tljax.models.vision.efficientnet import EfficientNet
from tljax.models.vision.eva import EVA
from tljax.models.vision.mobilenetv3 import MobileNetV3
from tljax.models.vision.regnet import RegNet
from tljax.models.vision.resnet import ResNet
from tljax.models.vision.swin import Swin
from tljax.models.vision.vit import ViT
from tljax.weights.mapping import Table
from tljax.weights.mappings.text import albert, bert, deberta, electra, modernbert, mpnet
from tljax.weights.mappings.vision import (
    beit,
    bit,
    clip,
    convnext,
    dinov3,
    efficientnet,
    eva,
    regnet,
    resnet,
    swin,
    vit,
)
from tljax.weights.readers import files


def _vit(model: ViT) -> dict[str, Table]:
    if model.positions == "rotary":
        return dinov3.tables(model)
    return (clip if model.pre_norm or not model.class_token else vit).tables(model)


_TABLES: dict[type, Callable[[Any], dict[str, Table]]] = {
    BEiT: beit.tables,
    Bert: bert.tables,
    BiT: bit.tables,
    EVA: eva.tables,
    ConvNeXt: convnext.tables,
    EfficientNet: efficientnet.tables,
    MobileNetV3: efficientnet.mobilenetv3_tables,
    RegNet: regnet.tables,
    ResNet: resnet.tables,
    Swin: swin.tables,
    ViT: _vit,
    Albert: albert.tables,
    Electra: electra.tables,
    MPNet: mpnet.tables,
    ModernBert: modernbert.tables,
    Deberta: deberta.tables,
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
