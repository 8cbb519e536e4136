import numpy as np
import pytest
from PIL import Image

from tests.conftest import golden
from tljax.data.transforms import augment

_, GOLDEN = golden("augment")
PICTURE = GOLDEN["image"]  # [32, 32, 3]
WANTED = [name.removeprefix("wanted/") for name in GOLDEN if name.startswith("wanted/")]


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _with_alpha(picture: np.ndarray) -> np.ndarray:
    alpha = np.arange(picture[..., :1].size).reshape(*picture.shape[:2], 1) % 256
    return np.concatenate([picture, alpha.astype(np.uint8)], -1)


GREY = np.asarray(Image.fromarray(PICTURE).convert("L"))[..., None]
PICTURES = {"grey": GREY, "rgb": PICTURE, "rgba": _with_alpha(PICTURE)}


@pytest.mark.parametrize("case", WANTED)
def test_operations_have_torchvisions_values(case):
    name, _, mode = case.split("/")
    image = Image.fromarray(PICTURE).convert(mode)
    for magnitude, wanted in zip(GOLDEN[f"at/{case}"], GOLDEN[f"wanted/{case}"], strict=True):
        np.testing.assert_array_equal(augment.OPERATIONS[name](image, float(magnitude)), wanted)


def test_every_operation_is_compared_and_most_change_the_picture():
    assert {case.split("/")[0] for case in WANTED} == set(augment.OPERATIONS)
    for case in WANTED:
        original = Image.fromarray(PICTURE).convert(case.split("/")[-1])
        same = [np.array_equal(original, wanted) for wanted in GOLDEN[f"wanted/{case}"]]
        assert all(same) is (case in ("identity/wide/RGB", "identity/wide/L", "saturation/wide/L")), case


@pytest.mark.parametrize(("name", "space"), [("narrow", augment._narrow(32, 32)), ("wide", augment._WIDE)])
def test_magnitudes_are_torchvisions(name, space):
    names = {key.split("/")[2] for key in GOLDEN if key.startswith(f"magnitudes/{name}/")}
    assert names == set(space)
    for operation, (magnitudes, signed) in space.items():
        wanted = GOLDEN[f"magnitudes/{name}/{operation}"]
        np.testing.assert_allclose(magnitudes, wanted, rtol=2e-6, atol=1e-5)
        assert signed == GOLDEN[f"signed/{name}/{operation}"]
        if operation == "posterize":
            np.testing.assert_array_equal(magnitudes, wanted)


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_colors_change_without_alpha_and_places_with_it(name):
    image, magnitude = (
        augment.to_image(PICTURES["rgba"]),
        {"posterize": 3, "solarize": 100, "rotate": 30}.get(name, 0.6),
    )
    magnitude = 5 if name.startswith("translate") else magnitude
    found = np.asarray(augment.OPERATIONS[name](image, magnitude))
    rgb = augment.OPERATIONS[name](augment.to_image(PICTURE), magnitude)
    np.testing.assert_array_equal(found[..., :3], rgb)
    moves = name.startswith(("shear", "translate", "rotate"))
    assert np.array_equal(found[..., 3], PICTURES["rgba"][..., 3]) is not moves


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("name", augment.AUGMENTATIONS)
def test_augmentations_are_functions_of_their_generator(name, kind):
    picture = PICTURES[kind]
    kept = picture.copy()
    views = [augment.AUGMENTATIONS[name](picture, _rng(seed)) for seed in (0, 0, *range(1, 12))]
    np.testing.assert_array_equal(views[0], views[1])
    assert len({view.tobytes() for view in views}) > 1
    assert all(view.shape == picture.shape and view.dtype == np.uint8 for view in views)
    np.testing.assert_array_equal(picture, kept)


