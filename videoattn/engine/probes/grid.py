"""A grid of probes on the features of one encoder, which differ in learning rate and weight decay alone."""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from videoattn.engine.checkpoint.check import first_not_finite
from videoattn.engine.checkpoint.files import BadCheckpointError


@dataclass(frozen=True)
class Cell:
    """The place of a probe in the grid."""

    lr: float
    weight_decay: float

    def __str__(self) -> str:
        return f"learning rate {self.lr:g}, weight decay {self.weight_decay:g}"


class Probe(nn.Module):
    """A classifier of features: a linear head, for tokens after a pooler. Its tensors bear the model's own names."""

    def __init__(self, head: nn.Linear, pooler: nn.Module | None = None) -> None:
        super().__init__()
        self.pooler = pooler
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features if self.pooler is None else self.pooler(features))
        return logits


class ProbeGrid(nn.Module):
    """Copies of one `probe`, one for each cell, so that all start from the same weights.

    `dropped` has the reason for each probe that diverged and is not trained any further. `chosen` is the best probe of
    the last evaluation, and `best` each probe's highest top-1 so far with the number of epochs after which it had it.
    """

    def __init__(self, probe: Probe, cells: Sequence[Cell]) -> None:
        super().__init__()
        self.cells = tuple(cells)
        self.num_classes = probe.head.out_features
        self.probes = nn.ModuleList(copy.deepcopy(probe).requires_grad_(True) for _ in cells)
        self.dropped: dict[int, str] = {}
        self.chosen = 0
        self.best: list[tuple[float, int] | None] = [None] * len(self.cells)
        self.diverged: set[int] = set()  # in the evaluation that runs, on this process

    def live(self) -> Iterator[tuple[int, nn.Module]]:
        """Yield the number of each probe that has not been dropped, and the probe."""
        yield from ((number, probe) for number, probe in enumerate(self.probes) if number not in self.dropped)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits [B, probes · classes] of all probes side by side, for evaluation.

        They are zero for a dropped probe, and for one whose logits are not finite, which `diverged` then names.
        """
        logits = torch.zeros(len(features), len(self.cells), self.num_classes, device=features.device)
        for number, probe in self.live():
            own = probe(features).float()
            if bool(own.isfinite().all()):
                logits[:, number] = own
            else:
                self.diverged.add(number)
        return logits.flatten(1)

    def drop(self, number: int, reason: str, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Train a probe no further: its weights become zero, and the optimizer forgets its moments.

        Raises FloatingPointError where no probe is left.
        """
        self.dropped[number] = reason
        for parameter in self.probes[number].parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
            with torch.no_grad():
                parameter.zero_()
            if optimizer is not None:
                optimizer.state.pop(parameter, None)
        if len(self.dropped) == len(self.cells):
            raise FloatingPointError(f"every probe of the grid diverged; the last one, {self.cells[number]}: {reason}")

    def first_not_finite(self, number: int, optimizer: torch.optim.Optimizer) -> str:
        """Return the name of a probe's first weight or moment that is infinite or NaN, or ""."""
        named = list(self.probes[number].named_parameters())
        moments = [
            (f"{key} of {name} in the optimizer's state", value)
            for name, parameter in named
            for key, value in optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        ]
        return first_not_finite([*((name, parameter.detach()) for name, parameter in named), *moments])

    def progress(self) -> dict[str, Any]:
        """Return the fate of each probe as plain values, for a checkpoint."""
        return {"dropped": dict(self.dropped), "chosen": self.chosen, "best": [x and list(x) for x in self.best]}

    def restore_progress(self, progress: Any, optimizer: torch.optim.Optimizer) -> None:
        """Put back what `progress` returned. Raises BadCheckpointError where it is of another grid."""
        numbers, best = range(len(self.cells)), None
        if isinstance(progress, dict) and isinstance(progress.get("dropped"), dict):
            best = progress.get("best")
        if (
            not isinstance(best, list)
            or len(best) != len(self.cells)
            or not all(x is None or _is_figure(x) for x in best)
            or progress.get("chosen") not in numbers
            or not all(key in numbers and isinstance(reason, str) for key, reason in progress["dropped"].items())
        ):
            raise BadCheckpointError(f"probes is {progress!r}, expected the fate of {len(self.cells)} probes")
        self.chosen = progress["chosen"]
        self.best = [None if x is None else (float(x[0]), int(x[1])) for x in best]
        for number, reason in progress["dropped"].items():
            self.drop(number, reason, optimizer)


def _is_figure(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 2 and all(type(x) in (int, float) for x in value)
    return numbers and all(math.isfinite(x) for x in value)
