"""Networks pretrained on three channels that are given grey images, or images with alpha."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.conftest import golden
from tests.models import test_bit as bits
from tests.models import test_resnet as resnets
from tests.models.test_bit import standardize
from tests.models.test_vit import VIT, load
from tljax.cli.convert import convert
from tljax.config.schema import BackboneConfig, Experiment, TaskConfig
from tljax.data.preprocessing import Preprocessing
from tljax.errors import InputError
from tljax.models.registry import attributes
from tljax.weights import pretrained
from tljax.weights.adapt import adapt_channels, with_channels
from tljax.weights.catalog import Pretrained

DEEP = resnets.CASES["timm_resnet_d"][0]
NETWORKS = {
    "timm_vit_cls": (VIT, lambda: load("timm_vit_cls")[1]),
    "timm_resnet_basic": (
        resnets.BASIC,
        lambda: resnets.converted(resnets.weights_of("timm_resnet_basic"), resnets.BASIC, "timm"),
    ),
    "timm_resnet_d": (DEEP, lambda: resnets.converted(resnets.weights_of("timm_resnet_d"), DEEP, "timm")),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_on_a_grey_image_one_channel_gives_what_three_equal_ones_give(case):
    module, arrays = NETWORKS[case][0], NETWORKS[case][1]()
    first = module.input_kernel
    grey = jnp.asarray(golden(case)[1]["image"])[..., :1]
    whole, one = (
        unflatten_dict({path: jnp.asarray(array) for path, array in found.items()}, sep="/")
        for found in (arrays, arrays | {first: adapt_channels(arrays[first], 1)})
    )
    wanted = module.apply(whole, jnp.repeat(grey, 3, -1), pool=False)
    np.testing.assert_allclose(module.apply(one, grey, pool=False), wanted, atol=5e-5, rtol=0)
    assert pretrained.shapes(module, 1)[first] == (*arrays[first].shape[:2], 1, arrays[first].shape[3])


def test_a_standardised_sum_is_the_sum_of_the_standardised_up_to_a_factor_for_each_filter():
    source = bits.converted(bits.weights_of("timm_resnetv2_bit"), bits.TIMM, "timm")
    kernel = source[bits.TIMM.input_kernel]
    found = standardize(jnp.asarray(adapt_channels(kernel, 1)), 1e-10)
    summed = standardize(jnp.asarray(kernel), 1e-10).sum(2, keepdims=True)
    factors = found.std((0, 1, 2)) / summed.std((0, 1, 2))
    np.testing.assert_allclose(found, summed * factors, atol=1e-4)
    assert np.std(factors) > 0.01


@pytest.fixture
def weights(tmp_path):
    """timm's ViT, as `convert` leaves it."""
    row = Pretrained("x", "", "vit_small_patch16", "timm", Preprocessing(32), "MIT", architecture=attributes(VIT))
    (tmp_path / "weights").mkdir()
    pretrained.write(tmp_path / "weights", row, load("timm_vit_cls")[1])
    return str(tmp_path / "weights")


@pytest.mark.parametrize(("channels", "adapted"), [(0, []), (1, ["params/stem/kernel"]), (4, ["params/stem/kernel"])])
def test_restored_for_the_tasks_channels_and_said_so(weights, channels, adapted):
    row = pretrained.resolve_weights(BackboneConfig(weights=weights))
    restored = flatten_dict(pretrained.restore(row, VIT, channels or 3), sep="/")
    assert restored["params/stem/kernel"].shape == (8, 8, channels or 3, 48)
    experiment = Experiment(steps=1, backbone=BackboneConfig(weights=weights), task=TaskConfig(channels=channels))
    found = pretrained.provenance(experiment, row, VIT, ["head/kernel", "head/bias"])
    assert found["adapted"] == adapted
    assert found["kept"] == len(pretrained.shapes(VIT)) - 2 - len(adapted)


@pytest.mark.parametrize("to", ["timm", "hf"])
@pytest.mark.parametrize("channels", [1, 4])
def test_an_export_says_how_many_channels_it_takes(weights, tmp_path, channels, to):
    row = pretrained.resolve_weights(BackboneConfig(weights=weights))
    arrays = flatten_dict(pretrained.restore(row, VIT, channels), sep="/")
    images = with_channels(row.preprocessing, channels)
    other = Pretrained(**{**vars(row), "preprocessing": images})
    (tmp_path / "other").mkdir()
    pretrained.write(tmp_path / "other", other, arrays)
    convert(BackboneConfig(weights=str(tmp_path / "other")), tmp_path / to, to=to)
    config = json.loads((tmp_path / to / "config.json").read_text())
    if to == "timm":
        assert config["model_args"]["in_chans"] == config["pretrained_cfg"]["input_size"][0] == channels
        assert config["pretrained_cfg"]["first_conv"] is None
    else:
        assert config["num_channels"] == channels
    again = pretrained.resolve_weights(BackboneConfig(weights=str(tmp_path / to)))
    assert again.preprocessing.channels == images.channels
    np.testing.assert_allclose(again.preprocessing.mean, images.mean)
    found = flatten_dict(pretrained.restore(again, pretrained.module_of(again), channels), sep="/")
    for path, array in arrays.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


def test_a_network_for_bgr_is_not_written_for_those_who_feed_rgb(tmp_path):
    caffe = Preprocessing(32, channels="bgr")
    row = Pretrained("x", "", "vit_small_patch16", "timm", caffe, "MIT", architecture=attributes(VIT))
    (tmp_path / "weights").mkdir()
    pretrained.write(tmp_path / "weights", row, load("timm_vit_cls")[1])
    for to, library in (("timm", "timm"), ("hf", "transformers")):
        with pytest.raises(InputError, match=f"{library} feeds its networks rgb, this one wants bgr"):
            convert(BackboneConfig(weights=str(tmp_path / "weights")), tmp_path / to, to=to)
