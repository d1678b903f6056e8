"""The swap of a dense model, step by step: effects of heads, then for each budget a swapped and calibrated model."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from videoattn.grid import Axis
from videoattn.layers.attention import BuildOperator
from videoattn.operators import DenseAttention, keep_heads_dense
from videoattn.swap.calibrate import calibrate
from videoattn.swap.heads import Effects, choose_heads, measure_effects
from videoattn.swap.slots import Clips, DenseSlot, divergence, find_dense_slots, predict, swap_operators

_ROUNDS = 7
T = TypeVar("T")


@dataclass(frozen=True)
class Swapped:
    """A swapped model and what its calibration changed.

    `before` and `after` are log-probabilities of the evaluation clips before and after calibration; `penalties` are
    those of each slot's fit, None where it keeps its projection.
    """

    model: nn.Module
    dense_heads: dict[Axis, list[tuple[int, int]]]
    before: Tensor
    after: Tensor
    penalties: dict[str, float | None]


class Swap:
    """Dense attention of a model swapped for other operators, without gradients.

    `model` is dense along the axes of `builders`, and in evaluation mode. `clips` are those that the swap is fitted on,
    and `test_clips` those that it is judged by. Raises ValueError where there is nothing to swap.
    """

    def __init__(
        self, model: nn.Module, builders: Mapping[Axis, BuildOperator], clips: Clips, test_clips: Clips
    ) -> None:
        self.model = model.eval()
        self.builders = builders
        self.clips = clips
        self.slots = [slot for slot in find_dense_slots(model, list(builders)) if self._changes(slot)]
        if not self.slots:
            raise ValueError("every operator of the swap is dense: expected one that is not")
        self.num_heads = sum(slot.num_heads for slot in self.slots)
        self.test_clips = test_clips
        self.dense = predict(self.model, test_clips)

    def _changes(self, slot: DenseSlot) -> bool:
        """Return whether a slot gets another operator than a dense one."""
        mixer: Any = self.model.get_submodule(slot.path)
        return type(self.builders[slot.axis](mixer.operator.site)) is not DenseAttention

    def measure_effects(self, progress: Callable[[Iterable[DenseSlot]], Iterable[DenseSlot]] = iter) -> Effects:
        """Return the effect of swapping each head alone on the predictions of the fitting clips, in nats."""
        dense = predict(self.model, self.clips)
        return measure_effects(self.model, self.slots, self.builders, self.clips, dense, progress)

    def swap(self, effects: Effects, budget: float) -> Swapped:
        """Return the model with the share `budget` of heads dense, those of the largest effects, and calibrated."""
        heads = choose_heads(effects, budget)
        builders = {axis: keep_heads_dense(build, heads[axis]) for axis, build in self.builders.items()}
        model = swap_operators(self.model, self.slots, builders)
        before = predict(model, self.test_clips)
        changed = [
            slot for slot in self.slots if sum(block == slot.block for block, _ in heads[slot.axis]) < slot.num_heads
        ]
        penalties = calibrate(self.model, model, changed, self.clips)
        return Swapped(model, heads, before, predict(model, self.test_clips), penalties)

    def divergence(self, predictions: Tensor) -> float:
        """Return the mean divergence of predictions from the dense ones, in nats."""
        return divergence(self.dense, predictions)


@torch.no_grad()
def time_models(models: Sequence[nn.Module], clip: Tensor, rounds: int = _ROUNDS) -> list[float]:
    """Return the median milliseconds of a forward pass of each model; models take turns, so that all see one load."""
    times: list[list[float]] = [[] for _ in models]
    for number in range(rounds + 1):
        for model, measured in zip(models, times, strict=True):
            _wait(clip)
            start = time.perf_counter()
            model(clip)
            _wait(clip)
            if number:  # the first round compiles kernels and fills caches
                measured.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(measured) for measured in times]


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def repeat_clips(batches: Sequence[T], prepare: Callable[[T], Tensor]) -> Clips:
    """Return batches of clips, kept as they were decoded, that are prepared anew in each pass."""

    def clips() -> Iterator[Tensor]:
        yield from (prepare(batch) for batch in batches)

    return clips
