"""What a network says of each example of a split: computed once, kept as Parquet, and counted from there."""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from tljax import console
from tljax.core.run import Run
from tljax.core.state import TrainState
from tljax.data.dataset import Split, labels_of, values_of
from tljax.data.loader import evaluation_batches, length_of
from tljax.data.readers import Reader
from tljax.distributed import mesh, processes
from tljax.errors import InputError, message_of
from tljax.io import storage, strict_json
from tljax.problems.base import Problem
from tljax.problems.registry import problem_of


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a network says of a split, in the split's order.

    Attributes:
        problem: what kind of labels they have.
        classes: names, in label order.
        ids: of the examples.
        labels: as `labels_of` gives them.
        logits: outputs [n, outputs] in `problem.output_dtype`; of a regression its values in the labels' own units.
    """

    problem: Problem
    classes: tuple[str, ...]
    ids: list[str]
    labels: np.ndarray
    logits: np.ndarray

    def metrics(self, full: bool = True) -> dict[str, Any]:
        """Returns what `Problem.summarize` says of them."""
        return self.problem.summarize(self.logits, self.labels, full=full)

    def save(self, path: epath.PathLike, facts: Mapping[str, Any]) -> None:
        """Writes a Parquet file, whole or not at all.

        Its columns are `id`; `label`, as an index has it; and `logits`. `facts`, with the problem's name and `classes`,
        are JSON in the schema's metadata, under `tljax`.
        """
        values = pa.array(self.logits.ravel(), pa.from_numpy_dtype(self.problem.output_dtype))
        columns = {
            "id": self.ids,
            "label": pa.array(self.problem.decode(self.labels), self.problem.label_type),
            "logits": pa.FixedSizeListArray.from_arrays(values, self.logits.shape[-1]),
        }
        metadata = {**facts, "problem": self.problem.name, "classes": self.classes, "sha256": self._exact._digest}
        table = pa.table(columns).replace_schema_metadata({"tljax": strict_json.dumps(metadata)})
        content = io.BytesIO()
        pq.write_table(table, content)
        storage.write_whole(epath.Path(path), content.getvalue())

    @property
    def _exact(self) -> "Predictions":
        """Returns the same, with values of a regression in float64."""
        dtype = np.dtype(self.problem.output_dtype)
        if dtype != np.float64:
            return self
        return replace(self, labels=_floats_as(dtype, self.labels), logits=self.logits.astype(dtype))

    @property
    def _digest(self) -> str:
        """The SHA-256 of all that is stored: Parquet's own checksums leave out what lies around the values."""
        digest = hashlib.sha256(json.dumps([self.problem.name, self.classes, self.ids]).encode())
        for array in (self.labels, self.logits):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def predictions_of(
    run: Run,
    state: TrainState,
    split: Split,
    label: str,
    batch_size: int = 0,
    read: Reader | None = None,
    start: int = 0,
) -> Predictions:
    """Returns what a run's network says of a whole split; `train` and `evaluate` both come here.

    Args:
        run: whose network.
        state: of the checkpoint.
        split: the examples.
        label: its name, for the progress bar.
        batch_size: examples at a time; the config's by default. Rounded up to the devices, and padded.
        read: reads its examples; by default as the run does.
        start: how many of the backbone's groups they have behind them then.
    """
    size = min(batch_size or run.experiment.task.eval_batch_size, len(split))
    size = -(-size // run.mesh.size) * run.mesh.size
    read = read or run.inputs.reader(split)
    params, batch_stats = run.evaluation_variables(state)
    logits = []
    batches = evaluation_batches(split, read, size, run.experiment.input.workers, processes.process_info())
    with console.progress(label, 0, -(-len(split) // size), "batches") as report:
        for i, batch in enumerate(batches):
            step = run.programs.eval_step(size, length_of(batch), start)
            logits.append(step(params, batch_stats, mesh.put_batch(batch["input"], run.mesh)))
            if i > 1:  # two batches in flight keep the device busy; more would only fill its memory
                logits[i - 2] = np.asarray(logits[i - 2])
            report(i + 1)
    outputs = run.inputs.unscaled(np.concatenate([np.asarray(part) for part in logits])[: len(split)])
    return Predictions(run.problem, split.task.classes, split.ids, split.labels, outputs)


def load(path: epath.PathLike, problem: Problem | None = None) -> tuple[Predictions, dict[str, Any]]:
    """Returns what `Predictions.save` wrote, and the facts that it was called with.

    Values of a regression are float64, of which older files have what float32 left.

    Args:
        path: of the Parquet file.
        problem: with the loss and metrics of a config; by default the one that the file names.

    Raises:
        InputError: there is no such file, it is damaged.
    """
    try:
        table = pq.ParquetFile(io.BytesIO(epath.Path(path).read_bytes())).read()  # `read_table` imports pandas
        facts = json.loads(table.schema.metadata[b"tljax"])
        name, classes, digest = facts.pop("problem"), tuple(facts.pop("classes")), facts.pop("sha256")
        problem = problem_of(name) if problem is None or problem.name != name else problem
        labels = labels_of(table["label"], problem, len(classes))
        width = table.schema.field("logits").type.list_size
        logits = values_of(table["logits"].combine_chunks().flatten()).reshape(-1, width)
        labels = _floats_as(logits.dtype, labels)  # the hash of an older file is of float32
        predictions = Predictions(problem, classes, table["id"].to_pylist(), labels, logits)
        is_intact = predictions._digest == digest
    except Exception as error:  # whatever pyarrow and what follows it meet in a damaged file
        raise InputError(f"{path}: no predictions that can be read ({message_of(error)})") from error
    if not is_intact:
        raise InputError(f"{path}: damaged (its content is not what was written)")
    return predictions._exact, facts


def _floats_as(dtype: np.dtype, labels: np.ndarray) -> np.ndarray:
    return labels.astype(dtype) if np.issubdtype(labels.dtype, np.floating) else labels
