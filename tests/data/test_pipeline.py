import io

import numpy as np
import pytest
from PIL import Image

from tljax.config import Preprocessing
from tljax.data.pipeline import TrainInput, epoch_order, evaluation_batches


class Examples(list):
    """Pictures of one grey level each, which is also their label."""

    def __init__(self, count: int):
        super().__init__()
        for i in range(count):
            data = io.BytesIO()
            Image.fromarray(np.full((6, 8, 3), i, np.uint8)).save(data, "PNG")
            self.append({"image": data.getvalue(), "label": i, "id": str(i).encode()})

    def __getitems__(self, indices):
        return [self[i] for i in indices]


PREPROCESSING = Preprocessing(size=4)


def _input(count=10, batch_size=4, seed=0, augment=()) -> TrainInput:
    return TrainInput(Examples(count), PREPROCESSING, augment, batch_size, seed)


def test_an_epoch_has_every_example_once_and_no_two_are_alike():
    stream = _input(count=10, batch_size=4)
    labels = np.concatenate([stream.batch(step)["label"] for step in range(10)]).reshape(4, 10)
    assert [sorted(epoch) for epoch in labels.tolist()] == [list(range(10))] * 4
    assert len({tuple(epoch) for epoch in labels.tolist()}) == 4


def test_order_is_pinned():
    """It may never change: the numbers in configs depend on it."""
    assert epoch_order(0, 0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert epoch_order(7, 3, 10).tolist() == [2, 5, 9, 7, 3, 0, 6, 8, 4, 1]


def test_a_resumed_stream_goes_on_with_the_same_bytes():
    stream = _input(augment=("flip", "inception_crop"))
    whole = list(stream.batches(0, 9))
    for start in (0, 1, 5, 8):
        for found, wanted in zip(stream.batches(start, 9), whole[start:], strict=True):
            for key in wanted:
                np.testing.assert_array_equal(found[key], wanted[key])


def test_augmentation_follows_the_example_not_its_place_in_the_batch():
    a, b = _input(batch_size=10, augment=("inception_crop",)), _input(batch_size=5, augment=("inception_crop",))
    whole, halves = a.batch(0), [b.batch(0), b.batch(1)]
    np.testing.assert_array_equal(whole["image"], np.concatenate([half["image"] for half in halves]))


def test_another_seed_is_another_order():
    assert _input(seed=0).batch(0)["label"].tolist() != _input(seed=1).batch(0)["label"].tolist()


def test_a_batch_larger_than_the_data_goes_round():
    assert sorted(_input(count=3, batch_size=7).batch(0)["label"])[:6] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_evaluation_counts_every_example_once(batch_size):
    batches = list(evaluation_batches(Examples(10), PREPROCESSING, batch_size))
    assert all(len(batch["label"]) == batch_size for batch in batches)
    labels, masks = (np.concatenate([batch[key] for batch in batches]) for key in ("label", "mask"))
    assert labels[masks > 0].tolist() == list(range(10))
    images = np.concatenate([batch["image"] for batch in batches])[masks > 0]
    assert images[:, 0, 0, 0].tolist() == list(range(10))
