import numpy as np
import pytest

from tests.conftest import golden
from tljax.data.preprocessing import Preprocessing
from tljax.errors import InputError
from tljax.weights.adapt import RESAMPLINGS, adapt_channels, class_subset, resample_pos_embed, with_channels

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


KERNEL = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]], np.float32).reshape(1, 1, 3, 2)


@pytest.mark.parametrize(
    ("channels", "wanted"),
    [
        (1, [[7, 70]]),
        (3, [[1, 10], [2, 20], [4, 40]]),
        (4, [[0.75, 7.5], [1.5, 15], [3, 30], [0.75, 7.5]]),
        (6, [[0.5, 5], [1, 10], [2, 20], [0.5, 5], [1, 10], [2, 20]]),
    ],
)
def test_a_first_kernel_for_another_number_of_channels(channels, wanted):
    found = adapt_channels(KERNEL, channels)
    assert found.shape == (1, 1, channels, 2)
    np.testing.assert_array_equal(found[0, 0], wanted)


def test_a_sum_of_half_precision_is_taken_in_float32():
    found = adapt_channels(np.array([2048.0, 1.0, 1.0], np.float16).reshape(1, 1, 3, 1), 1)
    assert found.item() == 2050 and found.dtype == np.float32


def test_the_normalisation_goes_with_the_kernel():
    caffe = Preprocessing(mean=(90.0, 120.0, 150.0), std=(1.0, 2.0, 6.0), channels="bgr")
    grey, alpha = with_channels(caffe, 1), with_channels(caffe, 4)
    assert (grey.mean, grey.std, grey.channels, grey.inputs) == ((120.0,), (3.0,), "grey", 1)
    assert (alpha.mean, alpha.std) == ((90.0, 120.0, 150.0, 90.0), (1.0, 2.0, 6.0, 1.0))
    assert (alpha.channels, alpha.inputs) == ("bgra", 4)
    assert with_channels(Preprocessing(), 4).channels == "rgba"
    assert with_channels(caffe, 3) is caffe


def test_channels_that_no_file_has_and_weights_that_are_not_for_three():
    with pytest.raises(InputError, match=r"images of 2 channels: there is no such file yet, only of 1 \(grey\), 3"):
        with_channels(Preprocessing(), 2)
    for adapt, what in ((with_channels, with_channels(Preprocessing(), 1)), (adapt_channels, KERNEL[:, :, :1])):
        with pytest.raises(InputError, match="images of 1 channels, and only 3 can be adapted to 4"):
            adapt(what, 4)
