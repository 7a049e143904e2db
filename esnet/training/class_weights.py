"""Class weights against imbalance, from label counts that are made once and kept."""

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


def class_weights(counts: np.ndarray, offset: float | None) -> np.ndarray:
    """Weigh each class by 1 / ln(c + p), p its share of the labelled pixels.

    Args:
        counts: Labelled pixels a class, (K,).
        offset: c; the smaller, the more rare classes count. ``None`` weighs all alike.

    Returns:
        float32 (K,).

    Source: Paszke et al., "ENet", arXiv 1606.02147, section 5.2.
    """
    if offset is None:
        return np.ones(len(counts), np.float32)
    shares = counts / counts.sum()
    return np.asarray(1 / np.log(offset + shares), np.float32)


def label_counts(split: LabelledSplit, cache_dir: Path) -> np.ndarray:
    """Count the labelled pixels of every class, int64 (K,), once for the same files.

    Raises:
        DatasetError: A label file that cannot be read, or a split without any label.
    """
    path = cache_dir / f"label-counts-{_fingerprint(split.files)}.json"
    if path.is_file():
        return np.array(json.loads(path.read_text())["counts"], np.int64)
    num_classes = split.label_set.num_classes
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        each = pool.map(lambda file: _counts(file, num_classes), split.files)
        counts: np.ndarray = np.sum(list(each), axis=0)
    if not counts.sum():
        raise DatasetError(f"no pixel of {split.dataset} {split.split} is labelled")
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"dataset": split.dataset, "split": split.split, "counts": counts.tolist()}
    path.write_text(json.dumps(record))
    return counts


def _counts(file: LabelledFile, num_classes: int) -> np.ndarray:
    return np.bincount(read_labels(file).ravel(), minlength=256)[:num_classes]


def _fingerprint(files: Sequence[LabelledFile]) -> str:
    """Tell files apart by path, size and time of change, without reading them."""
    digest = hashlib.sha256()
    for file in files:
        status = file.labels_path.stat()
        digest.update(
            f"{file.labels_path.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode()
        )
    return digest.hexdigest()[:16]
