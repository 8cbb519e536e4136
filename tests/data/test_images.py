import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from tljax.config.schema import TaskConfig
from tljax.data.preprocessing import Preprocessing
from tljax.data.transforms import image as images
from tljax.data.transforms.decode import Encoded
from tljax.errors import InputError

PHOTOGRAPHS = [Image.fromarray(pixels) for pixels in load_sample_images().images]  # 640 × 427
RANDOM = {"decode": "exact", "resize": 40, "crop": "random"}
INCEPTION = {"decode": "exact", "resize": 0, "crop": "inception"}
CENTRE = {"decode": "exact", "resize": 0, "crop": "center"}


def _bytes(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _gradient(width: int, height: int) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows * 2, columns * 2, rows * 0 + 7], -1).astype(np.uint8))


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _level(data: bytes, channels: str = "rgb") -> list[int]:
    """The first pixel."""
    return np.asarray(images.decode(data, "x", channels))[0, 0].tolist()


def test_grey_palette_and_alpha_become_rgb():
    for mode in ("L", "P", "RGBA", "1", "LA"):
        picture = _gradient(8, 8).convert(mode)
        found = images.decode(_bytes(picture), "x")
        assert found.mode == "RGB"
        np.testing.assert_array_equal(found, picture.convert("RGB"))


@pytest.mark.parametrize(("channels", "mode"), [("grey", "L"), ("rgba", "RGBA"), ("bgra", "RGBA"), ("bgr", "RGB")])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_channels_are_decoded_as_pil_does(channels, mode, kind):
    data = _bytes(_gradient(8, 6), kind)
    found = images.evaluation_view(images.decode(data, "x", channels), Preprocessing(size=6))
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert(mode))[:, 1:7]
    np.testing.assert_array_equal(found, wanted.reshape(6, 6, -1))


def test_alpha_is_dropped_not_blended_as_in_timm_and_torchvision():
    clear = _bytes(Image.new("RGBA", (4, 4), (10, 200, 30, 0)))
    assert _level(clear) == [10, 200, 30]
    assert _level(clear, "rgba") == [10, 200, 30, 0]
    assert _level(_bytes(Image.new("LA", (4, 4), (90, 0)))) == [90, 90, 90]
    assert _level(_bytes(Image.new("LA", (4, 4), (90, 7))), "rgba") == [90, 90, 90, 7]
    assert _level(_bytes(Image.new("RGB", (4, 4), (1, 2, 3))), "rgba") == [1, 2, 3, 255]


def test_a_palette_with_transparency():
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 50, 60, 70])
    data = _bytes(palette, transparency=bytes([255, 128]))
    with warnings.catch_warnings(action="error"):  # PIL's, at every such image
        assert _level(data) == [50, 60, 70]
    assert _level(data, "rgba") == [50, 60, 70, 128]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_cut_off(kind):
    levels = np.array([[0, 128, 129, 257, 32768, 65278, 65535]], np.uint16)
    data = _bytes(Image.fromarray(levels), kind)
    assert np.asarray(images.decode(data, "x", "grey"))[0].tolist() == [0, 0, 1, 1, 128, 254, 255]
    assert np.asarray(images.decode(data, "x"))[0, -2].tolist() == [254] * 3


def test_big_endian_sixteen_bits():
    big = Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 257 * 3, 65535))
    assert np.asarray(images.decode(_bytes(big, "TIFF"), "x", "grey"))[0].tolist() == [3, 255]


def test_levels_without_a_known_white_are_refused():
    with pytest.raises(InputError, match=r"^x: .*fractions.*8 or 16 bits"):
        images.decode(_bytes(Image.new("F", (4, 4), 0.5), "TIFF"), "x")
    with pytest.raises(InputError, match=r"^x: .*from 70000 to 70000, beyond 16 bits"):
        images.decode(_bytes(Image.new("I", (4, 4), 70_000), "TIFF"), "x")


