"""The words that people try first find their key: in a config, on the command line, and in Python."""

import argparse
import re

import pytest

import tljax
from tljax.cli import flags
from tljax.config import schema
from tljax.config.schema import Experiment
from tljax.config.serialization import check_key
from tljax.config.synonyms import SYNONYMS, advice
from tljax.config.tuning import TuningConfig
from tljax.errors import InputError

FIRST = {
    "optim.lr": "optim.learning_rate",
    "lr": "optim.learning_rate",
    "learning_rate": "optim.learning_rate",
    "num_epochs": "epochs",
    "max_steps": "steps",
    "batch_size": "task.batch_size",
    "model": "backbone.weights",
    "pretrained": "backbone.weights",
    "freeze": "tuning.strategy",
    "dataset": "task.dataset",
    "weight_decay": "optim.weight_decay",
    "warmup": "optim.warmup_steps",
    "num_classes": "task.classes",
    "scheduler": "optim.schedule",
    "augmentation": "task.augment",
    "precision": "compute_dtype",
    "dtype": "compute_dtype",
    "fp16": "compute_dtype",
    "output_dir": "--workdir=DIR",
    "img_size": "task.image_size",
    "image_size": "task.image_size",
    "eval_steps": "eval_every",
    "save_steps": "checkpoint.every",
    "patience": "there is no early stopping",
    "num_workers": "input.workers",
    "gradient_accumulation_steps": "optim.accumulate",
    "label_smoothing": "regularize.label_smoothing",
    "ema": "optim.average",
    "lora_r": "tuning.rank",
    "lora_alpha": "tuning.alpha",
}
OF_STRATEGIES = {"rank": 4, "alpha": 4.0, "dropout": 0.1, "targets": (".*",), "decay": 0.5}


@pytest.mark.parametrize(("word", "key"), FIRST.items())
def test_a_word_in_a_config_is_told_its_key(word, key):
    *path, last = word.split(".")
    values = {"steps": 1, **({path[0]: {last: 1}} if path else {last: 1})}
    with pytest.raises(InputError) as error:
        Experiment.from_config(values)
    assert str(error.value).startswith(f"no key config.{word}: ")
    assert key in str(error.value)
    assert "\n" not in str(error.value)


def test_every_key_that_is_named_is_there():
    for word, text in SYNONYMS.items():
        for key in re.findall(r"config\.([a-z_0-9.]*[a-z_0-9])", text):
            section, _, argument = key.partition(".")
            if section == "tuning" and argument in OF_STRATEGIES:
                strategy = text.rpartition("=")[2]
                TuningConfig.from_section({"strategy": strategy, argument: OF_STRATEGIES[argument]}, "tuning")
            else:
                check_key(schema.default(), key)
        assert word == word.lower()
        assert text.startswith(("config.", "there is no ")), word


def test_case_and_dashes_make_no_difference():
    assert advice("Batch-Size") == advice("train.batch_size") == advice("batch_size")
    assert advice("learning_rat") == ""


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--lr=1e-3", "unknown argument --lr=1e-3: it is config.optim.learning_rate; keys are given as"),
        ("--batch-size=4", "it is config.task.batch_size"),
        ("--num-epochs=3", "it is config.epochs"),
        ("--epochs=3", "unknown argument --epochs=3: it is --config.epochs=VALUE"),
        ("--task.batch_size=3", "it is --config.task.batch_size=VALUE"),
        ("--early-stopping", "there is no early stopping: "),
        ("--nothing", "unknown argument --nothing; see train --help"),
    ],
)
@pytest.mark.parametrize("parse", [flags.parse_experiment, flags.parse_overrides])
def test_a_flag_without_config_is_told_how_to_give_the_key(parse, argument, message):
    with pytest.raises(InputError) as error:
        parse(argparse.ArgumentParser("train"), [argument])
    assert message in str(error.value)


def test_a_strategys_argument_by_another_librarys_name():
    with pytest.raises(InputError, match=r"lora takes no tuning\.r: it is config\.tuning\.rank, with"):
        TuningConfig.from_section({"strategy": "lora", "r": 8}, "tuning")


def test_default_config_knows_its_keys():
    config = tljax.default_config(task__dataset="elpv", tuning__strategy="last_k", tuning__k=2, loss_args__gamma=2.0)
    assert (config.task.dataset, config.tuning.k, config.loss_args.gamma) == ("elpv", 2, 2.0)
    with pytest.raises(InputError, match=r"no key config\.lr: it is config\.optim\.learning_rate"):
        tljax.default_config(lr=1e-3)
    with pytest.raises(
        InputError, match=r"no key config\.optim\.learning_rat: did you mean config\.optim\.learning_rate"
    ):
        tljax.default_config(optim__learning_rat=1e-3)
    with pytest.raises(InputError, match=r"config\.steps: .*cannot be casted"):
        tljax.default_config(steps="many")
