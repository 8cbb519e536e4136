import numpy as np
import pytest

from tests.conftest import golden
from tljax.errors import InputError
from tljax.weights.surgery import RESAMPLINGS, class_subset, resample_pos_embed

OURS = {
    "timm_bicubic_antialias": "bicubic_antialias",
    "bicubic_no_antialias": "bicubic",
    "bicubic_no_antialias_offset_0.1": "bicubic_offset",
    "bilinear_no_antialias": "bilinear",
    "bilinear_align_corners": "bilinear_corners",
}
FACTS, TABLES = golden("pos_embed_resample")


@pytest.mark.parametrize("case", FACTS["cases"], ids=lambda case: case["tag"])
def test_position_embeddings_resampled_as_the_reference_does(case):
    tag, rule = case["tag"], OURS[case["method"]]
    found = resample_pos_embed(TABLES[f"{tag}/in"], tuple(case["old_grid"]), tuple(case["new_grid"]), rule)
    np.testing.assert_allclose(found, TABLES[f"{tag}/out"], atol=1e-5, rtol=0)
    prefix = case["prefix_tokens"]
    np.testing.assert_array_equal(found[:, :prefix], TABLES[f"{tag}/in"][:, :prefix])


def test_every_rule_has_a_golden():
    assert {OURS[case["method"]] for case in FACTS["cases"]} == set(RESAMPLINGS)


def test_the_same_grid_is_left_alone_and_an_unknown_rule_refused():
    table = np.ones((1, 5, 3), np.float32)
    assert resample_pos_embed(table, (2, 2), (2, 2), "bicubic") is table
    with pytest.raises(InputError, match="no resampling named 'nearest'; known: bicubic_antialias"):
        resample_pos_embed(table, (2, 2), (3, 3), "nearest")


def test_a_subset_of_a_head_by_name_in_the_order_asked_for():
    kernel, bias = np.arange(6.0).reshape(2, 3), np.array([7.0, 8.0, 9.0])
    found = class_subset(kernel, bias, ("cat", "dog", "emu"), ("emu", "cat"))
    assert found["kernel"].tolist() == [[2, 0], [5, 3]]
    assert found["bias"].tolist() == [9, 7]
    assert set(class_subset(kernel, None, ("cat", "dog", "emu"), ("dog",))) == {"kernel"}


@pytest.mark.parametrize(
    ("known", "wanted", "message"),
    [
        (("cat", "dog", "emu"), ("cats",), "the pretrained head has no class 'cats'; did you mean 'cat'?"),
        (("cat", "dog"), ("cat",), "the checkpoint names 2 classes and its head has 3"),
    ],
)
def test_a_class_that_the_head_does_not_know(known, wanted, message):
    with pytest.raises(InputError) as error:
        class_subset(np.zeros((2, 3)), None, known, wanted)
    assert str(error.value) == message
