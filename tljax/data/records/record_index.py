"""What is known of a prepared data set beside its records: an index for each split, and `task.json`."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tljax import console
from tljax.data.dataset import Base, Label, Records, Source, Task, fingerprint
from tljax.data.records.record_parts import DiskFull, Part
from tljax.errors import InputError, message_of

# How many times as long as the other a side may be: with more, resizing the shorter one for a network takes gigabytes.
_MOST_STRETCHED = 256


def finish(making: Path, folder: Path, name: str, source: Source, parts: Mapping[str, Sequence[Part]]) -> None:
    """Writes each split's index and `task.json` into `making`, which becomes `folder`, and says what was skipped.

    Args:
        making: the folder while it is made.
        folder: where it will be.
        name: of the data set.
        source: its kind, problem and classes.
        parts: of each split.

    Raises:
        InputError: nothing is left of a split.
    """
    indices = {split: pa.concat_tables([part.index for part in split_parts]) for split, split_parts in parts.items()}
    skipped = [example for split_parts in parts.values() for part in split_parts for example in part.skipped]
    notes = [note for split in parts.values() for part in split for note in part.notes]
    for split, index in indices.items():
        if not len(index):
            first = next(example["reason"] for example in skipped if example["split"] == split)
            raise InputError(f"{name}: no example of {split} can be used; the first: {first}")
        pq.write_table(index.replace_schema_metadata(), making / f"index-{split}.parquet")
    facts = {
        "kind": source.kind,
        "problem": source.problem,
        "classes": source.classes,
        "pairs": source.pairs,
        "splits": list(indices),
        "fingerprint": fingerprint(source.problem, source.classes, indices),
        "skipped": skipped,
        "notes": notes,
    }
    (making / "task.json").write_text(json.dumps(facts, indent=1))
    if skipped:
        first = ", ".join(example["id"] for example in skipped[:3]) + (" …" if len(skipped) > 3 else "")
        total = len(skipped) + sum(map(len, indices.values()))
        line = f"{name}: {len(skipped)} of {total} examples are left out: {first} ({folder}/task.json)"
        console.console.print(line)
    if notes:
        first = ", ".join(note["id"] for note in notes[:3]) + (" …" if len(notes) > 3 else "")
        line = f"{name}: of {len(notes)} animated or many-page pictures the first is taken: {first}"
        console.console.print(line)


def open_task(name: str, folder: Path, records: Callable[[str, pa.Table], Records], mend: str) -> Task:
    """Returns the task that `finish` described in `folder`.

    Args:
        name: of the data set.
        folder: that `finish` filled.
        records: gives the records of a split, by its name and index.
        mend: what a person can do where it is damaged.

    Raises:
        InputError: files are missing, damaged, or of other data.
    """
    try:
        facts = json.loads((folder / "task.json").read_text())
        # Not `read_table`, which imports pandas: .3 s.
        indices = {split: pq.ParquetFile(folder / f"index-{split}.parquet").read() for split in facts["splits"]}
        bases = {split: Base(records(split, index), index) for split, index in indices.items()}
    except (OSError, ValueError, KeyError) as error:  # pyarrow's are among them
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder}: damaged ({message_of(error)}); {mend}") from error
    for split, base in bases.items():
        if len(base.index) != len(base.records):
            rows, count = len(base.index), len(base.records)
            raise InputError(f"{folder}: damaged ({split} has {count} records, and {rows} in its index); {mend}")
    classes, skipped = tuple(facts["classes"]), tuple(facts["skipped"])
    notes = tuple(facts["notes"])
    return Task(
        name, facts["kind"], facts["problem"], classes, facts["fingerprint"], bases, facts["pairs"], skipped, notes
    )


def index_row(id: str, label: Label, content: bytes | str | tuple[str, str], size: tuple[int, int]) -> dict[str, Any]:
    """Returns a row of `Base.index`.

    Args:
        id: of the example.
        label: as in `Item`.
        content: the encoded image, the text, or the two texts.
        size: (width, height), as Pillow has it.

    Raises:
        InputError: a text is none, or no valid Unicode; a picture is a strip that cannot be resized.
    """
    if max(size) > _MOST_STRETCHED * min(size):
        sides = f"{size[0]} × {size[1]} pixels, one side more than {_MOST_STRETCHED} times the other"
        raise InputError(f"{id}: {sides}, cannot be resized; cut it, or remove it")
    if not isinstance(content, bytes):
        texts = (content,) if isinstance(content, str) else content
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{id}: there is no text; give it one, or remove it")
        try:
            encoded = [text.encode() for text in texts]
        except UnicodeEncodeError as error:
            raise InputError(f"{id}: the text is not valid UTF-8 ({error.reason}); mend or remove it") from error
        length = sum(map(len, encoded))
        content = encoded[0] if len(encoded) == 1 else json.dumps(texts).encode()
    else:
        length = len(content)
    sha256 = hashlib.sha256(content).hexdigest()
    return {"id": id, "label": label, "height": size[1], "width": size[0], "bytes": length, "sha256": sha256}


@contextmanager
def kept_if_of_use(making: Path) -> Iterator[None]:
    """Empties a half-made folder after an error that whoever mends the data will not go on from."""
    try:
        yield
    except InputError as error:
        if not isinstance(error, DiskFull):
            for path in making.iterdir():
                path.unlink()
        raise


@contextmanager
def progress(name: str, total: int) -> Iterator[Callable[[str, int], None]]:
    """Yields `done(split, examples)`, which moves a bar."""
    with console.progress(f"preparing {name}", 0, total, "examples") as report:
        counts: dict[str, int] = {}

        def done(split: str, examples: int) -> None:
            counts[split] = examples
            report(sum(counts.values()))

        yield done
