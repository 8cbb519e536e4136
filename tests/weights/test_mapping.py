import numpy as np
import pytest

from tljax.errors import InputError
from tljax.weights.mapping import LINEAR, ParamMapping, Table, convert, unconvert

TABLE = Table(
    rules=(
        ParamMapping("fc1.weight", "fc1/kernel", LINEAR),
        ParamMapping("fc2.weight", "fc2/kernel", LINEAR),
        ParamMapping("q", "qk", part=(0, 2)),
        ParamMapping("k", "qk", part=(2, 4)),
        ParamMapping("heads", "joint", fold=(2, -1), axes=(1, 0)),
    ),
    ignored=(r"old\..*",),
    aliases=((r"^module\.", ""), (r"gamma$", "weight")),
)
SOURCE = {
    "old.weight": np.zeros(2),
    "module.fc1.gamma": np.arange(6.0).reshape(2, 3),
    "k": np.ones(2),
    "q": np.zeros(2),
    "heads": np.arange(6.0).reshape(3, 2),
}
TARGETS = {"fc1/kernel": (3, 2), "qk": (4,), "joint": (6,), "head": (None, 5)}
HEAD = frozenset({"head"})


def _message(source=SOURCE, table=TABLE, targets=TARGETS, optional=HEAD) -> str:
    with pytest.raises(InputError) as error:
        convert(source, table, targets, optional)
    return str(error.value)


def test_arrays_are_turned_folded_joined_in_order_and_left_out_by_name():
    done = convert(SOURCE, TABLE, TARGETS, HEAD)
    assert done.arrays["fc1/kernel"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert done.arrays["qk"].tolist() == [0, 0, 1, 1]
    assert done.arrays["joint"].tolist() == [0, 2, 4, 1, 3, 5]
    assert done.ignored == ("old.weight",)
    assert "head" not in done.arrays


def test_and_back():
    back = unconvert(convert(SOURCE, TABLE, TARGETS, HEAD).arrays, TABLE)
    assert set(back) == {"fc1.weight", "q", "k", "heads"}
    for name, value in SOURCE.items():
        if name != "old.weight":
            np.testing.assert_array_equal(back[TABLE.canonical(name)], value)


def test_a_source_that_no_rule_knows_and_the_nearest_that_one_does():
    message = _message(SOURCE | {"fc1.weigth": np.zeros(5)})
    assert "no mapping for source fc1.weigth (5,) (nearest: fc1.weight)" in message


def test_a_target_that_nothing_fills():
    message = _message(targets=TARGETS | {"fc2/kernel": (3, 2)})
    assert "nothing fills target fc2/kernel (3, 2) (nearest: fc1/kernel)" in message
    assert "nothing fills target head (None, 5)" in _message(optional=frozenset())


def test_a_target_that_the_model_lacks():
    message = _message(SOURCE | {"fc2.weight": np.zeros((2, 3))})
    assert "source fc2.weight goes to fc2/kernel, which the model lacks" in message


@pytest.mark.parametrize("shape", [(2, 4), (6,), (2, 3, 1), (3, 2)])
def test_a_shape_that_differs(shape):
    message = _message(
        {key: value for key, value in SOURCE.items() if "fc1" not in key} | {"fc1.weight": np.ones(shape)}
    )
    assert f"source fc1.weight {shape} does not make target fc1/kernel (3, 2)" in message


@pytest.mark.parametrize("changed", [{"q": np.zeros(3)}, {"heads": np.zeros((2, 3))}, {"heads": np.zeros((3, 2, 1))}])
def test_a_part_or_a_fold_that_differs(changed):
    (name,) = changed
    assert f"source {'q' if name == 'q' else name}" in _message(SOURCE | changed).replace("source k + ", "source ")


def test_a_missing_part():
    message = _message({key: value for key, value in SOURCE.items() if key != "k"})
    assert "source q (2,) does not make target qk (4,)" in message


def test_two_spellings_of_one_name():
    message = _message(SOURCE | {"fc1.weight": np.zeros((2, 3))})
    assert "target fc1/kernel is filled more than once: module.fc1.gamma + fc1.weight" in message


def test_all_faults_come_in_one_error():
    message = _message({"stray": np.zeros(1)})
    assert all(name in message for name in ("stray", "fc1/kernel", "qk", "joint"))
