"""What each entry of the API does first, as the command line does when it starts."""

import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tljax.config.references import look_in
from tljax.config.schema import Experiment
from tljax.io import compilation_cache
from tljax.io.download.fetch import cache_dir


@functools.cache
def begin() -> None:
    """Makes jax keep compiled programs, so that a notebook's second start need not compile again."""
    compilation_cache.keep(cache_dir() / "compiled")
    compilation_cache.check_programs()


def experiment_of(config: ConfigDict | Mapping[str, Any] | Experiment) -> Experiment:
    """Returns a config with every key, type and range checked.

    Modules of the user's are looked up beside the script that runs, and in the working directory, as a notebook's are.

    Args:
        config: what `default_config` gave, changed; or a mapping of such keys.

    Raises:
        InputError: a key that does not exist, or a value that it cannot have.
    """
    look_in(Path(getattr(sys.modules["__main__"], "__file__", None) or ".").parent)
    look_in(Path())
    return config if isinstance(config, Experiment) else Experiment.from_config(config)
