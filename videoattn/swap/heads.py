"""The heads that stay dense: those whose swap changes a model's predictions most."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, nn

from videoattn.grid import Axis
from videoattn.layers.attention import BuildOperator
from videoattn.operators import keep_heads_dense
from videoattn.swap.slots import Clips, DenseSlot, divergence, installed, predict

# The effect of each head: its slot, its number, and the divergence of the predictions when it alone is swapped.
Effects = dict[tuple[DenseSlot, int], float]


def measure_effects(
    model: nn.Module, slots: Sequence[DenseSlot], builders: Mapping[Axis, BuildOperator], clips: Clips,
    dense: Tensor, progress: Callable[[Iterable[DenseSlot]], Iterable[DenseSlot]] = iter,
) -> Effects:  # fmt: skip
    """Return the effect of swapping each head alone, in nats: one pass over the clips for each.

    `model` is dense and in evaluation mode, `dense` its log-probabilities on the clips.
    """
    effects: Effects = {}
    for slot in progress(slots):
        for head in range(slot.num_heads):
            others = [(slot.block, other) for other in range(slot.num_heads) if other != head]
            with installed(model, slot, keep_heads_dense(builders[slot.axis], others)):
                effects[slot, head] = divergence(dense, predict(model, clips))
    return effects


def choose_heads(effects: Effects, share: float) -> dict[Axis, list[tuple[int, int]]]:
    """Return the (block, head) pairs that stay dense: the `share` of all heads with the largest effects, by axis.

    Raises ValueError for a share that is not from 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a budget of dense heads expects a share from 0 to 1, got {share}")
    ranked = sorted(effects, key=lambda key: effects[key], reverse=True)[: round(share * len(effects))]
    chosen: dict[Axis, list[tuple[int, int]]] = {slot.axis: [] for slot, _ in effects}
    for slot, head in ranked:
        chosen[slot.axis].append((slot.block, head))
    return {axis: sorted(pairs) for axis, pairs in chosen.items()}
