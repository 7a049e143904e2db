"""Training losses: weighted cross-entropy, and the Lovász-softmax surrogate of the mean IoU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


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
