"""How often a report calls two methods different that are not: the part of p-values below 0.05, as Markdown.

    python benchmarks/false_alarms.py [--trials=1000]

An example is right where the skill of the run, the ease of the example, its ease for the method, and noise are together
above 0. Skill varies over seeds, ease over examples; on average over all seeds and examples both methods are equal, and
about 80% right. Of `even` seeds, accuracies differ by little more than examples make them; of `uneven` ones by some 3
points beside that.
"""

import argparse

import numpy as np

from tljax.reports import statistics

EXAMPLES, DRAWS = 500, 1000


def right(rng: np.random.Generator, seeds: int, uneven: float) -> np.ndarray:
    """Which examples the runs of two methods have right, [2, seeds, examples]."""
    skill = 1.3 + uneven * rng.standard_normal((2, seeds, 1))
    ease, taste = rng.standard_normal(EXAMPLES), 0.5 * rng.standard_normal((2, 1, EXAMPLES))
    return skill + ease + taste + 0.8 * rng.standard_normal((2, seeds, EXAMPLES)) > 0


def alarms(seeds: int, uneven: float, trials: int) -> tuple[float, float]:
    """The part of trials in which the bootstrap, and the t-test, find a difference at 0.05."""
    rng, rates = np.random.default_rng(0), np.zeros(2)
    times = rng.multinomial(EXAMPLES, [1 / EXAMPLES] * EXAMPLES, size=DRAWS).T / EXAMPLES
    for _ in range(trials):
        ours, others = right(rng, seeds, uneven).astype(float)
        differences = ours - others
        rates[0] += statistics.bootstrap_test(differences.mean(axis=1), differences @ times).p < 0.05
        if seeds > 1:
            rates[1] += statistics.t_test(ours.mean(axis=1), others.mean(axis=1)).p < 0.05
    return tuple(rates / trials)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    print("| seeds | runs | bootstrap | t-test |\n|---|---|---|---|")
    for seeds in (1, 3, 5, 10, 20):
        for name, uneven in (("even", 0.0), ("uneven", 0.2)):
            bootstrap, student = alarms(seeds, uneven, trials)
            print(
                f"| {seeds} | {name} | {bootstrap:.1%} | {student:.1%} |"
                if seeds > 1
                else f"| 1 | {name} | {bootstrap:.1%} | |"
            )


if __name__ == "__main__":
    main()
