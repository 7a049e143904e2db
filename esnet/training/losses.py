"""What training minimises: weighted cross-entropy, and a direct surrogate of the mean IoU beside it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, ignore_index: int) -> Tensor:
    """Average the weighted cross-entropy over the labelled pixels.

    Args:
        logits: Float (N, K, H, W).
        labels: Long (N, H, W), 0 to K - 1 or ``ignore_index``.
        weights: Float (K,), one a class.
        ignore_index: Label that counts as no class.

    Returns:
        A scalar; 0, with zero gradients, where nothing is labelled.
    """
    total = functional.cross_entropy(
        logits, labels, weight=weights, ignore_index=ignore_index, reduction="sum"
    )
    counts = torch.bincount(labels[labels != ignore_index], minlength=len(weights))
    return total / (counts * weights).sum().clamp(min=1e-9)


def lovasz_softmax(logits: Tensor, labels: Tensor, ignore_index: int, *, stride: int = 1) -> Tensor:
    """Average the Lovász extension of the Jaccard loss over the classes that occur.

    Args:
        logits: Float (N, K, H, W).
        labels: Long (N, H, W), 0 to K - 1 or ``ignore_index``.
        ignore_index: Label that counts as no class.
        stride: Take every such pixel in both directions, from a random start: the sort is what costs.

    Returns:
        A scalar, 0 to 1; 0, with zero gradients, where nothing is labelled.

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
    """How much the Jaccard loss grows with each further wrong pixel, the worst first; (K, P) each."""
    total = true.sum(1, keepdim=True)
    intersection = total - true.cumsum(1)
    union = total + (1 - true).cumsum(1)
    loss = 1 - intersection / union
    return torch.cat([loss[:, :1], loss.diff(dim=1)], 1)
