"""Encoders in Python: their features against the golden ones, any size, and the pure function for JAX people."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import tljax
from tests.conftest import GOLDEN, golden
from tljax.api.inputs import listed
from tljax.data.transforms import image


def _grey_levels(case: str, encoder: tljax.Encoder) -> np.ndarray:
    """The images of a golden case before they were normalized."""
    images = golden(case)[1]["image"]
    return images * np.array(encoder.preprocessing.std) + np.array(encoder.preprocessing.mean)


@pytest.mark.parametrize("case", ["foreign_timm_hf_vit", "foreign_timm_hf_resnet"])
def test_tokens_features_and_logits_are_the_references(case):
    facts, expected = golden(case)
    encoder = tljax.load_backbone(str(GOLDEN / case))
    images = _grey_levels(case, encoder).astype(np.float32)
    tokens = encoder.apply(encoder.params, images, pool=False)
    features = encoder.apply(encoder.params, images)
    logits = features @ encoder.head["kernel"] + encoder.head["bias"]
    maps = "tokens" if "tokens" in expected else "feature_map"
    for name, output in ((maps, tokens), ("features", features), ("logits", logits)):
        # The way to grey levels and back rounds once more.
        bound = 10 * facts["bound"] * abs(expected[name]).max()
        np.testing.assert_allclose(output, expected[name], atol=bound, rtol=0, err_msg=name)


def test_sentences_are_sentence_transformers(tmp_path):
    folder = GOLDEN / "st_bert_mean_norm"
    facts, expected = golden("st_bert_mean_norm")
    import json

    sentences = json.loads((folder / "sentences.json").read_text())
    encoder = tljax.load_backbone(str(folder), max_tokens=40)
    features = encoder.features(sentences, batch_size=2)
    np.testing.assert_allclose(features, expected["embeddings"], atol=10 * facts["bound"], rtol=0)
    assert np.allclose(np.linalg.norm(features, axis=-1), 1, atol=1e-6)


@pytest.fixture(scope="module")
def encoder(lively_weights) -> tljax.Encoder:
    return tljax.load_backbone(str(lively_weights))


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Eleven pictures of as many sizes."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (30 + 3 * i, 60 - 2 * i, 3)).astype(np.uint8) for i in range(11)]


def test_features_are_those_of_each_picture_alone_whatever_it_is_given_as(encoder, pictures, tmp_path):
    features = encoder.features(pictures, batch_size=4)
    assert features.shape == (11, encoder.feature_dim) and features.dtype == np.float32
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{i:02d}.png")
        view = image.evaluation_view(Image.fromarray(picture), encoder.preprocessing)
        alone = encoder.apply(encoder.params, view[None])[0]
        np.testing.assert_allclose(features[i], alone, atol=2e-5 * abs(alone).max())
    paths = sorted(tmp_path.glob("*.png"))
    for given in (paths, [str(path) for path in paths], [Image.open(path) for path in paths], iter(pictures)):
        np.testing.assert_array_equal(encoder.features(given, batch_size=4), features)
    array = np.stack([encoder.prepare([picture])[0] for picture in pictures])
    np.testing.assert_array_equal(encoder.features(array, batch_size=4), features)
    assert encoder.tokens(pictures).shape == (11, 17, 16)


def test_another_size_and_grey_pictures(lively_weights, pictures):
    encoder = tljax.load_backbone(str(lively_weights), image_size=48, channels=1)
    assert encoder.tokens(pictures[:2]).shape == (2, 37, 16)
    grey = [np.asarray(Image.fromarray(picture).convert("L")) for picture in pictures[:2]]
    np.testing.assert_array_equal(encoder.features(grey), encoder.features(pictures[:2]))


def test_apply_can_be_jitted_differentiated_and_vmapped(encoder, pictures):
    images = jnp.asarray(encoder.prepare(pictures[:3]))
    features = jax.jit(encoder.apply)(encoder.params, images)
    one_by_one = jax.vmap(lambda x: encoder.apply(encoder.params, x[None])[0])(images)
    np.testing.assert_allclose(features, one_by_one, atol=2e-5 * abs(features).max())
    loss = lambda params: encoder.apply(params, images)[0, 0]  # noqa: E731
    gradients = jax.jit(jax.grad(loss))(encoder.params)
    step = jax.tree.map(lambda leaf: 1e-4 * leaf, encoder.params)
    below, above = (jax.tree.map(change, encoder.params, step) for change in (jnp.subtract, jnp.add))
    dot = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(step), strict=True))
    np.testing.assert_allclose((loss(above) - loss(below)) / 2, dot, rtol=0.02, atol=1e-5)


def test_a_head_and_lora_leave_the_features_as_they_are(encoder, pictures):
    images = encoder.prepare(pictures[:3])
    model = encoder.with_head(5, init="truncated_normal", strategy="lora", rank=2)
    logits = encoder.apply(encoder.params, images) @ model.params["head"]["kernel"]
    np.testing.assert_allclose(model.apply(model.params, images), logits, rtol=1e-4, atol=1e-5)
    trained = jax.tree.leaves(tljax.partition(model.params, model.multipliers)[0])
    blocks, width = 3, 16
    assert sum(leaf.size for leaf in trained) == 5 * width + 5 + blocks * 2 * (2 * width * 2)
    probe = tljax.multipliers(model, "linear_probe")
    assert sum(bool(value) for value in jax.tree.leaves(probe)) == 2


def test_a_backbone_of_ones_own_with_random_weights(pictures):
    encoder = tljax.load_backbone(name="resnet18", image_size=32)
    again = tljax.load_backbone(name="resnet18", image_size=32)
    np.testing.assert_array_equal(encoder.features(pictures[:1]), again.features(pictures[:1]))
    assert encoder.tokens(pictures[:1]).shape == (1, 1, 1, 512) and encoder.head is None


def test_what_it_is_in_a_line(encoder, lively_weights):
    assert repr(encoder) == (
        f"Encoder({lively_weights}: images at 32 px -> 16 features, 0.0 M parameters in 5 groups, MIT)"
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.features("a.png"), "give a list of images or texts; of a single one, ['a.png']"),
        (lambda e: listed(Path("a.png")), "of a single one, ['a.png']"),  # of which the type is checked in tests
        (lambda e: listed(Image.new("RGB", (4, 4))), "of a single one, [it]"),
        (lambda e: e.features("tests"), "tests is a folder: give a list of its files"),
        (lambda e: e.features(["no.png"]), "no.png: cannot be read (No such file or directory)"),
        (
            lambda e: e.features([np.zeros((4, 4, 3))]),
            "inputs[0]: not a readable image (an array of float64 [4, 4, 3]: ",
        ),
        (lambda e: e.features(np.zeros((4, 4, 3), np.uint8)), "uint8 [n, height, width, channels], not [4, 4, 3]"),
        (lambda e: e.features([]), "no inputs"),
        (lambda e: e.logits([np.zeros((4, 4, 3), np.uint8)]), "has no head of its own"),
        (lambda e: e.with_head(3, strategy="last_k"), "tuning.k is required"),
        (lambda e: e.with_head(3, strategy="last_q"), "last_q"),
        (lambda e: tljax.multipliers(e, "last_k", k=9), "tuning.k must be between 1 and 4, not 9"),
        (lambda e: tljax.optimizer({"a": 1.0}, 0.1, weight_decy=1), "did you mean optim.weight_decay?"),
        (lambda e: tljax.load_backbone("vit_smal_patch14.dinov2"), "did you mean vit_small_patch14.dinov2"),
        (lambda e: tljax.load_backbone(), "need a backbone.name"),
    ],
)
def test_what_cannot_be_is_named(encoder, call, message):
    with pytest.raises(tljax.InputError) as error:
        call(encoder)
    assert message in str(error.value)
