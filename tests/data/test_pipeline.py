"""The training stream is a pure function of (seed, step), whoever makes it and however."""

import hashlib
import io
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import jax
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as draw
from PIL import Image

from tljax.config.schema import TaskConfig
from tljax.data.dataset import Base, Split, Task
from tljax.data.loader import TrainInput, epoch_order, evaluation_batches
from tljax.data.preprocessing import Preprocessing
from tljax.data.readers import ImageReader, Reader, TextReader
from tljax.data.transforms.tokenize import Tokenizer, tokenized

PREPROCESSING = Preprocessing(size=8, interpolation="bilinear")
RECIPES = {
    "evaluation": TaskConfig(),
    "inception": TaskConfig(crop="inception", augment=("flip", "rand_augment")),
    "random": TaskConfig(crop="random", resize=10, augment=("flip", "color_jitter", "random_erasing")),
    "fast": TaskConfig(decode="fast", crop="inception", resize=12),
}


class Records(list):
    def __getitems__(self, rows):
        return [self[row] for row in rows]


def _split(kind: str, contents: list, classes: int = 3) -> Split:
    columns = {
        "id": [f"{i:03d}" for i in range(len(contents))],
        "label": [i % classes for i in range(len(contents))],
        "height": [7 + i % 5 for i in range(len(contents))],
        "width": [9 + i % 4 for i in range(len(contents))],
        "sha256": [hashlib.sha256(str(one).encode()).hexdigest() for one in contents],
    }
    base = Base(Records({kind: one} for one in contents), pa.table(columns))
    names = tuple(f"c{i}" for i in range(classes))
    fingerprint = hashlib.sha256(str(columns).encode()).hexdigest()
    task = Task("made up", kind, "single_label", names, fingerprint, {"train": base})
    return Split(task, "train", (("train", np.arange(len(contents))),))


def pictures(count: int) -> Split:
    """Pictures of several sizes, the first pixel of each its number."""
    rng, contents = np.random.default_rng(0), []
    for i in range(count):
        picture = rng.integers(0, 256, (7 + i % 5, 9 + i % 4, 3)).astype(np.uint8)
        picture[:] = np.where(i % 2, picture, i)
        data = io.BytesIO()
        Image.fromarray(picture).save(data, "JPEG" if i % 2 else "PNG")
        contents.append(data.getvalue())
    return _split("image", contents)


def texts(count: int) -> Split:
    rng, words = np.random.default_rng(0), ["the", "of", "and", "film", "good", "bad"]
    return _split("text", [" ".join(rng.choice(words, rng.integers(1, 30))) for _ in range(count)])


def _tokenizer(folder) -> Tokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "of", "and", "film", "good", "bad"]
    (folder / "vocab.txt").write_text("\n".join(words))
    return Tokenizer(folder / "vocab.txt")


