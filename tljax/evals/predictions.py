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
from tljax.data.records.record_parts import index_schema
from tljax.distributed import mesh, processes
from tljax.errors import InputError, message_of
from tljax.io import storage, strict_json
from tljax.metrics import metrics as metrics_metrics


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a network says of a split, in the split's order.

    Attributes:
        problem, classes: as in `data.examples.Source`.
        ids: of the examples.
        labels: as `labels_of` gives them.
        logits: float32 [n, classes]; of a regression float64, its values in the labels' own units.
    """

    problem: str
    classes: tuple[str, ...]
    ids: list[str]
    labels: np.ndarray
    logits: np.ndarray

    def metrics(self, full: bool = True) -> dict[str, Any]:
        """What `scores.summarize` says of them."""
        return metrics_metrics.summarize(self.problem, self.logits, self.labels, full=full)

    def save(self, path: epath.PathLike, facts: Mapping[str, Any]) -> None:
        """Writes a Parquet file, whole or not at all.

        Its columns are `id`; `label`, a class, for `multi_label` the list of those that it has, for `regression` its
        values; and `logits`. `facts`, with `problem` and `classes`, are JSON in the schema's metadata, under `tljax`.
        """
        labels = [np.flatnonzero(row) for row in self.labels] if self.problem == "multi_label" else list(self.labels)
        exact = pa.float64() if self.problem == "regression" else pa.float32()
        logits = pa.FixedSizeListArray.from_arrays(pa.array(self.logits.ravel(), exact), len(self.classes))
        columns = {
            "id": self.ids,
            "label": pa.array(labels, index_schema(self.problem).field("label").type),
            "logits": logits,
        }
        metadata = {**facts, "problem": self.problem, "classes": self.classes, "sha256": self._exact._digest}
        table = pa.table(columns).replace_schema_metadata({"tljax": strict_json.dumps(metadata)})
        content = io.BytesIO()
        pq.write_table(table, content)
        storage.write_whole(epath.Path(path), content.getvalue())

    @property
    def _exact(self) -> "Predictions":
        """Returns the same, with values of a regression in float64."""
        if self.problem != "regression":
            return self
        return replace(self, labels=self.labels.astype(np.float64), logits=self.logits.astype(np.float64))

    @property
    def _digest(self) -> str:
        """Of all that is stored: Parquet's own checksums leave out what lies around the values."""
        digest = hashlib.sha256(json.dumps([self.problem, self.classes, self.ids]).encode())
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
    """What a run's network says of a whole split; `train` and `evaluate` both come here.

    Args:
        label: its name, for the progress bar.
        batch_size: examples at a time; the config's by default. Rounded up to the devices, and padded.
        read: reads its examples; made here by default.
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
    found = run.inputs.unscaled(np.concatenate([np.asarray(part) for part in logits])[: len(split)])
    return Predictions(split.task.problem, split.task.classes, split.ids, split.labels, found)


def load(path: epath.PathLike) -> tuple[Predictions, dict[str, Any]]:
    """Reads what `Predictions.save` wrote, and the facts that it was given.

    Values of a regression are float64, of which older files have what float32 left.

    Raises:
        InputError: there is no such file, or it is damaged.
    """
    try:
        table = pq.ParquetFile(io.BytesIO(epath.Path(path).read_bytes())).read()  # `read_table` imports pandas
        facts = json.loads(table.schema.metadata[b"tljax"])
        problem, classes, digest = facts.pop("problem"), tuple(facts.pop("classes")), facts.pop("sha256")
        labels = labels_of(table["label"], problem, len(classes))
        logits = values_of(table["logits"].combine_chunks().flatten()).reshape(-1, len(classes))
        if problem == "regression":
            labels = labels.astype(logits.dtype)  # the hash of an older file is of float32
        kept = Predictions(problem, classes, table["id"].to_pylist(), labels, logits)
        whole = kept._digest == digest
    except Exception as error:  # whatever pyarrow and what follows it meet in a damaged file
        raise InputError(f"{path}: no predictions that can be read ({message_of(error)})") from error
    if not whole:
        raise InputError(f"{path}: damaged (its content is not what was written)")
    return kept._exact, facts
