"""Phases are a pure function of the step; what survives a switch is `test_optim.py` and `test_training.py`."""

import jax
import pytest

from tests.test_tuning import VIT
from tljax.config.schema import OptimConfig
from tljax.config.tuning import TuningConfig
from tljax.errors import InputError
from tljax.peft.config import Lora, MlpHead
from tljax.tuning import phases
from tljax.tuning.phases import Length

RATES = OptimConfig(learning_rate=0.1)


def _phases(
    steps: int = 100, rates: OptimConfig = RATES, per_epoch: float = 10.0, **tuning
) -> tuple[phases.Phase, ...]:
    return phases.phases(_tuning(**tuning), rates, Length(steps, per_epoch, VIT))


def _tuning(strategy: str, group_rates: tuple = (), **arguments) -> TuningConfig:
    return TuningConfig(strategy, group_rates, arguments)


def _listed(run_phases) -> list[tuple]:
    return [(phase.strategy, dict(phase.arguments), phase.start, phase.stop) for phase in run_phases]


def test_most_runs_are_one_phase():
    (only,) = _phases(strategy="last_k", k=2)
    assert _listed([only]) == [("last_k", {"k": 2}, 0, 100)]
    assert only.frozen == {"stem", *(f"block_{i}" for i in range(10))}
    assert float(only.schedule(0)) == pytest.approx(0.1)


def test_lp_ft_is_the_head_and_then_everything():
    probe, full = _phases(strategy="lp_ft", share=0.3)
    assert _listed([probe, full]) == [("linear_probe", {}, 0, 30), ("full", {}, 30, 100)]
    assert float(probe.schedule(0)) == pytest.approx(1.0)
    assert float(full.schedule(30)) == pytest.approx(0.1)
    assert float(full.schedule(65)) == pytest.approx(0.05)
    assert set(jax.tree.leaves(full.multipliers)) == {1.0}


@pytest.mark.parametrize(("direction", "strategy"), [("down", "last_k"), ("up", "first_k")])
def test_gradual_unfreezing_adds_a_group_at_a_time_under_one_schedule(direction, strategy):
    result = _phases(140, strategy="gradual_unfreezing", direction=direction)
    expected = [("linear_probe", {}), *((strategy, {"k": k}) for k in range(1, 13)), ("full", {})]
    assert [(phase.strategy, dict(phase.arguments)) for phase in result] == expected
    assert [phase.stop for phase in result] == list(range(10, 150, 10))
    whole = _phases(140, strategy="full")[0].schedule
    assert all(float(phase.schedule(phase.start)) == float(whole(phase.start)) for phase in result)
    frozen = [len(phase.frozen) for phase in result]
    assert frozen == sorted(frozen, reverse=True) and frozen[-1] == 0


def test_a_run_that_ends_before_all_groups_have_joined_has_fewer_phases():
    result = _phases(35, strategy="gradual_unfreezing", every=10)
    assert [(phase.start, phase.stop) for phase in result] == [(0, 10), (10, 20), (20, 30), (30, 35)]
    assert len(_phases(30, strategy="gradual_unfreezing", every=10)) == 3
    ks = [phase.arguments.get("k") for phase in _phases(40, strategy="gradual_unfreezing", by=5)]
    assert ks == [None, 5, 10, None]


def test_fine_tune_is_fastais_recipe():
    head, everything = _phases(strategy="fine_tune", freeze_epochs=2.0)
    assert (head.strategy, head.stop, everything.strategy) == ("linear_probe", 20, "discriminative")
    assert float(head.schedule(7)) == pytest.approx(0.1)
    peak = max(float(everything.schedule(step)) for step in range(20, 100))
    assert peak == pytest.approx(0.05)
    assert everything.multipliers["head"]["bias"] == 1
    assert everything.multipliers["backbone"]["stem"]["kernel"] == pytest.approx(0.01)


def test_phases_of_ones_own():
    result = _phases(
        strategy="phases",
        phases=(
            {"strategy": "linear_probe", "epochs": 2, "learning_rate": 1.0, "schedule": "constant"},
            {"strategy": "last_k", "k": 1, "share": 0.3, "warmup_steps": 10},
            {"strategy": "layer_decay", "decay": 0.5},
        ),
    )
    assert [(phase.start, phase.stop) for phase in result] == [(0, 20), (20, 50), (50, 100)]
    assert float(result[0].schedule(19)) == 1.0
    assert float(result[1].schedule(25)) == pytest.approx(0.05)
    assert float(result[2].schedule(50)) == pytest.approx(0.1)


