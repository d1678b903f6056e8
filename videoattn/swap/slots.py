"""The slots of a model whose attention is swapped, and the distance of its predictions from the dense model's."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from videoattn.grid import Axis
from videoattn.layers.attention import BuildOperator, TokenMixer
from videoattn.operators import AttentionOperator, DenseAttention

# Clips ready for the model, [B, 3, T, H, W]; called again for each pass over them.
Clips = Callable[[], Iterator[Tensor]]


@dataclass(frozen=True)
class DenseSlot:
    """One dense attention of a model, by the path of its module; `block` and `axis` are its place."""

    path: str
    block: int
    axis: Axis
    num_heads: int


def find_dense_slots(model: nn.Module, axes: Sequence[Axis]) -> list[DenseSlot]:
    """Return the dense attention of a model along `axes`, block after block.

    Raises ValueError where there is none along an axis.
    """
    slots = []
    for path, module in model.named_modules():
        operator = module.operator if isinstance(module, TokenMixer) else None
        if isinstance(module, TokenMixer) and module.axis in axes and type(operator) is DenseAttention:
            slots.append(DenseSlot(path, operator.site.block, module.axis, operator.site.num_heads))
    for axis in axes:
        if not any(slot.axis is axis for slot in slots):
            raise ValueError(f"{type(model).__name__} has no dense attention along {axis.value} that could be swapped")
    return slots


def swap_operators(
    model: nn.Module, slots: Sequence[DenseSlot], builders: Mapping[Axis, BuildOperator]
) -> nn.Module:  # fmt: skip
    """Return a copy of a dense model with other operators in its slots, on the same device, in evaluation mode.

    Parameters of operators start as close to dense attention as they can (`AttentionOperator.dense_start`).
    """
    swapped = copy.deepcopy(model).eval()
    for slot in slots:
        install(swapped, slot, builders[slot.axis])
    return swapped


def install(model: nn.Module, slot: DenseSlot, build: BuildOperator) -> None:
    """Put the operator that `build` makes into a slot of a model."""
    mixer = model.get_submodule(slot.path)
    mixer.operator = build_beside(mixer, build)


def build_beside(mixer: nn.Module, build: BuildOperator) -> AttentionOperator:
    """Return an operator for the site of a mixer's own, on its device and in its type."""
    weight = next(parameter for parameter in mixer.parameters() if parameter.is_floating_point())
    old: AttentionOperator = mixer.operator  # type: ignore[assignment]
    with weight.device:
        operator = build(old.site)
    operator.load_state_dict(operator.dense_start(), strict=False)
    return operator.to(weight.device, weight.dtype).eval()


@contextmanager
def installed(model: nn.Module, slot: DenseSlot, build: BuildOperator) -> Iterator[None]:
    """Have another operator in a slot of a model inside, and the one of before after."""
    mixer = model.get_submodule(slot.path)
    before = mixer.operator
    install(model, slot, build)
    try:
        yield
    finally:
        mixer.operator = before


@torch.no_grad()
def predict(model: nn.Module, clips: Clips) -> Tensor:
    """Return the log-probabilities [clips, classes] of a model in evaluation mode, in float64."""
    return torch.cat([model(batch).double().log_softmax(dim=-1).cpu() for batch in clips()])


def divergence(dense: Tensor, swapped: Tensor) -> float:
    """Return the mean Kullback-Leibler divergence of swapped from dense log-probabilities [clips, classes], in nats."""
    return float((dense.exp() * (dense - swapped)).sum(dim=-1).mean())
