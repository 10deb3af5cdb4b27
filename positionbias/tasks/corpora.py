"""Stored text as bytes: the documents of a TFDS dataset, read through Grain; TensorFlow is not needed."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import numpy as np

from positionbias.arrays import Int
from positionbias.spec import ConfigError

SHIPPED = pathlib.Path(__file__).parent / "stored"  # TFDS folders that come with the package
END = 0  # the byte after every document; those within are dropped
MOST = 2**30  # bytes; a corpus lies on the device whole
THREADS = 8
INSTALL = "pip install -e '.[data]' in the checkout"


@functools.lru_cache(maxsize=4)
def read(dataset: str, data_dir: str | None, feature: str, split: str) -> Int[np.ndarray, "N"]:
    """The documents of a split one after another, each ended by `END`, u8[N]; read once and kept.

    Raises ConfigError where there is no such dataset, split or feature, or where it is not text or too long.
    """
    grain, tfds = _libraries()
    found, total = [], 0
    for row in grain.MapDataset.source(_source(tfds, dataset, data_dir, split)).to_iter_dataset(
        grain.ReadOptions(num_threads=THREADS)
    ):
        if feature not in row or not isinstance(row[feature], bytes | str):
            texts = sorted(name for name, value in row.items() if isinstance(value, bytes | str))
            raise ConfigError(
                f"task: {dataset} has no text {feature!r}; allowed features: {', '.join(texts) or 'none'}."
            )
        text = row[feature] if isinstance(row[feature], bytes) else row[feature].encode()
        found.append(np.frombuffer(text.replace(bytes([END]), b"") + bytes([END]), np.uint8))
        total += len(found[-1])
        if total > MOST:
            raise ConfigError(
                f"task: split {split!r} of {dataset} has more than {MOST} bytes, which is all that is kept on a device;"
                f" allowed: a part of it, as in '{split}[:10%]'."
            )
    return np.concatenate(found) if found else np.zeros(0, np.uint8)


def _source(tfds: Any, dataset: str, data_dir: str | None, split: str) -> Any:
    shipped = data_dir is None and (SHIPPED / dataset.split(":")[0]).is_dir()
    try:
        return tfds.data_source(dataset, split=split, data_dir=str(SHIPPED) if shipped else data_dir)
    except Exception as error:  # of many kinds: TFDS, its parser of splits, and the network
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"task: split {split!r} of the dataset {dataset!r} cannot be read ({lines[0][:200].rstrip('.')}); allowed:"
            " 'plays', which comes with the package, or what tfds.data_source reads from data_dir or the network."
        ) from None


def _libraries() -> tuple[Any, Any]:
    try:
        import grain
        import tensorflow_datasets
    except ImportError:
        raise ConfigError(
            f"task: stored text needs tensorflow-datasets and grain, which are not installed; allowed: {INSTALL}."
        ) from None
    tensorflow_datasets.disable_progress_bar()
    return grain, tensorflow_datasets
