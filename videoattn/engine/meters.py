"""Sums over the steps of an epoch, and the two conditions under which a run had better stop."""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from videoattn.data.clips.batch import Batch
from videoattn.engine.distributed import all_reduce_sum

MIN_DRAWS = 100  # below this many clips a share of bad ones says little, except at the end of an epoch


class TooManyBadClipsError(RuntimeError):
    """More training clips than DATA.MAX_BAD_FRACTION could not be decoded."""


@dataclass
class Meters:
    """Sums over steps, of one process or of all once reduced.

    They are the loss, optimizer steps, clips asked for, bad ones, short ones, and videos decoded sequentially.
    """

    loss: float = 0.0
    steps: int = 0
    draws: int = 0
    bad: int = 0
    short: int = 0
    in_order: int = 0  # decoded sequentially; checkpoints store the field under this name

    def add(self, other: "Meters") -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def tried(self) -> int:
        """Clips asked for, and those tried in place of bad ones."""
        return self.draws + self.bad

    @property
    def mean_loss(self) -> float:
        return self.loss / max(self.steps, 1)


class PendingMeters:
    """Meters of this process since they were last reduced; the loss stays on its device until then."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.meters = Meters()

    def count(self, loss: Tensor, batches: list[Batch]) -> None:
        """Add one optimizer step, its mean loss and the batches it took."""
        self.losses.append(loss)
        self.meters.steps += 1
        for batch in batches:
            self.meters.draws += batch.draws
            self.meters.bad += len(batch.failures)
            self.meters.short += batch.num_short
            self.meters.in_order += len(batch.sequential)

    def reduce(self, world_size: int) -> Meters:
        """Totals over all processes (loss and steps, the same number everywhere, as means); starts anew."""
        own, total = self.meters, float(sum(float(loss) for loss in self.losses))
        counts = [own.draws, own.bad, own.short, own.in_order]
        loss, steps, *sums = all_reduce_sum(torch.tensor([total, own.steps, *counts], dtype=torch.float64)).tolist()
        self.losses, self.meters = [], Meters()
        return Meters(loss / world_size, round(steps / world_size), *(round(number) for number in sums))


def check_loss(loss: float) -> None:
    """Raise FloatingPointError if the loss is not finite."""
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss became {loss}")


def check_bad_clips(meters: Meters, limit: float, at_end: bool) -> None:
    """Raise TooManyBadClipsError if their share exceeds `limit`, once there is enough to go by."""
    if meters.bad > limit * meters.tried and (at_end or meters.draws >= MIN_DRAWS):
        raise TooManyBadClipsError(
            f"{meters.bad} of {meters.tried} clips could not be decoded, more than DATA.MAX_BAD_FRACTION {limit}; "
            "log.jsonl lists them as bad_clip. Find all bad videos by `videoattn check` and train on its clean list, "
            "or raise the key"
        )
