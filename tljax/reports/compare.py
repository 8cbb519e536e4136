"""From the runs of a data set to its part of a report: what is chosen, how good it is, and how sure differences are."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from tljax.config.schema import Experiment
from tljax.errors import InputError
from tljax.problems.metric import Metric
from tljax.problems.registry import problem_for
from tljax.reports import checks, statistics
from tljax.reports.formatting import Scale
from tljax.reports.run_metrics import measure, resampled
from tljax.reports.runs import Run
from tljax.reports.schema import LeftOut, Method, Options, Section, Setting
from tljax.reports.statistics import Comparison
from tljax.sweeps import selection


def section_of(title: str, runs: Sequence[Run], options: Options) -> Section:
    """Returns a comparison of the methods among runs of a data set.

    Args:
        title: of the data set.
        runs: its finished runs.
        options: how to compare.

    Raises:
        InputError: two runs cannot be compared, nothing is tested, or there is no such baseline, metric or section.
    """
    checks.check(runs, options.split)
    methods_tried = selection.methods(runs, options.tuned)
    chosen, words = selection.select_trials(runs, options.tuned), _words(methods_tried, options.tuned)
    problem = problem_for(runs[0].experiment)
    selected_by = problem.headline.name
    options = dataclasses.replace(options, metric=options.metric or selected_by)
    entries, left_out = [], []
    for name, (method, settings) in zip(selection.names(list(methods_tried)), methods_tried.items(), strict=True):
        best = selection.setting_of(chosen[method][0].experiment) if method in chosen else None
        if best is None and len(settings) == 1:  # nothing to choose
            (best,) = settings
        tried = [_setting(words[key], members, selected_by, key == best) for key, members in settings.items()]
        tried.sort(key=lambda setting: _natural(setting.words))
        reason = _reason(tried, options.split)
        if reason:
            left_out.append(LeftOut(name, tried, reason))
        else:
            entries.append((name, tried))
    if not entries:
        raise InputError(f"{title}: no method can be reported; {left_out[0].name}: {left_out[0].reason}")
    methods = _compared(_methods(entries, options), options, problem.metric(options.metric))
    chosen_runs = {run for _, tried in entries for setting in tried if setting.chosen for run in setting.runs}
    peeked = [run for run in runs if run not in chosen_runs and run.metrics("test") is not None]
    baseline = _baseline(methods, options.baseline) if len(methods) > 1 else None
    count = methods[0].run_metrics[0].count
    return Section(title, options, problem, count, methods, baseline, left_out, peeked)


def _words(methods: Mapping[Experiment, Mapping[Experiment, list[Run]]], tuned: Sequence[str]) -> dict[Experiment, str]:
    """Returns the tuned values of each setting, as far as they differ anywhere."""
    settings = [setting for method_settings in methods.values() for setting in method_settings]
    plain = [dataclasses.replace(Experiment(), **{key: getattr(setting, key) for key in tuned}) for setting in settings]
    texts = selection.names(plain)
    if "tuning" not in tuned:  # which every name begins with
        texts = [name.partition(", ")[2] for name in texts]
    return dict(zip(settings, texts, strict=True))


def _natural(name: str) -> list[str | float]:
    """Returns a key that sorts texts as their numbers are: 0.0003 before 0.001."""
    parts = re.split(r"(?<![\w.])(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)", name)
    return [float(part) if odd % 2 else part for odd, part in enumerate(parts)]


def _setting(name: str, members: Sequence[Run], metric: str, chosen: bool) -> Setting:
    checks.check_seeds(members)
    runs = sorted(members, key=lambda run: run.seed)
    validated = [run.metrics("validation") for run in runs]
    return Setting(name, runs, [metrics[metric] for metrics in validated if metrics], chosen)


def _reason(tried: Sequence[Setting], split: str) -> str:
    """Returns why a method cannot be compared; empty if it can."""
    chosen = next((setting for setting in tried if setting.chosen), None)
    if chosen is None:
        return f"nothing was validated, so none of its {len(tried)} settings can be chosen"
    untested = [run for run in chosen.runs if run.metrics(split) is None]
    if untested:
        message = f"{len(untested)} of the {len(chosen.runs)} chosen runs have no {split} metrics yet"
        return f"{message}: {untested[0].evaluation(split)} computes them"
    return ""


def _methods(entries: Sequence[tuple[str, Sequence[Setting]]], options: Options) -> list[Method]:
    """Returns the methods, each by itself, from the predictions of its runs."""
    chosen = [next(setting for setting in tried if setting.chosen) for _, tried in entries]
    runs = [run for setting in chosen for run in setting.runs]
    run_metrics = [measure(run, options.split, options.metric) for run in runs]
    checks.check_examples(runs, [metrics.examples for metrics in run_metrics])
    draws = resampled(run_metrics, options.draws)
    methods, start = [], 0
    for (name, tried), setting in zip(entries, chosen, strict=True):
        place = slice(start, start + len(setting.runs))
        start = place.stop
        drawn = np.stack(draws[place])
        mean, deviation = statistics.mean_and_deviation([metrics.value for metrics in run_metrics[place]])
        low, high = statistics.interval(statistics.over_seeds(drawn))
        methods.append(Method(name, tried, setting, run_metrics[place], drawn, mean, deviation, low, high))
    return sorted(methods, key=lambda method: (method.cost("trainable_params"), method.name))


def _compared(methods: Sequence[Method], options: Options, metric: Metric) -> list[Method]:
    """Returns the methods with what each is beside the baseline and the best by a metric."""
    if len(methods) == 1:
        return [dataclasses.replace(methods[0], best=True)]
    sign = -1 if metric.better == "lower" else 1
    best = max(methods, key=lambda method: round(sign * method.mean, 12))  # equal but for rounding is equal
    baseline = _baseline(methods, options.baseline)
    against_baseline, against_best = (_against(other, methods, options.test) for other in (baseline, best))
    scale = Scale(metric, methods[0].run_metrics[0].count)
    compared = []
    for method in methods:
        beside = against_best.get(method.name)
        tied = beside is not None and (not beside.significant or scale.text(method.mean) == scale.text(best.mean))
        against = against_baseline.get(method.name)
        compared.append(dataclasses.replace(method, against=against, best=method is best, tied=tied))
    return compared


def _baseline(methods: Sequence[Method], name: str) -> Method:
    if not name:
        return methods[0]
    baseline = next((method for method in methods if method.name == name), None)
    if baseline is None:
        names = "; ".join(method.name for method in methods)
        raise InputError(f"no method {name!r} to compare with; there are: {names}")
    return baseline


def _against(other: Method, methods: Sequence[Method], test: str) -> dict[str, Comparison]:
    """Returns name -> the comparison of each other method with `other`, Holm's correction over all of them."""
    rest = [method for method in methods if method is not other]
    comparisons = [compare(method, other, test) for method in rest]
    adjusted = statistics.holm([comparison.p for comparison in comparisons])
    return {
        method.name: dataclasses.replace(comparison, adjusted=p)
        for method, comparison, p in zip(rest, comparisons, adjusted, strict=True)
    }


