"""The trained networks that any package index has: against onnxruntime on photographs, or by what they see there."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from sklearn.datasets import load_sample_images

from tljax.config.schema import BackboneConfig, Experiment, HeadConfig
from tljax.config.serialization import to_dict
from tljax.data.transforms.image import evaluation_view, normalize
from tljax.io.download.fetch import fetch
from tljax.weights import pretrained
from tljax.weights.catalog import CATALOG

pytestmark = pytest.mark.optimized


def _pictures(preprocessing) -> np.ndarray:
    """A flower and a temple, upright and turned."""
    found = [Image.fromarray(picture) for picture in load_sample_images().images]
    found += [picture.rotate(90, expand=True) for picture in found]
    return np.stack([evaluation_view(picture, preprocessing) for picture in found])


def _reference(path, output: str, image: np.ndarray) -> np.ndarray:
    """What onnxruntime computes at an inner tensor."""
    model = onnx.load(path)
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run([output], {session.get_inputs()[0].name: image})[0]


@pytest.mark.parametrize(
    ("weights", "output"),
    [
        ("resnet50_half.open_nsfw", "Reshape:0"),
        ("vit_small_patch14.dinov2", "/backbone/layernorm/Add_1_output_0"),
    ],
)
def test_features_are_onnxruntimes(weights, output):
    row = pretrained.resolve_weights(BackboneConfig(weights=weights))
    module = pretrained.module_of(row).resized(row.preprocessing.size)
    variables = jax.tree.map(jnp.asarray, pretrained.restore(row, module))
    image = np.asarray(normalize(jnp.asarray(_pictures(row.preprocessing)), row.preprocessing))
    features = module.apply(variables, jnp.asarray(image))
    channels_last = weights.startswith("resnet")
    wanted = _reference(fetch(row.uri, row.sha256), output, image if channels_last else image.transpose(0, 3, 1, 2))
    wanted = wanted if channels_last else wanted[:, 0]
    assert np.ptp(wanted, axis=0).mean() > 0.1, "the pictures all look the same to it"
    np.testing.assert_allclose(features, wanted, atol=1e-4, rtol=0)


COFFEE = "coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"
CAT = "chelsea.png", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"


@pytest.mark.parametrize(
    ("photograph", "classes", "probability"), [(COFFEE, [967], 0.94), (CAT, [281, 282, 283, 284, 285], 0.92)]
)
def test_an_imagenet_classifier_calls_an_espresso_an_espresso_and_a_cat_a_cat(photograph, classes, probability):
    name, sha256 = photograph
    row = pretrained.resolve_weights(BackboneConfig(weights="efficientnet_lite0.imagenet"))
    module = pretrained.module_of(row)
    variables = jax.tree.map(jnp.asarray, pretrained.restore(row, module))
    head = variables.pop("head")
    picture = Image.open(fetch(f"pypi://scikit-image==0.26.0/skimage/data/{name}", sha256))
    image = normalize(jnp.asarray(evaluation_view(picture, row.preprocessing)[None]), row.preprocessing)
    scores = jax.nn.softmax(jax.jit(module.apply)(variables, image) @ head["kernel"] + head["bias"])[0]
    assert int(jnp.argmax(scores)) in classes
    assert abs(float(scores[jnp.asarray(classes)].sum()) - probability) < 0.02


def test_a_name_and_its_uri_mean_the_same_and_bring_their_preprocessing():
    for name, row in CATALOG.items():
        assert pretrained.resolve_weights(BackboneConfig(weights=name)) == row
        if "_quickgelu_" not in name:  # timm's second name for files whose own config says GELU
            assert pretrained.resolve_weights(BackboneConfig(weights=row.uri)) == row
    found = to_dict(CATALOG["resnet50_half.open_nsfw"].preprocessing)
    assert (found["channels"], found["mean"], found["size"]) == ("bgr", (104.0, 117.0, 123.0), 224)


def test_only_the_position_embedding_depends_on_the_image_size():
    row = pretrained.resolve_weights(BackboneConfig(weights="vit_small_patch14.dinov2"))
    small, native = (pretrained.restore(row, pretrained.module_of(row).resized(size)) for size in (112, 518))
    small, native = (flatten_dict(tree, sep="/") for tree in (small, native))
    assert small["params/stem/pos_embed"].shape == (1, 65, 384)
    np.testing.assert_array_equal(small["params/stem/pos_embed"][0, 0], native["params/stem/pos_embed"][0, 0])
    assert [path for path in native if not np.array_equal(small[path], native[path])] == ["params/stem/pos_embed"]


@pytest.mark.parametrize(
    ("weights", "init", "resampled", "initialized", "ignored"),
    [
        ("vit_small_patch14.dinov2", "zeros", ["params/stem/pos_embed"], ["head/kernel", "head/bias"], "decoder."),
        ("resnet50_half.open_nsfw", "zeros", [], ["head/kernel", "head/bias"], "head/kernel"),
        ("resnet50_half.open_nsfw", "pretrained", [], [], "Reshape:0#1"),
    ],
)
def test_what_becomes_of_every_array_is_told(weights, init, resampled, initialized, ignored):
    config = Experiment(steps=1, backbone=BackboneConfig(weights=weights), head=HeadConfig(init))
    row = pretrained.resolve_weights(config.backbone)
    module = pretrained.module_of(row).resized(224)
    found = pretrained.provenance(config, row, module, initialized)
    assert found["resampled"] == resampled
    assert found["initialized"] == initialized
    assert any(name.startswith(ignored) for name in found["ignored"])
    heads = 2 * (init == "pretrained")
    assert found["kept"] + len(resampled) == len(flatten_dict(pretrained.restore(row, module)["params"])) + heads