@pytest.fixture(scope="module", autouse=True)
def _cache_of_its_own(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def _stream(read: Reader, split: Split, **values) -> TrainInput:
    values = {"batch_size": 4, "seed": 0} | values
    return TrainInput(read, split.labels, np.ones(len(split), np.float32), **values)


def _same(found, wanted) -> None:
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def _joined(parts: list) -> dict:
    return jax.tree.map(lambda *shares: np.concatenate(shares), *parts)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return _tokenizer(tmp_path_factory.mktemp("tokenizer"))


def _reader(kind: str, split: Split, tokenizer: Tokenizer, cached: bool) -> Reader:
    if kind == "text":
        return TextReader(tokenized(split, tokenizer, 24), tokenizer, 8, 24)
    read = ImageReader(split, PREPROCESSING, RECIPES[kind], training=True)
    return read.keep(1e9, 2) if cached else read


SPLITS = {count: (pictures(count), texts(count)) for count in (5, 12, 17)}


@settings(max_examples=60, deadline=None)
@given(
    kind=draw.sampled_from([*RECIPES, "text"]),
    count=draw.sampled_from(list(SPLITS)),
    batch_size=draw.sampled_from([4, 8, 20]),
    seed=draw.integers(0, 2**32),
    balanced=draw.booleans(),
    processes=draw.sampled_from([1, 2, 4]),
    workers=draw.integers(0, 4),
    cached=draw.booleans(),
    start=draw.integers(0, 9),
)
def test_a_batch_has_the_same_bytes_whoever_makes_it(
    tokenizer, kind, count, batch_size, seed, balanced, processes, workers, cached, start
):
    split = SPLITS[count][kind == "text"]
    classes = split.labels if balanced else None
    values = {"batch_size": batch_size, "seed": seed, "balanced": classes}
    plain = _stream(_reader(kind, split, tokenizer, False), split, **values, workers=0)
    shares = [
        _stream(_reader(kind, split, tokenizer, cached), split, **values, workers=workers, part=(i, processes))
        for i in range(processes)
    ]
    for step, *parts in zip(
        range(start, start + 3), *(share.batches(start, start + 3) for share in shares), strict=True
    ):
        _same(_joined(parts), plain.batch(step))


def _share(part: tuple[int, int]) -> list[str]:
    """What another process makes: hashes of its shares of three batches."""
    split = pictures(12)
    stream = _stream(ImageReader(split, PREPROCESSING, RECIPES["inception"], True), split, part=part)
    return [hashlib.sha256(batch["input"].tobytes()).hexdigest() for batch in stream.batches(2, 5)]


def test_processes_of_their_own_make_the_shares_of_one():
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(_share, [(0, 2), (1, 2)]))
    assert found == [_share((0, 2)), _share((1, 2))]
    split = pictures(12)
    whole = _stream(ImageReader(split, PREPROCESSING, RECIPES["inception"], True), split)
    assert [hashlib.sha256(whole.batch(step)["input"][:2].tobytes()).hexdigest() for step in (2, 3, 4)] == found[0]


