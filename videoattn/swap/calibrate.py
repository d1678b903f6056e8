"""Closed-form calibration: the projection behind a swapped operator refitted to what dense attention put out there.

The least-squares problem of each slot is solved from sums over the tokens of all clips, so that clips pass one batch at
a time and no gradient is needed. A fit is kept only if it brings the predictions closer to the dense ones on clips that
it has not seen: an output that is closer in one slot can still be worse for what comes behind it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from videoattn.swap.slots import Clips, DenseSlot, divergence, predict

# Weights of the penalty on changes of the projection, as shares of the inputs' mean square.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# One of so many batches is kept from the fit, to choose the penalty.
HELD_OUT = 4


class _ReachedError(Exception):
    """Ends a forward pass at the slot that is observed."""


class _Sums:
    """The sums over tokens that a least-squares fit of residuals y by inputs x with a bias needs, in float64."""

    def __init__(self) -> None:
        self.gram: Tensor | None = None
        self.cross: Tensor | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        x = torch.cat([x, x.new_ones(len(x), 1)], dim=1).double()
        gram, cross = x.T @ x, x.T @ y.double()
        self.gram = gram if self.gram is None else self.gram + gram
        self.cross = cross if self.cross is None else self.cross + cross

    def include(self, other: "_Sums") -> None:
        """Add the sums of other tokens."""
        assert self.gram is not None and self.cross is not None and other.gram is not None and other.cross is not None
        self.gram, self.cross = self.gram + other.gram, self.cross + other.cross

    def gain(self, change: Tensor) -> float:
        """Return by how much a change lowers the sum of squared residuals."""
        assert self.gram is not None and self.cross is not None
        return float(2 * (change * self.cross).sum() - (change * (self.gram @ change)).sum())

    def solve(self, penalty: float) -> Tensor:
        """Return the change [inputs + 1, outputs] of weight and bias that fits best; the bias is not penalised."""
        assert self.gram is not None and self.cross is not None
        size = len(self.gram) - 1
        ridge = self.gram.new_zeros(size + 1)
        ridge[:size] = penalty * self.gram.diagonal()[:size].mean()
        ridge[size] = torch.finfo(torch.float64).eps * self.gram[size, size]
        return torch.linalg.solve(self.gram + ridge.diag(), self.cross)


@torch.no_grad()
def calibrate(
    dense: nn.Module, swapped: nn.Module, slots: Sequence[DenseSlot], clips: Clips
) -> dict[str, float | None]:
    """Refit the output projection of every slot of a swapped model, in place and slot after slot.

    Each projection is fitted to the output of the same slot in `dense`, given what reaches it in `swapped`, whose
    earlier slots are refitted by then. Returns the penalty chosen for each slot, None where no fit helps on the batches
    that are kept apart. Both models are in evaluation mode. Raises ValueError for a single batch.
    """
    reference = predict(dense, _held_out(clips))
    best = divergence(reference, predict(swapped, _held_out(clips)))
    chosen: dict[str, float | None] = {}
    for slot in order_of_execution(swapped, slots, clips):
        theirs, ours = (model.get_submodule(f"{slot.path}.proj") for model in (dense, swapped))
        assert isinstance(theirs, nn.Linear) and isinstance(ours, nn.Linear)
        fitted, held = _Sums(), _Sums()
        for number, batch in enumerate(clips()):
            x, y = _observe(swapped, ours, batch)
            (held if _is_held_out(number) else fitted).add(x, _observe(dense, theirs, batch)[1] - y)
        changes = {penalty: fitted.solve(penalty) for penalty in PENALTIES}
        penalty = max(changes, key=lambda penalty: held.gain(changes[penalty]))
        before = ours.weight.clone(), ours.bias.clone()
        _set(ours, before, changes[penalty])
        found = divergence(reference, predict(swapped, _held_out(clips)))
        helps = found < best
        best, chosen[slot.path] = (found, penalty) if helps else (best, None)
        if not helps:
            _set(ours, before, None)
            continue
        fitted.include(held)  # now that the fit is judged, it sees all clips, unless that makes it worse
        _set(ours, before, fitted.solve(penalty))
        found = divergence(reference, predict(swapped, _held_out(clips)))
        if found > best:
            _set(ours, before, changes[penalty])
        best = min(best, found)
    return chosen


def _is_held_out(number: int) -> bool:
    return number % HELD_OUT == 1


def _held_out(clips: Clips) -> Clips:
    """Return the batches that no fit sees. Raises ValueError for a single batch."""

    def held() -> Iterator[Tensor]:
        batches = [batch for number, batch in enumerate(clips()) if _is_held_out(number)]
        if not batches:
            raise ValueError("calibration expects at least two batches of clips, one of them to choose a fit by")
        yield from batches

    return held


def _set(layer: nn.Linear, before: tuple[Tensor, Tensor], change: Tensor | None) -> None:
    """Give a layer the weight and bias of before with a change [inputs + 1, outputs], or without one."""
    weight, bias = before
    layer.weight.copy_(weight if change is None else weight + change[:-1].T.to(weight))
    layer.bias.copy_(bias if change is None else bias + change[-1].to(bias))


def _observe(model: nn.Module, layer: nn.Linear, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input and output rows of a layer, [tokens, ...]; the model runs no further than there."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, inputs: Any, output: Tensor) -> None:
        seen.extend((inputs[0].flatten(0, -2), output.flatten(0, -2)))
        raise _ReachedError

    handle = layer.register_forward_hook(hook)
    try:
        model(clips)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    x, y = seen
    return x, y


def order_of_execution(model: nn.Module, slots: Sequence[DenseSlot], clips: Clips) -> list[DenseSlot]:
    """Return slots in the order in which a forward pass reaches them."""
    reached: list[DenseSlot] = []
    handles = [
        model.get_submodule(slot.path).register_forward_pre_hook(lambda *_, slot=slot: reached.append(slot))
        for slot in slots
    ]
    try:
        model(next(clips())[:1])
    finally:
        for handle in handles:
            handle.remove()
    return reached
