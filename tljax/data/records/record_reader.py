"""The stored inputs of a split, as TFDS lays them out in array_record, without TensorFlow."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tljax.errors import InputError, message_of


class RecordReader:
    """Records of one split of a TFDS builder: only some features are parsed, and no image is decoded.

    Args:
        builder: a `tfds.core.DatasetBuilder` whose files are array_record.
        kept: feature -> its name here.
        mend: what a person can do when a file is missing or damaged.
        rows: which records there are, in order; None for all.
        seal: of the folder, where it is made again if that is gone.

    Raises:
        InputError: a shard is missing.
    """

    def __init__(
        self,
        builder: Any,
        split: str,
        kept: Mapping[str, str],
        mend: str,
        rows: np.ndarray | None = None,
        seal: Path | None = None,
    ):
        import tensorflow_datasets as tfds

        self.split, self.kept, self.mend, self.rows, self._seal = split, kept, mend, rows, seal
        # First of all: where there are files of several formats, this chooses the one that can be indexed.
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        self._source = builder.as_data_source(split=split, deserialize_method=raw)
        info = builder.info
        for path in info.splits[split].filepaths:
            if not Path(path).is_file():
                raise InputError(f"{path}: no such file, though the data set is said to have it; {mend}")
        # `tfds.decode.PartialDecoding` does the same and asks for TensorFlow.
        self._features = tfds.features.FeaturesDict({name: info.features[name] for name in kept})
        images = [name for name in kept if isinstance(info.features[name], tfds.features.Image)]
        self._texts = [name for name in kept if isinstance(info.features[name], tfds.features.Text)]
        self._decoders = dict.fromkeys(images, tfds.decode.SkipDecoding())
        self.total: int = info.splits[split].num_examples

    def __len__(self) -> int:
        return self.total if self.rows is None else len(self.rows)

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Returns `{name: value}` of each row: bytes of an image, a str of a text, else as NumPy has it.

        Raises:
            InputError: a shard cannot be read.
        """
        if self.rows is not None:
            rows = self.rows[np.asarray(rows, np.int64)].tolist()
        try:
            return [self._parse(record) for record in self._source.__getitems__(list(rows))]
        except Exception as error:  # array_record raises RuntimeError, a parser of damaged records whatever it meets
            if self._seal and not isinstance(error, OSError):
                self._seal.unlink(missing_ok=True)
            place = f"record {rows[0]}" if len(rows) == 1 else f"records {rows[0]} to {rows[-1]}"
            raise InputError(f"{self.split}, {place}: damaged ({message_of(error)}); {self.mend}") from error

    def _parse(self, record: bytes) -> dict[str, Any]:
        if not record:  # what array_record gives of a file that was cut at one of its blocks of 64 KB
            raise ValueError("an empty record")
        parsed = self._features.deserialize_example_np(record, decoders=self._decoders)
        return {
            name: parsed[feature].decode() if feature in self._texts else parsed[feature]
            for feature, name in self.kept.items()
        }
