"""Every key at its default: the command line says the rest, as the commands in a report do.

tljax train --config=default --workdir=runs/a --config.task.dataset=mnist_5k …
"""

from tljax.config import default as get_config

__all__ = ["get_config"]
