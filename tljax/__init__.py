"""Transfer learning in JAX: freezing that is proved, numbers that can be trusted, ablations that cost what differs.

    import tljax

    backbone = tljax.load_backbone("vit_small_patch14.dinov2")
    features = backbone.features(images)

The names are those of `__init__.pyi`; each is imported when it is first used.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
