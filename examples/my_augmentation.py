"""An augmentation of your own: a function of a uint8 picture and a generator that returns such a picture.

--config.task.augment="('flip', 'my_augmentation:darken')"
"""

import numpy as np


def darken(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Takes up to half of the light away."""
    return (picture * rng.uniform(0.5, 1)).astype(np.uint8)
