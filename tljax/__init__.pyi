# What `import tljax` offers: read by type checkers, and by `__init__.py`, which imports each name on its first use.
from .api.datasets import from_arrays, from_examples
from .api.encoder import Classified, Encoder, load_backbone
from .api.many import list_models, probe, report, sweep
from .api.parts import batches, combine, default_config, load_config, multipliers, optimizer, partition
from .api.runs import LoadedRun, Result, evaluate, load_run, train
from .distributed.preemption import Stopped
from .errors import InputError
from .models.base import Backbone
from .problems.base import Problem
from .problems.metric import Metric
from .tuning.strategies import Layout

__version__: str
