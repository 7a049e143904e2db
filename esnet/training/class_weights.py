"""Class weights against class imbalance, from cached label counts."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from esnet.data.labelled import LabelledFile, LabelledSplit, read_labels
from esnet.errors import DatasetError
from runtime.files import atomic_path


def class_weights(counts: np.ndarray, offset: float | None) -> np.ndarray:
    """Compute the weights 1 / ln(c + p), where p is a class's fraction of the labelled pixels.

    Args:
        counts: Labelled pixels per class, (K,).
        offset: c; smaller values give rare classes more weight. ``None`` gives all classes weight 1.

    Returns:
        float32 (K,).

    Source: Paszke et al., "ENet", arXiv 1606.02147, section 5.2.
    """
    if offset is None:
        return np.ones(len(counts), np.float32)
    return np.asarray(1 / np.log(offset + counts / counts.sum()), np.float32)


def label_counts(split: LabelledSplit, cache_dir: Path) -> np.ndarray:
    """Count the labelled pixels of every class.

    Args:
        split: The split; its labels are read unless the same files were counted before.
        cache_dir: Folder of the cached counts.

    Returns:
        int64 (K,).

    Raises:
        DatasetError: A label file cannot be read, or no pixel is labelled.
    """
    path = cache_dir / f"label-counts-{_fingerprint(split.files)}.json"
    if path.is_file():
        return np.array(json.loads(path.read_text())["counts"], np.int64)

    def count(file: LabelledFile) -> np.ndarray:
        return np.bincount(read_labels(file).ravel(), minlength=256)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        totals: np.ndarray = np.sum(list(pool.map(count, split.files)), axis=0)
    counts = totals[: split.label_set.num_classes]
    if not counts.sum():
        raise DatasetError(f"no pixel of {split.dataset} {split.split} is labelled")
    cache_dir.mkdir(parents=True, exist_ok=True)
    record = {"dataset": split.dataset, "split": split.split, "counts": counts.tolist()}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record))
    return counts


def _fingerprint(files: Sequence[LabelledFile]) -> str:
    """Hash the paths, sizes and modification times of the label files."""
    digest = hashlib.sha256()
    for file in files:
        path, status = file.labels_path, file.labels_path.stat()
        digest.update(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
