"""Which setting of a method is chosen, where nothing but the order could tell."""

import dataclasses
from typing import Any, NamedTuple

from tljax.config.schema import Experiment
from tljax.sweeps import selection


class _Outcome(NamedTuple):
    experiment: Experiment
    result: dict[str, Any]


def test_of_equal_settings_a_sweep_and_a_report_choose_the_same():
    base = Experiment()
    outcomes = [
        _Outcome(
            dataclasses.replace(base, optim=dataclasses.replace(base.optim, learning_rate=rate)),
            {"splits": {"validation": {"accuracy": accuracy}}},
        )
        for rate, accuracy in ((0.1, 0.5), (0.01, 0.5), (0.001, 0.25))
    ]
    rates = []
    for order in (outcomes, outcomes[::-1]):  # of a grid, of names of folders
        ((chosen,),) = selection.select_trials(order).values()
        rates.append(chosen.experiment.optim.learning_rate)
    assert rates == [0.01, 0.01]
