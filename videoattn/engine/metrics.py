"""Classification figures from scores. A tie with another class, or a score that is not a number, counts as wrong."""

from collections.abc import Iterable

import torch
from torch import Tensor


def _ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the number of other classes that score at least as high as each label, [n]."""
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"expected scores [n, classes] and labels [n], got {list(scores.shape)}, {list(labels.shape)}")
    num_classes = scores.shape[1]
    if len(labels) and not (0 <= int(labels.min()) and int(labels.max()) < num_classes):
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}")
    own = scores.gather(1, labels[:, None])
    return (~(scores < own)).sum(dim=1) - 1  # the label itself is never below itself


def top_k_correct(scores: Tensor, labels: Tensor, ks: Iterable[int] = (1, 5)) -> dict[int, int]:
    """For each k, how many rows of scores [n, classes] have their label among the k highest.

    k above the number of classes means all of them. Raises ValueError on a label outside the classes and on k < 1.
    """
    ranks = _ranks(scores, labels)
    counts = {}
    for k in ks:
        if k < 1:
            raise ValueError(f"top-k needs k >= 1, got {k}")
        counts[k] = int((ranks < min(k, scores.shape[1])).sum())
    return counts


def confusion_matrix(scores: Tensor, labels: Tensor) -> Tensor:
    """Counts [classes, classes] of rows with a true class (row) and a predicted one (column).

    Its diagonal is what `top_k_correct` counts for k = 1: where the label ties with others, the first of those is
    taken as predicted.
    """
    num_classes = scores.shape[1]
    right = _ranks(scores, labels) == 0
    others = scores.scatter(1, labels[:, None], -torch.inf)
    predicted = torch.where(right, labels, others.argmax(dim=1))
    return torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)


def per_class_accuracy(confusion: Tensor) -> Tensor:
    """The share of each true class that is predicted as such, [classes] in float64; nan for a class without rows."""
    return confusion.diagonal().double() / confusion.sum(dim=1).double()


def mean_class_accuracy(confusion: Tensor) -> float:
    """The mean of `per_class_accuracy` over the classes that occur; nan if none does."""
    return float(per_class_accuracy(confusion).nanmean())
