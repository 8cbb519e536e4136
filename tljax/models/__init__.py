"""The backbones that exist, by name."""

from tljax.models.resnet import ResNet
from tljax.models.vit import ViT

_HALF = (32, 64, 128, 256)

BACKBONES: dict[str, ResNet | ViT] = {
    "resnet18": ResNet(depths=(2, 2, 2, 2), kind="basic"),
    "resnet34": ResNet(kind="basic"),
    "resnet50": ResNet(),
    "resnet50_v1": ResNet(stride_on="1x1"),
    "resnet50_half_v1": ResNet(widths=_HALF, stride_on="1x1"),
    "resnet50_half_v1_folded": ResNet(widths=_HALF, stride_on="1x1", norm="folded", stem_pool_padding=(0, 1)),
    "resnet101": ResNet(depths=(3, 4, 23, 3)),
    "vit_tiny_patch16": ViT(width=192, heads=3),
    "vit_small_patch16": ViT(),
    "vit_small_patch14_layerscale": ViT(patch_size=14, grid=(37, 37), layer_scale=1.0),
    "vit_base_patch16": ViT(width=768, heads=12),
}
