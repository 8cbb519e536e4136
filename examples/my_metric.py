"""A metric of your own: a function of the logits and labels of a whole split that returns a number, or several by name.

--config.metrics="('my_metric:margin',)" --config.checkpoint.best=margin
"""

import numpy as np


def margin(outputs, labels):
    """How far the label's logit is above the highest of the others."""
    own = np.take_along_axis(outputs, labels[:, None], axis=-1)[:, 0]
    others = np.where(np.arange(outputs.shape[-1]) == labels[:, None], -np.inf, outputs).max(axis=-1)
    return {"margin": np.mean(own - others), "least_margin": np.min(own - others)}
