"""Losses: weighted cross-entropy with class weights, and the Lovász surrogate of the mean IoU."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from esnet.data.labelled import LabelledSplit
from esnet.errors import DatasetError
from runtime.artefact.untrusted import parse_json
from runtime.files import read_cache, save_cache


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, ignore_index: int) -> Tensor:
    """Compute the weighted mean cross-entropy of the labelled pixels.

    Args:
        logits: Float (N, K, H, W).
        labels: Long (N, H, W), 0 to K - 1 or ``ignore_index``.
        weights: Class weights, float (K,).
        ignore_index: Label of unlabelled pixels.

    Returns:
        A scalar; 0, with zero gradients, if no pixel is labelled.
    """
    total = functional.cross_entropy(
        logits, labels, weight=weights, ignore_index=ignore_index, reduction="sum"
    )
    counts = torch.bincount(labels[labels != ignore_index], minlength=len(weights))
    return total / (counts * weights).sum().clamp(min=1e-9)


def lovasz_softmax(logits: Tensor, labels: Tensor, ignore_index: int, *, stride: int = 1) -> Tensor:
    """Compute the Lovász extension of the Jaccard loss, averaged over the classes that occur.

    Args:
        logits: Float (N, K, H, W).
        labels: Long (N, H, W), 0 to K - 1 or ``ignore_index``.
        ignore_index: Label of unlabelled pixels.
        stride: Use every ``stride``-th pixel in both directions, from a random start. Sorting the pixels
            takes most of the time.

    Returns:
        A scalar, 0 to 1; 0, with zero gradients, if no pixel is labelled.

    Source: Berman et al., "The Lovász-Softmax loss", arXiv 1705.08790, section 3 and algorithm 1.
    """
    row, column = (int(torch.randint(stride, ()).item()) for _ in range(2))
    logits = logits[:, :, row::stride, column::stride]
    labels = labels[:, row::stride, column::stride]
    scores = logits.movedim(1, 0).flatten(1)[:, (labels != ignore_index).flatten()]
    true = functional.one_hot(labels[labels != ignore_index], logits.shape[1]).T.to(scores.dtype)
    occurs = true.any(1)
    if not occurs.any():
        return logits.sum() * 0
    true = true[occurs]
    errors = (true - scores.softmax(0)[occurs]).abs()
    errors, order = errors.sort(dim=1, descending=True)
    return (errors * _jaccard_steps(true.gather(1, order))).sum(1).mean()


def _jaccard_steps(true: Tensor) -> Tensor:
    """Compute the increase of the Jaccard loss with each further wrong pixel, (K, P) in order of error."""
    total = true.sum(1, keepdim=True)
    intersection = total - true.cumsum(1)
    union = total + (1 - true).cumsum(1)
    loss = 1 - intersection / union
    return torch.cat([loss[:, :1], loss.diff(dim=1)], 1)


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
        split: The split; its masks are read unless the same files were counted before.
        cache_dir: Folder of the cached counts.

    Returns:
        int64 (K,).

    Raises:
        DatasetError: A mask cannot be read or holds other values, or no pixel is labelled.
    """
    path = cache_dir / f"label-counts-{_fingerprint(split)}.json"
    num_classes = split.label_set.num_classes
    with contextlib.suppress(ValueError, KeyError, TypeError):  # damaged: count again
        cached = np.array(parse_json(read_cache(path))["counts"], np.int64)
        if cached.shape == (num_classes,) and cached.min() >= 0 < cached.sum():
            return cached

    def count(index: int) -> np.ndarray:
        return np.bincount(split.labels(index).ravel(), minlength=256)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        totals: np.ndarray = np.sum(list(pool.map(count, range(len(split)))), axis=0)
    counts = totals[:num_classes]
    if not counts.sum():
        raise DatasetError(f"no pixel of {split.dataset} {split.split} is labelled")
    record = {"dataset": split.dataset, "split": split.split, "counts": counts.tolist()}
    if warning := save_cache(path, json.dumps(record).encode()):
        warnings.warn(warning, stacklevel=2)
    return counts


def _fingerprint(split: LabelledSplit) -> str:
    """Hash the label set, and the paths, sizes and modification times of the masks."""
    digest = hashlib.sha256(json.dumps(split.label_set.as_dict()).encode())
    for file in split.files:
        path, status = file.mask_path, file.mask_path.stat()
        digest.update(os.fsencode(path.resolve()))
        digest.update(f" {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
