"""A data set of your own: a function that returns examples by split, and the names of the classes.

--config.task.dataset=my_dataset:drawings --config.task.dataset_args.count=50
"""

import numpy as np


def drawings(*, count: int, size: int = 32, seed: int = 0) -> dict:
    """Dark discs and bright squares, `count` of each class and split."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((size, size)) - size // 2

    def draw(name: str) -> dict:
        inside = (
            np.hypot(rows, columns) < size / 4 if name == "disc" else np.maximum(abs(rows), abs(columns)) < size / 4
        )
        picture = rng.integers(0, 60, (size, size, 3)) + np.where(inside, 60 if name == "disc" else 180, 0)[..., None]
        return {"image": picture.astype(np.uint8), "label": name}

    classes = ["disc", "square"]
    splits = {split: [draw(name) for _ in range(count) for name in classes] for split in ("train", "test")}
    return {"classes": classes, "splits": splits}
