"""What was done and how to read it, in sentences made from the runs: below tables, and on the page."""

from tljax.reports.formatting import counted, probability
from tljax.reports.schema import Section
from tljax.reports.statistics import LEVEL

_FEW = 5  # seeds, below which a spread over them is hardly known


def protocol(section: Section) -> list[str]:
    """Returns sentences on which runs there are, what was chosen by what, and what was tested."""
    task, split = section.runs[0].experiment.task, section.options.split
    finished = counted(len(section.runs), "finished run")
    sentences = [f"{finished} of {counted(len(section.everything), 'method')} in {counted(section.tried, 'setting')}."]
    tried = [len(method.settings) for method in section.methods]
    by = section.selected_by.replace("_", " ")
    if max(tried) == 1:
        sentences.append("Each method has one setting: nothing was chosen.")
    else:
        most = f"up to {max(tried)}" if min(tried) < max(tried) else f"{max(tried)}"
        validation = next(run.experiment.task.validation for run in section.runs if run.experiment.task.validation)
        sentences.append(
            f"Of each method's settings ({most}), the one with the best mean {by} over seeds on the validation "
            f"split ({validation}) was chosen; no other split was used for it."
        )
    chosen = sum(len(method.runs) for method in section.methods)
    examples = f"{counted(section.count, 'example')} ({getattr(task, split)})"
    sentences.append(
        f"Compared are the {counted(chosen, 'run')} of these settings, on the {split} split of {examples}."
    )
    if split == "validation" and max(tried) > 1:
        sentences.append(
            "These are the numbers by which the settings were chosen, so they are better than others would be."
        )
    early = [run for run in section.runs if run.result.get("peeked")]
    if early:
        sentences.append(f"Tested before any was chosen (sweep --peek-test): {counted(len(early), 'run')}.")
    if section.peeked:
        sentences.append(
            f"The test split was looked at for {counted(len(section.peeked), 'run')} that were not chosen."
        )
    elif len(section.runs) > chosen:
        sentences.append("The test split was looked at for no run that was not chosen.")
    return sentences


def reading(section: Section) -> list[str]:
    """Returns sentences on what the numbers of the table are, exactly."""
    options, seeds = section.options, [len(method.runs) for method in section.methods]
    several = max(seeds) > 1
    sentences = ["± is the standard deviation over seeds."] if several else []
    sources = "seeds and, independently of them, examples" if several else "examples (there is but one seed)"
    sentences.append(
        f"An interval holds 95% of the means of {options.draws:,} resamples, each of as many {sources}, drawn with "
        "replacement (the Multi-Bootstrap, arXiv:2106.16163)."
    )
    if several and min(seeds) < _FEW:
        caveat = f"So few seeds ({min(seeds)}) say little about others"
        sentences.append(f"{caveat}: where they differ much, such an interval is too narrow.")
    if section.baseline is not None:
        sentences += _comparisons(section)
    sentences.append(
        "Trainable counts parameters; GFLOP are those of a training step, from the compiled program, and beside those "
        "of full fine-tuning; time is a run's wall time with its evaluations, and its share of what runs shared."
    )
    return sentences


def _comparisons(section: Section) -> list[str]:
    options, number = section.options, len(section.methods) - 1
    test = {
        "bootstrap": "is twice the smaller part of these resamples on one side of no difference",
        "t": "is Student's paired t-test over seeds, which takes these examples as given,",
        "mcnemar": "is McNemar's exact test over examples",
    }[options.test]
    sentences = [
        f"Differences are to {section.baseline.name}, of runs with the same seed on the same examples; p {test}, "
        f"two-sided, with Holm's correction for {counted(number, 'comparison')}."
    ]
    direction = "lowest" if section.scale.less_is_better else "highest"
    sentences.append(
        f"Bold is the {direction} mean; ≈ marks what is not significantly worse: against the best, the same test's p "
        f"is {LEVEL:g} or more, or the digits shown are the same."
    )
    return sentences


def finding(section: Section) -> str:
    """Returns what came out, in a sentence or two."""
    best, scale = section.best, section.scale
    quantity = f"{section.options.split} {scale.metric.replace('_', ' ')}"
    unit = "%" if scale.percent else ""
    value = f"{scale.spread(best.mean, best.deviation)}{unit}"
    if section.baseline is None:
        return f"{best.name} has {quantity} {value} (95% interval {scale.interval(best.low, best.high)})."
    text = f"{best.name} is best, with {quantity} {value} (95% interval {scale.interval(best.low, best.high)})"
    if best.against:
        p = probability(best.against.adjusted)
        against = scale.text(best.against.difference, sign=True)
        text += f": {against} beside {section.baseline.name} (p {p if p.startswith('<') else f'= {p}'})"
    tied = [method.name for method in section.methods if method.tied]
    text += f". Not significantly worse: {'; '.join(tied)}." if tied else ". All others are significantly worse."
    return text
