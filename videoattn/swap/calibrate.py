"""Closed-form calibration: the projection behind a swapped operator refitted to what dense attention put out there.

The least-squares problem of each slot is solved from sums over the tokens of all clips, so that clips pass one batch at
a time and no gradient is needed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from videoattn.swap.slots import Clips, DenseSlot

# Weights of the penalty on changes of the projection, as shares of the inputs' mean square; the best is chosen on
# clips that the fit has not seen. The last leaves the projection as it was, but for rounding.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# One of so many batches is kept from the fit to choose the penalty.
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

    def __add__(self, other: "_Sums") -> "_Sums":
        total = _Sums()
        for sums in (self, other):
            if sums.gram is not None and sums.cross is not None:
                total.gram = sums.gram if total.gram is None else total.gram + sums.gram
                total.cross = sums.cross if total.cross is None else total.cross + sums.cross
        return total

    def solve(self, penalty: float) -> Tensor:
        """Return the change [inputs + 1, outputs] of weight and bias that fits best; the bias is not penalised."""
        assert self.gram is not None and self.cross is not None
        size = len(self.gram) - 1
        ridge = self.gram.new_zeros(size + 1)
        ridge[:size] = penalty * self.gram.diagonal()[:size].mean()
        ridge[size] = torch.finfo(torch.float64).eps * self.gram[size, size]
        return torch.linalg.solve(self.gram + ridge.diag(), self.cross)

    def gain(self, change: Tensor) -> float:
        """Return by how much a change lowers the sum of squared residuals."""
        assert self.gram is not None and self.cross is not None
        return float(2 * (change * self.cross).sum() - (change * (self.gram @ change)).sum())


@torch.no_grad()
def calibrate(
    dense: nn.Module, swapped: nn.Module, slots: Sequence[DenseSlot], clips: Clips
) -> dict[str, float | None]:
    """Refit the output projection of every slot of a swapped model, in place and slot after slot.

    Each projection is fitted to the output of the same slot in `dense`, given what reaches it in `swapped`, whose
    earlier slots are refitted by then. Returns the penalty chosen for each slot, None where every fit is worse than
    none on the clips that were kept apart. Both models are in evaluation mode.
    """
    chosen: dict[str, float | None] = {}
    for slot in order_of_execution(swapped, slots, clips):
        theirs, ours = (model.get_submodule(f"{slot.path}.proj") for model in (dense, swapped))
        assert isinstance(theirs, nn.Linear) and isinstance(ours, nn.Linear)
        fitted = _Sums()
        held = _Sums()
        for number, batch in enumerate(clips()):
            wanted = _observe(dense, theirs, batch)[1]
            x, y = _observe(swapped, ours, batch)
            (held if number % HELD_OUT == HELD_OUT - 1 else fitted).add(x, wanted - y)
        gains: dict[float, float] = {}
        if held.gram is not None:
            gains = {penalty: held.gain(fitted.solve(penalty)) for penalty in PENALTIES}
        best = max(gains, key=lambda penalty: gains[penalty], default=PENALTIES[2])
        chosen[slot.path] = best if gains.get(best, 1.0) > 0 else None
        if chosen[slot.path] is None:
            continue
        change = (fitted + held).solve(best)
        ours.weight.add_(change[:-1].T.to(ours.weight))
        ours.bias.add_(change[-1].to(ours.bias))
    return chosen


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