def test_a_leaf_trains_since_the_phase_it_joined_in_without_a_pause():
    spec = [{"strategy": name, "steps": 10} for name in ("full", "linear_probe", "full")]
    result = _phases(30, strategy="phases", phases=tuple(spec))
    since = [(phase.since["head"]["bias"], phase.since["backbone"]["stem"]["kernel"]) for phase in result]
    assert since == [(0, 0), (0, 1), (0, 2)]


def test_every_strategy_takes_rates_by_group():
    (only,) = _phases(strategy="last_k", k=1, group_rates=(("head", 10.0), ("norm", 0.0)))
    assert only.multipliers["head"]["kernel"] == 10
    assert only.multipliers["backbone"]["block_11"]["mlp"]["fc1"]["kernel"] == 1
    assert only.frozen == {"stem", *(f"block_{i}" for i in range(11)), "norm"}


def test_a_run_has_what_any_of_its_phases_adds():
    assert phases.adapters(_tuning("lora", rank=4, targets=("x",))) == (Lora(4, targets=("x",)),)
    assert phases.adapters(_tuning("lp_ft")) == ()
    spec = ({"strategy": "mlp_head", "hidden": 3, "share": 0.5}, {"strategy": "lora"})
    assert phases.adapters(_tuning("phases", phases=spec)) == (MlpHead(3), Lora())


LP, FULL = {"strategy": "linear_probe"}, {"strategy": "full"}


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"strategy": "lp_tf"}, "no tuning.strategy 'lp_tf' (did you mean lp_ft?); there are: linear_probe, last_k"),
        ({"strategy": "lp_ft", "k": 2}, "lp_ft takes no tuning.k; it takes: share, probe_rate"),
        (
            {"strategy": "lp_ft", "share": 0.999},
            "lp_ft, tuning.share=0.999, phase 1: 0 steps long, where 0 of",
        ),
        ({"strategy": "gradual_unfreezing", "direction": "left"}, "no tuning.direction 'left'; there are: down, up"),
        ({"strategy": "gradual_unfreezing", "by": 0}, "tuning.by must be at least 1, not 0"),
        ({"strategy": "phases"}, "tuning.phases is required by phases(length, peak, *, phases)"),
        ({"strategy": "phases", "phases": ("full", LP)}, "tuning.phases[0] needs a 'strategy'"),
        ({"strategy": "phases", "phases": (LP, FULL)}, "tuning.phases[0]: give one of steps, epochs and share"),
        ({"strategy": "phases", "phases": ({**LP, "steps": 3, "share": 0.1}, FULL)}, "it has steps, share"),
        ({"strategy": "phases", "phases": ({**LP, "steps": 101}, FULL)}, "101 steps long, where 100 of the run's 100"),
        ({"strategy": "phases", "phases": ({**LP, "steps": 9}, {**FULL, "steps": 9})}, "take 18 steps and the run 100"),
        (
            {"strategy": "phases", "phases": ({**LP, "step": 9}, FULL)},
            "linear_probe takes no tuning.phases[0].step (did you mean steps?)",
        ),
        ({"strategy": "full", "group_rates": (("hed", 1.0),)}, "'hed' decides no group; there are: stem"),
    ],
)
def test_what_cannot_be_used_is_named(tuning, message):
    with pytest.raises(InputError) as error:
        _phases(**tuning)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"strategy": "lora", "rank": 0}, "tuning.rank must be at least 1, not 0"),
        ({"strategy": "lora", "dropout": 1.0}, "tuning.dropout must be at least 0 and below 1"),
        ({"strategy": "lora", "k": 1}, "lora takes no tuning.k; it takes: rank, alpha, dropout, rslora, targets"),
        (
            {"strategy": "phases", "phases": ({"strategy": "lora", "rank": 2}, {"strategy": "lora", "rank": 4})},
            "is not what an earlier phase adds",
        ),
    ],
)
def test_an_addition_that_cannot_be_made_is_named(tuning, message):
    with pytest.raises(InputError) as error:
        phases.adapters(_tuning(**tuning))
    assert message in str(error.value)
