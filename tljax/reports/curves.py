"""What is drawn over steps, and over numbers of training examples."""

import dataclasses

import numpy as np

from tljax.config.schema import Experiment
from tljax.reports.schema import Method, Section
from tljax.sweeps import selection

_POINTS = 150  # of a curve, above which no eye sees a difference


def over_steps(method: Method, split: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps at which every run of a method logged a metric [steps], and its values [seeds, steps].

    Of long logs, every so many steps are taken.
    """
    logged = []
    for run in method.runs:
        lines = [line for line in run.folder.metrics if line["split"] == split and metric in line]
        logged.append({line["step"]: line[metric] for line in lines})
    steps = sorted(set.intersection(*(set(one) for one in logged)))
    steps = steps[:: -(-len(steps) // _POINTS)] if steps else []
    return np.array(steps, int), np.array([[one[step] for step in steps] for one in logged], float)


def by_training_examples(section: Section) -> dict[str, list[Method]]:
    """Name -> methods that differ in their training examples alone, by how many they have; of at least two numbers."""
    families: dict[Experiment, list[Method]] = {}
    for method in section.methods:
        families.setdefault(_without_examples(method, section), []).append(method)
    found = {}
    for name, members in zip(selection.names(list(families)), families.values(), strict=True):
        if len({method.runs[0].resolved.train_examples for method in members}) > 1:
            found[name] = sorted(members, key=lambda method: method.runs[0].resolved.train_examples)
    return found


def _without_examples(method: Method, section: Section) -> Experiment:
    experiment = selection.method_of(method.runs[0].experiment, section.options.tuned)
    task = dataclasses.replace(experiment.task, train="train", shots=0, fraction=1.0, subset_seed=0)
    return dataclasses.replace(experiment, task=task)