def compare(method: Method, other: Method, test: str) -> Comparison:
    """Compares a method with another, by the seeds that they have in common.

    Args:
        method, other: the difference is what `method` adds to the other's metric.
        test: a name in `TESTS`.

    Raises:
        InputError: the test is not of such runs.
    """
    where = {run.seed: place for place, run in enumerate(other.runs)}
    pairs = [(place, where[run.seed]) for place, run in enumerate(method.runs) if run.seed in where]
    names = f"{method.name} and {other.name}"
    if not pairs:
        raise InputError(f"{names} have no seed in common, and seeds are paired: run one of them with the other's")
    first_places, second_places = (list(places) for places in zip(*pairs, strict=True))
    values, others = method.values[first_places], other.values[second_places]
    if test == "t":
        if len(pairs) == 1:
            raise InputError(
                f"{names} have one seed in common, and a t-test needs two: take --test=bootstrap or mcnemar"
            )
        return statistics.t_test(values, others)
    comparison = statistics.bootstrap_test(
        values - others, method.resampled[first_places] - other.resampled[second_places]
    )
    if test == "bootstrap":
        return comparison
    first, second = method.run_metrics[first_places[0]], other.run_metrics[second_places[0]]
    if len(pairs) > 1 or first.right is None or second.right is None or first.metric not in ("accuracy", "exact_match"):
        raise InputError(f"{names}: McNemar's test is of the accuracy of one seed: take --test=bootstrap or t")
    return dataclasses.replace(comparison, p=statistics.mcnemar(first.right, second.right))