def test_flips_are_flips_half_of_the_time():
    for name, flipped in (("flip", PICTURE[:, ::-1]), ("flip_vertical", PICTURE[::-1])):
        views = [augment.AUGMENTATIONS[name](PICTURE, _rng(seed)) for seed in range(400)]
        turned = [np.array_equal(view, flipped) for view in views]
        assert all(
            np.array_equal(view, PICTURE) for view, is_turned in zip(views, turned, strict=True) if not is_turned
        )
        assert 160 < sum(turned) < 240


def test_shift_moves_by_up_to_a_tenth_to_every_side_and_black_moves_in():
    picture = np.maximum(PICTURE[:20], 1)  # 20 × 32: up to 2 rows and 3 columns
    padded = np.pad(picture, ((2, 2), (3, 3), (0, 0)))
    moves = set()
    for seed in range(400):
        view = augment.shift(picture, _rng(seed))
        found = [
            (dy, dx) for dy in range(5) for dx in range(7) if np.array_equal(view, padded[dy : dy + 20, dx : dx + 32])
        ]
        assert len(found) == 1
        moves.add(found[0])
    assert len(moves) == 35


@pytest.mark.parametrize(("name", "count"), [("rand_augment", 2), ("trivial_augment", 1)])
def test_each_operation_is_as_likely(name, count, monkeypatch):
    seen: dict[str, list[float]] = {operation: [] for operation in augment.OPERATIONS}

    def recorder(operation):
        return lambda image, magnitude: (seen[operation].append(magnitude), image)[1]

    monkeypatch.setattr(augment, "OPERATIONS", {operation: recorder(operation) for operation in seen})
    rng = _rng()
    for _ in range(2800 // count):
        augment.AUGMENTATIONS[name](PICTURE, rng)
    assert sum(map(len, seen.values())) == 2800
    assert all(150 < len(magnitudes) < 250 for magnitudes in seen.values())
    rotations = np.array(seen["rotate"])
    assert 0.35 < (rotations > 0).mean() < 0.65
    sizes = {round(abs(angle), 3) for angle in rotations}
    assert sizes == ({9.0} if name == "rand_augment" else {round(4.5 * i, 3) for i in range(31)} & sizes)
    assert len(sizes) == 1 if name == "rand_augment" else len(sizes) > 25
    assert set(seen["posterize"]) <= ({7.0} if name == "rand_augment" else set(range(2, 9)))


def test_color_jitter_is_timms_in_random_order():
    orders, factors = set(), []
    for seed in range(60):
        draws = _rng(seed)
        changes, order = draws.uniform(-0.4, 0.4, 3), draws.permutation(3)
        image = Image.fromarray(PICTURE)
        for i in order:
            image = augment.OPERATIONS[("brightness", "contrast", "saturation")[i]](image, changes[i])
        np.testing.assert_array_equal(augment.color_jitter(PICTURE, _rng(seed)), image)
        orders.add(tuple(order))
        factors.extend(changes)
    assert len(orders) == 6 and min(factors) < -0.35 and max(factors) > 0.35


@pytest.mark.parametrize("kind", PICTURES)
def test_random_erasing_blackens_one_rectangle_half_of_the_time(kind):
    picture = np.maximum(np.tile(PICTURES[kind], (3, 2, 1)), 1)  # 96 × 64, nothing black
    erased, shares, ratios = 0, [], []
    for seed in range(600):
        view = augment.random_erasing(picture, _rng(seed))
        black = (view[..., :3] == 0).all(-1)
        np.testing.assert_array_equal(view[~black], picture[~black])
        if kind == "rgba":
            np.testing.assert_array_equal(view[..., 3], picture[..., 3])
        if black.any():
            rows, columns = np.flatnonzero(black.any(1)), np.flatnonzero(black.any(0))
            assert black[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            erased += 1
            shares.append(black.mean())
            ratios.append(len(rows) / len(columns))
    assert 260 < erased < 340
    assert 0.015 < min(shares) < 0.03 and 0.31 < max(shares) < 0.34
    assert 0.27 < min(ratios) < 0.36 and 2.8 < max(ratios) < 3.6
