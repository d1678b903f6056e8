"""The outcome of an evaluation: figures, and the files that hold them."""

import csv
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from videoattn.data.clips.batch import Failure
from videoattn.engine.log import describe_machine, package_versions
from videoattn.engine.metrics import confusion_matrix, mean_class_accuracy, per_class_accuracy, top_k_correct
from videoattn.files import atomic_write

logger = logging.getLogger("videoattn")

MAX_NESTED_CLASSES = 50  # above, the confusion matrix goes to a file of its own
MAX_DRAWN_CLASSES = 100


@dataclass(frozen=True)
class Results:
    """The outcome of an evaluation. `videos` are the evaluated ones, by index in the list, their `scores` in float64.

    `paths` and `labels` (-1: none) are of the whole list. Accuracies are shares of the evaluated videos that have a
    label, and None where there is none. `sequential` counts videos decoded sequentially, by reason.
    """

    paths: Sequence[str]
    labels: Sequence[int]
    videos: Sequence[int]
    scores: Tensor
    failures: Sequence[Failure]
    num_short: int
    protocol: Mapping[str, Any]
    speed: Mapping[str, float]
    sequential: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def _labelled(self) -> tuple[Tensor, Tensor]:
        labels = torch.tensor([self.labels[video] for video in self.videos], dtype=torch.int64)
        return self.scores[labels >= 0], labels[labels >= 0]

    @cached_property
    def _correct(self) -> dict[int, int]:
        return top_k_correct(*self._labelled, (1, 5))

    @property
    def num_labelled(self) -> int:
        """Return the number of labelled videos in the list, evaluated or not."""
        return sum(label >= 0 for label in self.labels)

    def top_k(self, k: Literal[1, 5], failed_as_wrong: bool = False) -> float | None:
        """Return top-k accuracy of evaluated labelled videos, or of all labelled ones with failed ones as wrong."""
        total = self.num_labelled if failed_as_wrong else len(self._labelled[1])
        return self._correct[k] / total if total else None

    @cached_property
    def confusion(self) -> Tensor:
        """Return the counts [true class, predicted class]."""
        return confusion_matrix(*self._labelled)

    def summary(self, class_names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return counts, accuracies, failures and protocol, as plain values."""
        shares, counts = per_class_accuracy(self.confusion).tolist(), self.confusion.sum(dim=1).tolist()
        return {
            "counts": {
                "listed": len(self.paths),
                "labelled": self.num_labelled,
                "evaluated": len(self.videos),
                "failed": len(self.failures),
                "short_clips": self.num_short,
            },
            "top1": self.top_k(1),
            "top5": self.top_k(5),
            "mean_class_accuracy": mean_class_accuracy(self.confusion) if len(self._labelled[1]) else None,
            "top1_failed_as_wrong": self.top_k(1, failed_as_wrong=True),
            "top5_failed_as_wrong": self.top_k(5, failed_as_wrong=True),
            "sequential": dict(self.sequential),
            "failed": [failure._asdict() for failure in self.failures],
            "per_class": [
                {
                    "class": i,
                    "name": class_names[i] if class_names else None,
                    "videos": count,
                    "accuracy": share if count else None,
                }
                for i, (share, count) in enumerate(zip(shares, counts, strict=True))
            ],
            "protocol": dict(self.protocol),
            "speed": dict(self.speed),
        }

    def lines(self, remark: str = "") -> list[str]:
        """Return the result in a few lines for people; `remark` stands beside the accuracy."""
        failed = f" ({len(self.failures)} failed: see results.json)" if self.failures else ""
        lines = [f"evaluated {len(self.videos)} of {len(self.paths)} videos{failed}"]
        ks: tuple[Literal[1, 5], ...] = (1, 5) if self.scores.shape[1] > 5 else (1,)
        for failed_as_wrong in (False, True) if failed else (False,):
            shares = [(k, self.top_k(k, failed_as_wrong)) for k in ks]
            text = ", ".join(f"top-{k} {100 * share:.2f} %" for k, share in shares if share is not None)
            text += " with failed videos counted as wrong" if failed_as_wrong else ""
            lines += [text + (f" ({remark})" if remark else "")] if shares[0][1] is not None else []
        if self.num_short:
            lines.append(f"{self.num_short} of the clips are longer than their video, so that frames repeat")
        views = self.protocol["views"]
        how = f"{views} view{'s' * (views != 1)} a video, {self.protocol['method']} of {self.protocol['aggregate']}"
        speed = "{clips_per_second} views/s, {data_wait:.0%} of the time waiting for data".format(**self.speed)
        return [*lines, f"{how}; {speed}"]

    def write(
        self, folder: Path, class_names: Sequence[str] | None = None, details: Mapping[str, Any] | None = None
    ) -> None:
        """Write results.json, predictions.csv, and for labelled videos the confusion matrix, into `folder`.

        `details` are further entries of results.json (its "protocol" is merged into ours). The matrix is nested lists
        in results.json, or confusion.csv above 50 classes; confusion.png is drawn for up to 100 classes.
        """
        folder.mkdir(parents=True, exist_ok=True)
        summary = self.summary(class_names)
        details = dict(details or {})
        summary["protocol"] |= details.pop("protocol", {})
        summary |= details | {"versions": package_versions(), "machine": describe_machine()}
        for name in ("confusion.csv", "confusion.png"):  # an earlier evaluation's, perhaps of other classes
            (folder / name).unlink(missing_ok=True)
        num_classes = len(self.confusion)
        if len(self._labelled[1]):
            summary["confusion_matrix"] = self.confusion.tolist()
            if num_classes > MAX_NESTED_CLASSES:
                summary["confusion_matrix"] = "confusion.csv"
                _write_csv(folder / "confusion.csv", self.confusion.tolist())
            if num_classes <= MAX_DRAWN_CLASSES:
                _draw_confusion(folder / "confusion.png", self.confusion, class_names)
        _write_csv(folder / "predictions.csv", self._prediction_rows(class_names))
        with atomic_write(folder / "results.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=1, allow_nan=False, ensure_ascii=False), encoding="utf-8")

    def _prediction_rows(self, class_names: Sequence[str] | None) -> Iterator[list[Any]]:
        k = min(5, self.scores.shape[1])
        yield ["video", "path", "label", *(f"{name}_{i + 1}" for i in range(k) for name in ("class", "name", "score"))]
        scores, classes = self.scores.sort(dim=1, descending=True, stable=True)
        for row, video in enumerate(self.videos):
            label = self.labels[video]
            best: list[Any] = []
            for i in range(k):
                number = int(classes[row, i])
                best += [number, class_names[number] if class_names else "", f"{float(scores[row, i]):.9g}"]
            yield [video, self.paths[video], label if label >= 0 else "", *best]


def _write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def _draw_confusion(path: Path, confusion: Tensor, class_names: Sequence[str] | None) -> None:
    """Draw each row's shares as grey levels, with numbers for up to 20 classes."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.info("%s is not drawn: matplotlib is not installed", path.name)
        return
    num_classes = len(confusion)
    names = list(class_names) if class_names else [str(i) for i in range(num_classes)]
    shares = confusion.double() / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    side = 3 + 0.16 * max(num_classes, 12)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares.numpy(), cmap="Greys", vmin=0, vmax=1)
    font = 8 if num_classes <= 20 else 5
    axes.set_xticks(range(num_classes), names, rotation=90, fontsize=font, parse_math=False)
    axes.set_yticks(range(num_classes), names, fontsize=font, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if num_classes <= 20:
        for i, j in torch.cartesian_prod(torch.arange(num_classes), torch.arange(num_classes)).tolist():
            color = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, str(int(confusion[i, j])), ha="center", va="center", fontsize=font, color=color)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
