"""What sweeps are written with: order, counts, and draws that stay what they were."""

import itertools
import math
import runpy
from collections import Counter

import pytest

from tests.conftest import ROOT
from tljax.config.schema import Experiment
from tljax.config.search_space import choice, grid, log_uniform, product, random, uniform, zipped
from tljax.errors import InputError
from tljax.sweeps import selection
from tljax.sweeps.trial import make_trials, uneven


def test_a_grid_has_every_combination_in_order():
    assert grid({"a": (1, 2), "b": ("x", "y", "z")}) == [
        {"a": a, "b": b} for a, b in itertools.product((1, 2), ("x", "y", "z"))
    ]
    assert zipped({"a": (1, 2), "b": ("x", "y")}) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    with pytest.raises(InputError, match=r"\{'a': 2, 'b': 1\}"):
        zipped({"a": (1, 2), "b": ("x",)})


def test_a_product_is_each_with_each_and_the_later_value_counts():
    strategies = [{"k": 1}, {"k": 2, "rate": 5.0}]
    assert product(strategies, grid({"rate": (1.0,), "seed": (0, 1)})) == [
        {"k": 1, "rate": 1.0, "seed": 0},
        {"k": 1, "rate": 1.0, "seed": 1},
        {"k": 2, "rate": 1.0, "seed": 0},
        {"k": 2, "rate": 1.0, "seed": 1},
    ]


def test_draws_depend_on_seed_key_and_place_alone():
    rate = {"rate": log_uniform(1e-5, 1e-1)}
    found = random(3, 0, rate)
    assert found == [{"rate": 0.003126}, {"rate": 0.0291}, {"rate": 0.0003384}]
    assert random(7, 0, rate)[:3] == found
    assert [one["rate"] for one in random(3, 0, {"other": choice(1, 2), **rate})] == [one["rate"] for one in found]
    assert random(3, 1, rate) != found


def test_draws_are_distributed_as_asked_for():
    drawn = random(
        4000, 3, {"log": log_uniform(1e-4, 1e-2), "flat": uniform(-1.0, 3.0), "one": choice("a", "b", "c", "d")}
    )
    logs = sorted(math.log10(one["log"]) for one in drawn)
    assert -4 <= logs[0] < -3.99 and -2.01 < logs[-1] <= -2
    for part in (0.25, 0.5, 0.75):  # quantiles, to four standard errors
        assert abs((logs[round(4000 * part)] + 4) / 2 - part) < 4 * math.sqrt(part * (1 - part) / 4000)
    flat = [one["flat"] for one in drawn]
    assert min(flat) >= -1 and max(flat) <= 3 and abs(sum(flat) / 4000 - 1) < 4 * (4 / math.sqrt(12)) / math.sqrt(4000)
    assert all(
        abs(count - 1000) < 4 * math.sqrt(4000 * 0.25 * 0.75) for count in Counter(o["one"] for o in drawn).values()
    )
    for low, high in ((0.0, 1.0), (2.0, 1.0)):
        with pytest.raises(InputError, match="0 < low <= high"):
            log_uniform(low, high)


@pytest.mark.parametrize(
    ("file", "argument", "count", "methods"),
    [("ablation", ("mnist",), 48, 4), ("ablation", ("elpv",), 48, 4), ("six_strategies", (), 54, 6)],
)
def test_sweeps_of_the_configs(tmp_path, file, argument, count, methods):
    config = runpy.run_path(str(ROOT / "configs" / f"{file}.py"))
    found = make_trials(Experiment.from_config(config["get_config"](*argument)), config["sweep"](*argument), tmp_path)
    assert len(found) == count and len(selection.methods(found)) == methods and not uneven(found)