def test_cmyk_and_ycck_jpegs():
    """Adobe stores both inverted; the marker's last byte tells one from the other."""
    ink = (200, 40, 90, 60)
    cmyk = _bytes(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)
    wanted = [(255 - color) * (255 - ink[3]) / 255 for color in ink[:3]]
    np.testing.assert_allclose(_level(cmyk), wanted, atol=2)
    place = cmyk.index(b"Adobe") + 11
    assert cmyk[place] == 0
    ycck = cmyk[:place] + b"\x02" + cmyk[place + 1 :]
    y, cb, cr, k = (255 - color for color in ink)  # as stored; now the first three are read as luma and chroma
    ink = [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)]
    np.testing.assert_allclose(_level(ycck), (255 - np.clip(ink, 0, 255)) * k / 255, atol=2)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ((250, 0, 0), (0, 250, 0))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = _bytes(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert _level(data) == [250, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pil_does(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _bytes(_gradient(24, 16), kind, exif=exif)
    np.testing.assert_array_equal(images.decode(data, "x"), ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert images.decode(data, "x").size == ((24, 16) if orientation < 5 else (16, 24))
    fast = images.source_view(data, "x", Preprocessing(size=6), decode="fast", resize=6, crop="random")
    wanted = images.source_view(data, "x", Preprocessing(size=6), decode="exact", resize=6, crop="random")
    np.testing.assert_allclose(fast.astype(int), wanted.astype(int), atol=4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_metadata_beside_a_whole_picture_is_passed_over():
    data = _bytes(_gradient(24, 16), "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff garbage")
    np.testing.assert_array_equal(images.decode(data, "x"), Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("cut", [0, 1, 20, 300, -30])
def test_a_truncated_image_is_named(cut):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    for kind in ("PNG", "JPEG", "WEBP"):
        with pytest.raises(InputError, match=r"^cells/7\.png: not a readable image \(.*\); mend or remove it$"):
            images.decode(_bytes(noise, kind)[:cut], "cells/7.png")


@pytest.mark.parametrize("decode", images.DECODERS)
def test_no_truncation_of_a_jpeg_goes_unnoticed(decode):
    """libjpeg fills what is missing with grey and only warns."""
    data = _bytes(PHOTOGRAPHS[0].resize((96, 64)), "JPEG")
    for cut in range(len(data) - 200, len(data) - 2, 7):
        with pytest.raises(InputError):
            images.source_view(data[:cut], "x", Preprocessing(size=16), decode=decode, resize=16, crop="random")


@pytest.mark.filterwarnings("ignore::UserWarning")  # of PIL, about what is damaged
def test_damage_is_an_input_error_whatever_pil_raises():
    rng, refused = _rng(), 0
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000"):
        whole = np.frombuffer(_bytes(PHOTOGRAPHS[1].resize((40, 30)), kind), np.uint8)
        for _ in range(60):
            data = whole.copy()
            places = rng.integers(0, min(len(data), 400), 6)
            data[places] = rng.integers(0, 256, 6)
            try:
                images.decode(data.tobytes(), "x")
            except InputError as error:
                refused += 1
                assert "\n" not in str(error)
    assert refused > 150


def test_decompression_bombs_are_refused_before_memory_is_taken():
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">II", 50_000, 50_000)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x08\x02\0\0\0") + chunk(b"IDAT", zlib.compress(b"\0" * 99))
    jpeg = _bytes(_gradient(16, 16), "JPEG")
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg = jpeg[:start] + struct.pack(">HH", 50_000, 50_000) + jpeg[start + 4 :]
    for data in (png, jpeg):
        with pytest.raises(InputError, match=r"^x: .*2500000000 pixels"):
            images.decode(data, "x")


def test_a_strip_that_would_fill_the_memory_when_enlarged_is_refused():
    strip = _bytes(Image.new("L", (30_000, 1)))
    with pytest.raises(InputError, match="30000 × 1 pixels would become 6720000 × 224"):
        images.evaluation_view(images.decode(strip, "x"), Preprocessing())
    with pytest.raises(InputError, match=r"^x: .*30000 × 1 pixels"):
        images.source_view(strip, "x", Preprocessing(), **CENTRE)


def test_only_pictures_are_opened():
    """PIL would start Ghostscript."""
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    for data in (postscript, b"<svg/>", b"hello"):
        with pytest.raises(InputError, match="its content is none of JPEG, PNG"):
            images.decode(data, "x.png")
    assert images.decode(_bytes(_gradient(8, 8), "JPEG"), "jpeg-called.png").size == (8, 8)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "rgb"])
def test_jpegs_decode_to_pils_bits(subsampling, progressive):
    coding = {"keep_rgb": True} if subsampling == "rgb" else {"subsampling": subsampling}
    for photograph in PHOTOGRAPHS:
        for size, quality in (((640, 427), 90), ((499, 333), 40), ((17, 9), 75), ((1, 1), 95)):
            picture = photograph.resize(size)
            data = _bytes(picture, "JPEG", quality=quality, progressive=progressive, **coding)
            np.testing.assert_array_equal(images.decode(data, "x"), Image.open(io.BytesIO(data)))
            grey = _bytes(picture.convert("L"), "JPEG", quality=quality, progressive=progressive)
            for channels, mode in (("grey", "L"), ("rgb", "RGB")):
                found = images.decode(grey, "x", channels)
                np.testing.assert_array_equal(found, Image.open(io.BytesIO(grey)).convert(mode))


def test_what_only_pil_reads_is_left_to_it():
    """Bytes before a marker, of which libjpeg warns."""
    data = _bytes(PHOTOGRAPHS[0], "JPEG")
    end = data.rindex(b"\xff\xd9")
    data = data[:end] + b"\x12\x34" + data[end:]
    np.testing.assert_array_equal(images.decode(data, "x"), Image.open(io.BytesIO(data)))
    fast = images.source_view(data, "x", Preprocessing(size=100), decode="fast", resize=100, crop="random")
    exact = images.source_view(data, "x", Preprocessing(size=100), decode="exact", resize=100, crop="random")
    assert 0 < np.abs(fast.astype(int) - exact).mean() < 4  # of an image that PIL has made smaller


def test_of_a_telephones_several_pictures_the_first_is_taken():
    first, second = (photograph.resize((64, 48)) for photograph in PHOTOGRAPHS)
    data = _bytes(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    np.testing.assert_array_equal(images.decode(data, "x"), Image.open(io.BytesIO(_bytes(first, "JPEG"))))


def test_threads_decode_what_one_does():
    encoded = [_bytes(photograph.resize((200 + i, 150)), kind) for photograph in PHOTOGRAPHS for i in range(8)
               for kind in ("JPEG", "PNG")]  # fmt: skip

    def view(data: bytes) -> bytes:
        return images.training_view_of(data, "x", Preprocessing(size=64), **INCEPTION, augment=(), rng=_rng()).tobytes()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(view, encoded)) == [view(data) for data in encoded]


def test_evaluation_view_is_the_center_of_the_resized_picture():
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


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("preprocessing", [
    Preprocessing(size=96), Preprocessing(size=84, crop_fraction=0.875, interpolation="bilinear"),
    Preprocessing(size=32, resize="squash", channels="grey", mean=(0.0,), std=(1.0,)),
])  # fmt: skip
def test_the_source_of_a_center_crop_is_the_evaluation_view(preprocessing, kind):
    data = _bytes(PHOTOGRAPHS[0], kind)
    found = images.source_view(data, "x", preprocessing, **CENTRE)
    picture = Image.open(io.BytesIO(data)).convert("L" if preprocessing.channels == "grey" else "RGB")
    np.testing.assert_array_equal(found, images.evaluation_view(picture, preprocessing))
    cut = images.training_view(found, preprocessing, crop="center", augment=(), rng=_rng())
    np.testing.assert_array_equal(cut, found)


def test_the_source_of_another_crop_is_the_whole_picture_resized_where_asked():
    data = _bytes(PHOTOGRAPHS[1], "JPEG")
    whole = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(images.source_view(data, "x", Preprocessing(size=32), **INCEPTION), whole)
    for interpolation, filter in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        preprocessing = Preprocessing(size=32, interpolation=interpolation)
        for crop in ("random", "inception"):
            found = images.source_view(data, "x", preprocessing, decode="exact", resize=64, crop=crop)
            np.testing.assert_array_equal(found, whole.resize((95, 64), filter))


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 80), height=st.integers(1, 80), size=st.integers(1, 48), resize=st.sampled_from([0, 7, 64]),
    crop=st.sampled_from(images.CROPS), decode=st.sampled_from(images.DECODERS), orientation=st.sampled_from([1, 6]),
    squash=st.booleans(),
)  # fmt: skip
def test_the_size_of_a_source_is_known_beforehand(width, height, size, resize, crop, decode, orientation, squash):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _bytes(_gradient(width, height), "JPEG", exif=exif)
    upright = images.decode(data, "x")
    preprocessing = Preprocessing(size=size, crop_fraction=0.9, resize="squash" if squash else "crop")
    found = images.source_view(data, "x", preprocessing, decode=decode, resize=resize, crop=crop)
    wanted = images.source_size(upright.height, upright.width, preprocessing, resize=resize, crop=crop)
    assert found.shape == (*wanted, 3)
    view = images.training_view(found, preprocessing, crop=crop, augment=(), rng=_rng())
    assert view.shape == (size, size, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("view", [
    CENTRE, RANDOM, INCEPTION, {**INCEPTION, "resize": 64}, {**INCEPTION, "resize": 64, "decode": "fast"},
])  # fmt: skip
@pytest.mark.parametrize("channels", ["rgb", "grey", "rgba"])
def test_from_bytes_or_from_what_is_cached_the_view_is_the_same(view, kind, channels):
    preprocessing, augment = Preprocessing(size=32, channels=channels), ("flip", "trivial_augment")
    data = _bytes(PHOTOGRAPHS[0].resize((160, 107)), kind)
    source = images.source_view(data, "x", preprocessing, **view)
    for seed in range(5):
        rngs = _rng(seed), _rng(seed)
        found = images.training_view_of(data, "x", preprocessing, **view, augment=augment, rng=rngs[0])
        wanted = images.training_view(
            source, preprocessing, crop=view["crop"], augment=augment, rng=rngs[1], decode=view["decode"]
        )
        np.testing.assert_array_equal(found, wanted)
        assert rngs[0].random() == rngs[1].random()


def test_a_random_crop_is_any_square_of_the_source():
    source = np.asarray(_gradient(20, 17))
    places = set()
    for seed in range(300):
        view = images.training_view(source, Preprocessing(size=16), crop="random", augment=(), rng=_rng(seed))
        top, left = int(view[0, 0, 0]) // 2, int(view[0, 0, 1]) // 2
        np.testing.assert_array_equal(view, source[top : top + 16, left : left + 16])
        places.add((top, left))
    assert places == {(top, left) for top in range(2) for left in range(5)}


def test_a_source_smaller_than_a_random_crop_is_enlarged():
    source = np.asarray(_gradient(20, 10))
    view = images.training_view(source, Preprocessing(size=16), crop="random", augment=(), rng=_rng(1))
    whole = np.asarray(_gradient(20, 10).resize((32, 16), Image.Resampling.BICUBIC))
    assert any(np.array_equal(view, whole[:, left : left + 16]) for left in range(17))


def test_an_inception_crop_is_cut_and_then_resized():
    picture, preprocessing = PHOTOGRAPHS[0], Preprocessing(size=48, interpolation="bilinear")
    for seed in range(5):
        view = images.training_view(np.asarray(picture), preprocessing, crop="inception", augment=(), rng=_rng(seed))
        top, left, height, width = images.inception_box(427, 640, _rng(seed))
        cut = picture.crop((left, top, left + width, top + height))
        np.testing.assert_array_equal(view, cut.resize((48, 48), Image.Resampling.BILINEAR))


def test_inception_boxes_are_spread_as_they_should_be():
    rng = _rng()
    boxes = np.array([images.inception_box(300, 300, rng) for _ in range(4000)])
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 300).all() and (left + width <= 300).all()
    share, ratio = height * width / 300**2, width / height
    assert share.min() > 0.078 and share.max() <= 1 and ratio.min() > 0.74 and ratio.max() < 1.35
    # A large part of another shape does not fit and is drawn again: up to 3/4 of the area, all are as likely.
    counts, _ = np.histogram(share, np.linspace(0.08, 0.74, 7))
    assert counts.std() < 0.06 * counts.mean()
    assert abs(np.log(ratio).mean()) < 0.01  # as often wider than high
    slack = (300 - width)[width < 250]
    assert abs((left[width < 250] / slack).mean() - 0.5) < 0.02


@pytest.mark.parametrize(("size", "box"), [((20, 400), (0, 186, 20, 27)), ((333, 31), (146, 0, 41, 31))])
def test_where_no_draw_fits_the_largest_part_in_the_center_is_taken(size, box):
    """Values of torchvision 0.28.0's RandomResizedCrop.get_params, whose draws cannot fit either."""
    assert {images.inception_box(*size, _rng(seed)) for seed in range(60)} >= {box}


@pytest.mark.parametrize(
    ("size", "factor", "farthest"), [(224, 1, 0.2), (107, 2, 1), (210, 2, 4), (100, 4, 3), (50, 8, 3)]
)
@pytest.mark.parametrize("interpolation", images._FAST_FILTERS)
def test_how_far_fast_decoding_is_from_exact(size, factor, farthest, interpolation):
    """In grey levels, on two photographs of 640 × 427 pixels, of which one has much fine detail."""
    preprocessing = Preprocessing(size=size, interpolation=interpolation)
    for photograph in PHOTOGRAPHS:
        data = _bytes(photograph, "JPEG", quality=90)
        assert Encoded(data).factor(size / 427) == factor
        exact, fast = (
            images.source_view(data, "x", preprocessing, decode=decode, resize=size, crop="random").astype(int)
            for decode in images.DECODERS
        )
        assert np.abs(exact - fast).mean() <= farthest
        # libjpeg's small picture is nearly that of the means of 2 × 2, 4 × 4 or 8 × 8 pixels: nothing is moved.
        means, box = Image.open(io.BytesIO(data)).reduce(factor), (0, 0, 640 / factor, 427 / factor)
        means = means.resize((fast.shape[1], size), images._FILTERS[interpolation], box)
        assert np.abs(np.asarray(means, int) - fast).mean() < 0.8
        center = images.source_view(data, "x", preprocessing, **CENTRE | {"decode": "fast"})
        left = round((fast.shape[1] - size) / 2)
        np.testing.assert_array_equal(center, fast[:, left : left + size])


@pytest.mark.parametrize("channels", ["rgb", "grey", "rgba"])
@pytest.mark.parametrize("interpolation", images._FAST_FILTERS)
@pytest.mark.parametrize("size", [32, 100, 224, 500])
def test_fast_resizing_is_pils_but_for_roundings(size, interpolation, channels):
    """Of what the cache holds, which `fast` has decoded exactly."""
    preprocessing = Preprocessing(size=size, interpolation=interpolation, channels=channels)
    for photograph in PHOTOGRAPHS:
        source = np.asarray(photograph.convert(images._MODES[channels])).reshape(427, 640, -1)
        for seed in range(3):
            exact, fast = (
                images.training_view(
                    source, preprocessing, crop="inception", augment=(), rng=_rng(seed), decode=decode
                ).astype(int)
                for decode in images.DECODERS
            )
            error = np.abs(exact - fast)
            assert error.mean() < 0.25 and error.max() <= (1 if interpolation == "bilinear" else 16)
            assert abs((exact - fast).mean()) < 0.02
            assert channels != "rgba" or error.max() == 0  # PIL's


def test_fast_resizing_gives_the_same_bits_with_any_instruction_set(monkeypatch):
    import cykooz_resizer  # which not every machine can have

    sources, views = [np.asarray(photograph) for photograph in PHOTOGRAPHS], []
    resizer, sets = cykooz_resizer.Resizer, cykooz_resizer.CpuExtensions

    def limited(extensions):
        made = resizer()
        made.cpu_extensions = extensions
        return made

    for extensions in (sets.none, resizer().cpu_extensions):
        monkeypatch.setattr(cykooz_resizer, "Resizer", lambda extensions=extensions: limited(extensions))
        views.append([
            images.training_view(
                source, Preprocessing(size=size), crop="inception", augment=(), rng=_rng(size), decode="fast"
            )
            for source in sources for size in (64, 224, 300)
        ])  # fmt: skip
    for plain, best in zip(*views, strict=True):
        np.testing.assert_array_equal(plain, best)


def test_a_fast_inception_crop_shows_the_same_part():
    """Rounded to whole pixels of the picture that is decoded at half the size."""
    data, preprocessing = _bytes(PHOTOGRAPHS[1], "JPEG", quality=90), Preprocessing(size=128)
    whole, factors = Image.open(io.BytesIO(data)), set()
    for seed in range(30):
        fast = images.training_view_of(
            data, "x", preprocessing, **INCEPTION | {"decode": "fast"}, augment=(), rng=_rng(seed)
        ).astype(int)
        top, left, height, width = images.inception_box(427, 640, _rng(seed))
        factor = Encoded(data).factor(128 / min(height, width))
        factors.add(factor)
        box = [factor * round(x / factor) for x in (left, top, left + width, top + height)]
        assert np.abs(np.subtract(box, (left, top, left + width, top + height))).max() < factor
        exact = np.asarray(whole.crop(box).resize((128, 128), Image.Resampling.BICUBIC), int)
        error = np.abs(exact - fast).mean()
        assert error < (0.25 if factor == 1 else 1.5), (seed, error)
        assert error < np.abs(exact[:, 1:] - exact[:, :-1]).mean() / 4  # a quarter of a pixel aside
    assert factors == {1, 2}


def test_only_what_depends_on_the_random_crop_cannot_be_kept():
    for decode in images.DECODERS:
        for crop in images.CROPS:
            for resize in (0, 64):
                free = decode == "fast" and crop == "inception" and resize == 0
                assert images.cacheable(decode=decode, resize=resize, crop=crop) is not free


@pytest.mark.parametrize(("values", "message"), [
    ({"crop": "random"}, "task.crop=random needs task.resize"),
    ({"resize": 256}, "task.crop=center does not heed task.resize.*set it to 0"),
])  # fmt: skip
def test_names_and_combinations_are_checked(values, message):
    with pytest.raises(InputError, match=message):
        images.check(TaskConfig(**values))
    images.check(TaskConfig(decode="fast", crop="random", augment=("flip", "rand_augment"), resize=256))
    images.check(TaskConfig(crop="inception"))
    images.check(TaskConfig())


def test_normalize_in_the_weights_own_units_and_channel_order():
    image = jnp.array([[[[10, 20, 30]]]], jnp.uint8)
    found = images.normalize(image, Preprocessing(mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0), channels="bgr"))
    np.testing.assert_allclose(found[0, 0, 0], [29.0, 9.0, 1.75])
    alpha = Preprocessing(mean=(1.0, 2.0, 3.0, 1.0), std=(1.0, 2.0, 4.0, 1.0), channels="bgra")
    found = images.normalize(jnp.array([[[[10, 20, 30, 255]]]], jnp.uint8), alpha)
    np.testing.assert_allclose(found[0, 0, 0], [29.0, 9.0, 1.75, 254.0])
