import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tljax.config import Preprocessing
from tljax.data import images
from tljax.errors import InputError


def _bytes(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _gradient(width: int, height: int) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows * 2, columns * 2, rows * 0 + 7], -1).astype(np.uint8))


def test_grey_palette_and_alpha_become_rgb():
    for mode in ("L", "P", "RGBA", "1"):
        assert images.decode(_bytes(_gradient(8, 8).convert(mode)), "x").mode == "RGB"


@pytest.mark.parametrize(("channels", "mode"), [("grey", "L"), ("rgba", "RGBA"), ("bgra", "RGBA"), ("bgr", "RGB")])
def test_channels_are_decoded_as_pil_does(channels, mode):
    picture = _gradient(8, 6)
    found = images.evaluation_view(images.decode(_bytes(picture), "x", channels), Preprocessing(size=6))
    wanted = np.asarray(picture.convert(mode))[:, 1:7]
    np.testing.assert_array_equal(found, wanted.reshape(6, 6, -1))
    for name in images.AUGMENTATIONS:
        rng = np.random.default_rng(0)
        view = images.training_view(picture.convert(mode), Preprocessing(size=6), (name,), rng)
        assert view.shape == found.shape


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter: the stored rows are the picture's columns
    assert images.decode(_bytes(_gradient(8, 4), "JPEG", exif=exif), "x").size == (4, 8)


@pytest.mark.parametrize("cut", [0, 20, 300, -30])
def test_a_truncated_image_is_named(cut):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    for kind in ("PNG", "JPEG"):
        with pytest.raises(InputError, match=r"cells/7\.png: not a readable image .*; mend or remove it"):
            images.decode(_bytes(noise, kind)[:cut], "cells/7.png")


def test_evaluation_view_is_the_centre_of_the_resized_picture():
    view = images.evaluation_view(_gradient(64, 32), Preprocessing(size=32))
    np.testing.assert_array_equal(view, np.asarray(_gradient(64, 32))[:, 16:48])
    smaller = images.evaluation_view(_gradient(64, 64), Preprocessing(size=32, crop_fraction=0.5))
    np.testing.assert_array_equal(smaller, np.asarray(_gradient(64, 64))[16:48, 16:48])


def test_squashing_does_not_keep_the_aspect_ratio():
    picture = _gradient(64, 32)
    view = images.evaluation_view(picture, Preprocessing(size=24, resize="squash", interpolation="bilinear"))
    np.testing.assert_array_equal(view, np.asarray(picture.resize((24, 24), Image.Resampling.BILINEAR)))
    cropped = images.evaluation_view(picture, Preprocessing(size=24, crop_fraction=24 / 32, resize="squash"))
    np.testing.assert_array_equal(cropped, np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC))[4:28, 4:28])


def test_fractions_of_a_pixel_are_dropped_as_in_torchvision():
    picture = _gradient(50, 33)
    view = images.evaluation_view(picture, Preprocessing(size=32, crop_fraction=0.9))  # 35.6 pixels by 53.03
    np.testing.assert_array_equal(view, np.asarray(picture.resize((53, 35), Image.Resampling.BICUBIC))[2:34, 10:42])


def test_a_picture_smaller_than_the_crop_is_enlarged():
    assert images.evaluation_view(_gradient(5, 9), Preprocessing(size=32)).shape == (32, 32, 3)


@pytest.mark.parametrize("name", images.AUGMENTATIONS)
def test_augmentations_are_functions_of_their_key(name):
    image, preprocessing = _gradient(40, 30), Preprocessing(size=32)
    views = [
        images.training_view(image, preprocessing, (name,), np.random.default_rng(seed)) for seed in (0, 0, 1, 2, 3)
    ]
    np.testing.assert_array_equal(views[0], views[1])
    assert any(not np.array_equal(views[0], view) for view in views[2:])


def test_normalise_in_the_weights_own_units_and_channel_order():
    image = jnp.array([[[[10, 20, 30]]]], jnp.uint8)
    found = images.normalise(image, Preprocessing(mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0), channels="bgr"))
    np.testing.assert_allclose(found[0, 0, 0], [29.0, 9.0, 1.75])
    alpha = Preprocessing(mean=(1.0, 2.0, 3.0, 1.0), std=(1.0, 2.0, 4.0, 1.0), channels="bgra")
    found = images.normalise(jnp.array([[[[10, 20, 30, 255]]]], jnp.uint8), alpha)
    np.testing.assert_allclose(found[0, 0, 0], [29.0, 9.0, 1.75, 254.0])
