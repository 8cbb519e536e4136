"""BiT against timm's reading of timm's and of Google's files: golden outputs, and every published name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from tests.conftest import GOLDEN, golden
from tests.models import test_resnet as resnets
from tests.models.test_resnet import check_manifest, check_round_trip, converted, manifests, outputs, weights_of
from tljax.models.vision.bit import BiT, standardize

pytestmark = pytest.mark.optimized

TIMM = BiT(depths=(1, 2, 1, 1), widths=(32, 32, 32, 64))
GOOGLE = BiT(depths=(1, 2, 1, 1), widths=(32, 32, 32, 32))
TOLERANCE = 2e-4  # absolute; on images this faint the normalizations magnify rounding, the reference's own to 2e-5


def google(head: bool = True) -> dict[str, np.ndarray]:
    source = dict(np.load(GOLDEN / "google_bit_npz" / "weights.npz"))
    dropped = [] if head else golden("google_bit_npz_nohead")[0]["drop_keys"]
    return {name: value for name, value in source.items() if name not in dropped}


# case: module, whose names, its arrays
CASES = {
    "timm_resnetv2_bit": (TIMM, "timm", lambda: weights_of("timm_resnetv2_bit")),
    "google_bit_npz": (GOOGLE, "google", google),
    "google_bit_npz_nohead": (GOOGLE, "google", lambda: google(head=False)),
}


@pytest.mark.parametrize("case", CASES)
def test_feature_map_features_and_logits_are_the_references(case):
    facts, io = golden(case)
    assert min(facts["max_abs_change_if"].values()) > TOLERANCE, "a usual mistake would pass"
    module, names, source = CASES[case]
    found = outputs(module, converted(source(), module, names), io["image"])
    assert found["features"].shape[-1] == module.feature_dim
    assert set(found) == set(io) - {"image"}
    for name, value in found.items():
        np.testing.assert_allclose(value, io[name], atol=TOLERANCE, rtol=0, err_msg=name)


@pytest.mark.parametrize("case", ["timm_resnetv2_bit", "google_bit_npz"])
def test_the_original_codes_epsilon_moves_the_logits_as_far_as_it_moves_the_references(case):
    facts, io = golden(case)
    module, names, source = CASES[case]
    found = outputs(module.clone(conv_eps=1e-10), converted(source(), module, names), io["image"])
    moved = abs(found["logits"] - io["logits"]).max()
    np.testing.assert_allclose(moved, facts["max_abs_change_if"]["stdconv_eps=1e-10"], rtol=0.01)


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_the_same_bits(case):
    module, names, source = CASES[case]
    check_round_trip(source(), module, names)


def test_running_the_groups_in_two_halves_is_running_them_all():
    _, io = golden("timm_resnetv2_bit")
    arrays = converted(weights_of("timm_resnetv2_bit"), TIMM, "timm")
    variables = jax.tree.map(jnp.asarray, unflatten_dict(arrays, sep="/"))
    assert set(variables["params"]) == set(TIMM.groups)
    image = jnp.asarray(io["image"])
    whole = TIMM.apply(variables, image)
    for cut in (1, 3, len(TIMM.groups) - 1):
        half = TIMM.apply(variables, image, stop=cut)
        np.testing.assert_array_equal(TIMM.apply(variables, half, start=cut), whole)


def test_a_standardised_kernel_has_mean_0_and_population_variance_1():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 8, 5)) * jnp.arange(1.0, 6.0) + 2
    found = standardize(kernel, 1e-10)
    np.testing.assert_allclose(found.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(found.var((0, 1, 2)), 1, atol=1e-6)
    np.testing.assert_allclose(standardize(kernel * 0, 1e-10), 0)


MANIFESTS = {
    "timm/resnetv2_50x1_bit": (BiT(), "timm"),
    "timm/resnetv2_101x1_bit": (BiT(depths=(3, 4, 23, 3)), "timm"),
}


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.usefixtures("shapes_only")
def test_every_published_name_is_mapped_and_nothing_else(name):
    check_manifest(manifests()[name], *MANIFESTS[name])


def test_every_manifest_is_tried():
    assert set(manifests()) == {*MANIFESTS, *resnets.MANIFESTS}
