"""The backbones that come with tljax, by name (timm's, without an image size, where timm has it), and users' own."""

import difflib
from collections.abc import Mapping
from typing import Any

from tljax.config.references import is_reference, resolve_reference, source_hash
from tljax.errors import InputError
from tljax.models.base import Backbone, attributes
from tljax.models.convolution import BATCH_NORM_MODES
from tljax.models.text import albert, bert, deberta, electra, modernbert, mpnet
from tljax.models.vision import beit, bit, convnext, efficientnet, eva, mobilenetv3, regnet, resnet, swin, vit

__all__ = ["BACKBONES", "BATCH_NORM_MODES", "Backbone", "attributes", "build"]

_IMAGES = (resnet, bit, efficientnet, mobilenetv3, regnet, convnext, vit, swin, beit, eva)
_TEXTS = (bert, mpnet, electra, albert, modernbert, deberta)
BACKBONES: dict[str, Backbone] = {
    name: module for family in (*_IMAGES, *_TEXTS) for name, module in family.NETWORKS.items()
}


def build(name: str, architecture: Mapping[str, Any]) -> Backbone:
    """Returns a row of `BACKBONES`, or a user's `module:name`, with the attributes in which a checkpoint differs.

    Raises:
        InputError: there is no such row or module, it is no backbone, or it has no such attribute.
    """
    module = _imported(name) if is_reference(name) else BACKBONES.get(name)
    if module is None:
        near = ", ".join(difflib.get_close_matches(name, BACKBONES, n=3, cutoff=0.4))
        known = f"the {len(BACKBONES)} of tljax.models.registry.BACKBONES"
        raise InputError(
            f"no backbone.name {name!r}{near and f' (nearest: {near})'}: give one of {known}, or module:name"
        )
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in architecture.items()}
    unknown = plain.keys() - attributes(module).keys()
    if unknown:
        raise InputError(f"{name} has no attribute {', '.join(sorted(unknown))}")
    return module.clone(**plain)


def _imported(name: str) -> Backbone:
    """Returns the backbone that a reference names, a class with its attributes' defaults or an instance.

    Raises:
        InputError: it is none, or has attributes without a default, or some that cannot be compared.
    """
    reference = resolve_reference(name, "backbone.name")
    is_class = isinstance(reference, type) and issubclass(reference, Backbone)
    if not is_class and not isinstance(reference, Backbone):
        raise InputError(f"backbone.name={name} is no backbone: give a subclass of tljax.models.base.Backbone")
    try:
        module = reference() if is_class else reference
        hash((module, module.groups, module.feature_dim))  # which have no default
    except TypeError as error:
        message = "its attributes cannot be hashed: give them tuples, not lists or dicts"
        raise InputError(f"backbone.name={name}: {message}") from error
    return module


def user_source(module: Backbone) -> tuple[str, ...]:
    """Returns the SHA-256 of the file that a user's backbone stands in, for keys of caches; () of ours."""
    if type(module).__module__.startswith("tljax."):
        return ()
    return (source_hash(type(module)),)