@settings(max_examples=50, deadline=None)
@given(count=draw.integers(1, 40), batch_size=draw.integers(1, 50), seed=draw.integers(0, 2**63))
def test_an_epoch_has_every_example_once(count, batch_size, seed):
    stream = TrainInput(lambda *_, **__: None, np.zeros(count, np.int32), np.ones(count), batch_size, seed)
    drawn = [pair for step in range(-(-3 * count // batch_size)) for pair in stream.indices(step)][: 3 * count]
    epochs = [[index for _, index in drawn[i * count : (i + 1) * count]] for i in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(count))] * 3
    assert [epoch for epoch, _ in drawn] == sorted(epoch for epoch, _ in drawn)
    if count > 8:  # of fewer, two orders may be alike by chance
        assert epochs[0] != epochs[1] != epochs[2]


@settings(max_examples=50, deadline=None)
@given(sizes=draw.lists(draw.integers(1, 9), min_size=2, max_size=5), seed=draw.integers(0, 99))
def test_balanced_sampling_draws_classes_and_their_examples_alike(sizes, seed):
    classes = np.repeat(np.arange(len(sizes)) * 2, sizes)  # every other class has no examples at all
    stream = TrainInput(lambda *_, **__: None, classes, np.ones(len(classes)), len(sizes), seed, classes)
    rounds = [[index for _, index in stream.indices(step)] for step in range(2 * max(sizes))]
    assert all(sorted(classes[one]) == sorted(set(classes)) for one in rounds)
    for number, size in zip(sorted(set(classes)), sizes, strict=True):
        mine = [index for one in rounds for index in one if classes[index] == number]
        for start in range(0, len(mine) - size + 1, size):
            assert sorted(mine[start : start + size]) == np.flatnonzero(classes == number).tolist()
    assert len({pair for step in range(2 * max(sizes)) for pair in stream.indices(step)}) == sum(map(len, rounds))


def test_order_is_pinned():
    """It may never change: the numbers in configs depend on it."""
    assert epoch_order(0, 0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert epoch_order(7, 3, 10).tolist() == [2, 5, 9, 7, 3, 0, 6, 8, 4, 1]


def test_augmentation_follows_the_example_not_its_place_in_the_batch():
    split = pictures(10)
    read = ImageReader(split, PREPROCESSING, RECIPES["inception"], True)
    whole = _stream(read, split, batch_size=10).batch(0)
    halves = [_stream(read, split, batch_size=5).batch(step) for step in (0, 1)]
    _same(_joined(halves), whole)


def test_another_seed_is_another_order_and_other_crops():
    split = pictures(12)
    read = ImageReader(split, PREPROCESSING, RECIPES["inception"], True)
    a, b = (_stream(read, split, batch_size=12, seed=seed).batch(0) for seed in (0, 1))
    assert a["label"].tolist() != b["label"].tolist()
    _, twice = (_stream(read, split, batch_size=12).batch(step) for step in (0, 1))
    assert {row.tobytes() for row in a["input"]} != {row.tobytes() for row in twice["input"]}


def test_a_batch_larger_than_the_data_goes_round():
    split = pictures(3)
    read = ImageReader(split, PREPROCESSING, RECIPES["evaluation"], True)
    assert sorted(_stream(read, split, batch_size=7).batch(0)["label"])[:6] == [0, 0, 1, 1, 2, 2]


def test_what_is_decoded_once_is_not_decoded_again(monkeypatch):
    split = pictures(11)
    first = ImageReader(split, PREPROCESSING, RECIPES["random"], True).keep(1e9, 2)
    assert first._bytes == first.decoded.shapes.prod(axis=1).sum()
    monkeypatch.setattr("tljax.data.transforms.image.source_view", None)
    again = ImageReader(split, PREPROCESSING, RECIPES["random"], True).keep(0, 2)
    _same(list(again.decoded), list(first.decoded))


def test_images_are_not_kept_beyond_the_budget(tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path))  # whose other contents count too
    read = ImageReader(pictures(12), PREPROCESSING, TaskConfig(crop="inception", resize=9), True)
    assert read.keep(read._bytes - 1, 2).decoded is None
    assert read.keep(read._bytes, 2).decoded is not None


@pytest.mark.parametrize(("batch_size", "processes"), [(1, 1), (3, 1), (3, 3), (4, 2), (10, 1), (12, 3), (64, 4)])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_counts_every_example_once(tokenizer, batch_size, processes, workers):
    for split in (pictures(10), texts(10)):
        if split.task.kind == "text":
            read = _reader("text", split, tokenizer, False)
        else:
            read = ImageReader(split, PREPROCESSING, RECIPES["inception"], training=False)
        whole = [read([place]) for place in range(len(split))]
        parts = [evaluation_batches(split, read, batch_size, workers, (i, processes)) for i in range(processes)]
        place = 0
        for shares in zip(*parts, strict=True):
            batch = jax.tree.map(lambda *share: np.concatenate(share), *(share["input"] for share in shares))
            assert {len(leaf) for leaf in jax.tree.leaves(batch)} == {batch_size}
            for row in range(min(batch_size, len(split) - place)):
                for leaf, wanted in zip(jax.tree.leaves(batch), jax.tree.leaves(whole[place]), strict=True):
                    # A text is padded to the longest of its whole batch, so that all shares are of one length.
                    found = leaf[row][: len(wanted[0])]
                    np.testing.assert_array_equal(found, wanted[0])
                place += 1
        assert place == len(split)


def test_texts_are_padded_to_multiples_of_the_whole_batch(tokenizer):
    split = texts(12)
    tokens = tokenized(split, tokenizer, 24)
    assert tokens.facts["truncated"] == sum(len(one["text"].split()) + 2 > 24 for one in split)
    assert tokens.facts["lost"] == sum(max(len(one["text"].split()) + 2 - 24, 0) for one in split)
    stream = _stream(TextReader(tokens, tokenizer, 8, 24), split, part=(1, 2))
    for step in range(6):
        batch = stream.batch(step)["input"]
        longest = max(min(len(split[index]["text"].split()) + 2, 24) for _, index in stream.indices(step))
        assert batch["input_ids"].shape == (2, -(-longest // 8) * 8)
        assert (batch["attention_mask"] == (batch["input_ids"] != 0)).all()
