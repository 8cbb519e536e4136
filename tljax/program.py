"""What `tljax` can do, and how it was started here."""

import sys
from pathlib import Path

VERBS = {
    "train": "fine-tune, validate, save; resume where a workdir stands",
    "evaluate": "a split's metrics from a run's checkpoint",
    "predict": "class names and probabilities for images or texts",
    "sweep": "many runs that differ in some keys; what they share is computed once",
    "report": "tables, figures and a page from runs: what was chosen, how good it is, how sure that is",
    "inspect": "what a config would train, freeze and cost; trains nothing",
    "convert": "a pretrained checkpoint to an Orbax folder",
    "models": "the pretrained encoders that have a name: parameters, inputs, licence, groups",
    "configs": "the configs that come with tljax, or the text of one, for a start",
    "completion": "a script with which bash, zsh or fish completes verbs, flags and keys",
}


def program() -> str:
    """Returns the words that start tljax as it was started here: `tljax`, or `python -m tljax`, which always works."""
    return "tljax" if Path(*sys.argv[:1]).stem == "tljax" else "python -m tljax"
