import numpy as np
import pytest

from tests.conftest import GOLDEN
from tests.models.test_backbones import BOTTLENECK, VIT
from tljax.backbone import shapes
from tljax.errors import InputError
from tljax.weights import files
from tljax.weights.rules import LINEAR, Rule, convert

RULES = (
    Rule(r"head\..*", None),
    Rule(r"fc(\d)\.weight", r"fc\1/kernel", LINEAR),
    Rule(r"q", "qk", part=0),
    Rule(r"k", "qk", part=1),
)
SOURCE = {
    "head.weight": np.zeros(2),
    "fc1.weight": np.arange(6.0).reshape(2, 3),
    "k": np.ones(2),
    "q": np.zeros(2),
}
TARGETS = {"fc1/kernel": (3, 2), "qk": (4,)}


def _message(source=SOURCE, rules=RULES, targets=TARGETS) -> str:
    with pytest.raises(InputError) as error:
        convert(source, rules, targets)
    return str(error.value)


def test_arrays_are_turned_joined_in_order_and_left_out_by_name():
    done = convert(SOURCE, RULES, TARGETS)
    assert done.arrays["fc1/kernel"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert done.arrays["qk"].tolist() == [0, 0, 1, 1]
    assert done.ignored == ("head.weight",)


def test_a_source_that_no_rule_knows():
    assert "no rule for source stray (5,)" in _message(SOURCE | {"stray": np.zeros(5)})


def test_a_target_that_nothing_fills():
    assert "nothing fills target fc2/kernel (3, 2) (nearest: fc1/kernel)" in _message(
        targets=TARGETS | {"fc2/kernel": (3, 2)}
    )


def test_a_target_that_the_model_lacks():
    assert "source fc2.weight goes to fc2/kernel, which the model lacks" in _message(
        SOURCE | {"fc2.weight": np.zeros((2, 3))}
    )


def test_a_shape_that_differs():
    assert "source fc1.weight (2, 3) does not make target fc1/kernel (3, 4)" in _message(
        targets=TARGETS | {"fc1/kernel": (3, 4)}
    )


def test_a_target_filled_twice():
    rules = (*RULES, Rule(r"again", "fc1/kernel"))
    assert "target fc1/kernel is filled more than once: fc1.weight + again" in _message(
        SOURCE | {"again": np.zeros((3, 2))}, rules
    )


def test_all_faults_come_in_one_error():
    message = _message({"stray": np.zeros(1)})
    assert all(name in message for name in ("stray", "fc1/kernel", "qk"))


@pytest.mark.parametrize(
    ("case", "module", "source"), [("timm_vit_cls", VIT, "timm"), ("timm_resnet_bottleneck", BOTTLENECK, "torch")]
)
def test_a_real_table_misses_no_single_change(case, module, source):
    arrays, rules, targets = files.read(GOLDEN / case / "weights.safetensors"), module.rules()[source], shapes(module)
    ignored = convert(arrays, rules, targets).ignored
    for name in arrays:
        if name in ignored:
            continue
        without = {key: value for key, value in arrays.items() if key != name}
        for changed in (without, without | {f"{name}_": arrays[name]}, arrays | {name: arrays[name][..., None]}):
            with pytest.raises(InputError):
                convert(changed, rules, targets)
