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
from tljax.reports.run_metrics import judge, resampled
from tljax.reports.runs import Run
from tljax.reports.schema import LeftOut, Method, Options, Section, Setting
from tljax.reports.statistics import Comparison
from tljax.sweeps import selection


def section_of(title: str, runs: Sequence[Run], options: Options) -> Section:
    """Compares the methods among runs of a data set.

    Raises:
        InputError: two runs cannot be compared, nothing is tested, or there is no such baseline, metric or section.
    """
    checks.check(runs, options.split)
    found = selection.methods(runs, options.tuned)
    picked, words = selection.chosen(runs, options.tuned), _words(found, options.tuned)
    problem = problem_for(runs[0].experiment)
    selected_by = problem.headline.name
    options = dataclasses.replace(options, metric=options.metric or selected_by)
    entries, left_out = [], []
    for name, (method, settings) in zip(selection.names(list(found)), found.items(), strict=True):
        best = selection.setting_of(picked[method][0].experiment) if method in picked else None
        if best is None and len(settings) == 1:  # nothing to choose
            (best,) = settings
        tried = [_setting(words[one], members, selected_by, one == best) for one, members in settings.items()]
        tried.sort(key=lambda setting: _natural(setting.words))
        reason = _reason(tried, options.split)
        if reason:
            left_out.append(LeftOut(name, tried, reason))
        else:
            entries.append((name, tried))
    if not entries:
        raise InputError(f"{title}: no method can be reported; {left_out[0].name}: {left_out[0].reason}")
    methods = _compared(_methods(entries, options), options, problem.metric(options.metric))
    chosen = {run for _, tried in entries for setting in tried if setting.chosen for run in setting.runs}
    peeked = [run for run in runs if run not in chosen and run.metrics("test") is not None]
    baseline = _named(methods, options.baseline) if len(methods) > 1 else None
    count = methods[0].judged[0].count
    return Section(title, options, problem, count, methods, baseline, left_out, peeked)


def _words(found: Mapping[Experiment, Mapping[Experiment, list[Run]]], tuned: Sequence[str]) -> dict[Experiment, str]:
    """The tuned values of each setting, as far as they differ anywhere."""
    settings = [setting for of in found.values() for setting in of]
    plain = [dataclasses.replace(Experiment(), **{key: getattr(one, key) for key in tuned}) for one in settings]
    named = selection.names(plain)
    if "tuning" not in tuned:  # which every name begins with
        named = [name.partition(", ")[2] for name in named]
    return dict(zip(settings, named, strict=True))


def _natural(words: str) -> list[str | float]:
    """By which texts are sorted as their numbers are: 0.0003 before 0.001."""
    parts = re.split(r"(?<![\w.])(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)", words)
    return [float(part) if odd % 2 else part for odd, part in enumerate(parts)]


def _setting(words: str, members: Sequence[Run], metric: str, chosen: bool) -> Setting:
    checks.check_seeds(members)
    runs = sorted(members, key=lambda run: run.seed)
    validated = [run.metrics("validation") for run in runs]
    return Setting(words, runs, [one[metric] for one in validated if one], chosen)


def _reason(tried: Sequence[Setting], split: str) -> str:
    """Why a method cannot be compared; empty if it can."""
    chosen = next((setting for setting in tried if setting.chosen), None)
    if chosen is None:
        return f"nothing was validated, so none of its {len(tried)} settings can be chosen"
    untested = [run for run in chosen.runs if run.metrics(split) is None]
    if untested:
        told = f"{len(untested)} of the {len(chosen.runs)} chosen runs have no {split} metrics yet"
        return f"{told}: {untested[0].evaluation(split)} computes them"
    return ""


def _methods(entries: Sequence[tuple[str, Sequence[Setting]]], options: Options) -> list[Method]:
    """Each by itself, from the predictions of its runs."""
    chosen = [next(setting for setting in tried if setting.chosen) for _, tried in entries]
    runs = [run for setting in chosen for run in setting.runs]
    judged = [judge(run, options.split, options.metric) for run in runs]
    checks.check_examples(runs, [one.examples for one in judged])
    draws = resampled(judged, options.draws)
    methods, start = [], 0
    for (name, tried), setting in zip(entries, chosen, strict=True):
        mine = slice(start, start + len(setting.runs))
        start = mine.stop
        drawn = np.stack(draws[mine])
        mean, deviation = statistics.mean_and_deviation([one.value for one in judged[mine]])
        low, high = statistics.interval(statistics.over_seeds(drawn))
        methods.append(Method(name, tried, setting, judged[mine], drawn, mean, deviation, low, high))
    return sorted(methods, key=lambda method: (method.cost("trainable_params"), method.name))


def _compared(methods: Sequence[Method], options: Options, metric: Metric) -> list[Method]:
    """The same, with what each is beside the baseline and the best."""
    if len(methods) == 1:
        return [dataclasses.replace(methods[0], best=True)]
    sign = -1 if metric.better == "lower" else 1
    best = max(methods, key=lambda method: round(sign * method.mean, 12))  # equal but for rounding is equal
    baseline = _named(methods, options.baseline)
    against_baseline, against_best = (_against(other, methods, options.test) for other in (baseline, best))
    scale = Scale(metric, methods[0].judged[0].count)
    found = []
    for method in methods:
        beside = against_best.get(method.name)
        tied = beside is not None and (not beside.significant or scale.text(method.mean) == scale.text(best.mean))
        against = against_baseline.get(method.name)
        found.append(dataclasses.replace(method, against=against, best=method is best, tied=tied))
    return found


def _named(methods: Sequence[Method], name: str) -> Method:
    if not name:
        return methods[0]
    found = next((method for method in methods if method.name == name), None)
    if found is None:
        raise InputError(f"no method {name!r} to compare with; there are: {'; '.join(one.name for one in methods)}")
    return found


def _against(other: Method, methods: Sequence[Method], test: str) -> dict[str, Comparison]:
    """Name -> the comparison of each other method with one, Holm's correction over all of them."""
    rest = [method for method in methods if method is not other]
    found = [compare(method, other, test) for method in rest]
    adjusted = statistics.holm([one.p for one in found])
    return {
        method.name: dataclasses.replace(one, adjusted=p) for method, one, p in zip(rest, found, adjusted, strict=True)
    }


def compare(mine: Method, other: Method, test: str) -> Comparison:
    """A method with another, by the seeds that they have in common.

    Raises:
        InputError: the test is not of such runs.
    """
    where = {run.seed: place for place, run in enumerate(other.runs)}
    pairs = [(place, where[run.seed]) for place, run in enumerate(mine.runs) if run.seed in where]
    both = f"{mine.name} and {other.name}"
    if not pairs:
        raise InputError(f"{both} have no seed in common, and seeds are paired: run one of them with the other's")
    here, there = (list(places) for places in zip(*pairs, strict=True))
    values, others = mine.values[here], other.values[there]
    if test == "t":
        if len(pairs) == 1:
            raise InputError(
                f"{both} have one seed in common, and a t-test needs two: take --test=bootstrap or mcnemar"
            )
        return statistics.t_test(values, others)
    found = statistics.bootstrap_test(values - others, mine.resampled[here] - other.resampled[there])
    if test == "bootstrap":
        return found
    one, two = mine.judged[here[0]], other.judged[there[0]]
    if len(pairs) > 1 or one.right is None or two.right is None or one.metric not in ("accuracy", "exact_match"):
        raise InputError(f"{both}: McNemar's test is of the accuracy of one seed: take --test=bootstrap or t")
    return dataclasses.replace(found, p=statistics.mcnemar(one.right, two.right))
