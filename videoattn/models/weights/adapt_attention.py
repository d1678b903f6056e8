"""Weights of a model with dense attention for its twin with other operators or skipped blocks."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from videoattn.layers.attention import MultiheadAttention, TokenMixer, reorder_qkv_rows
from videoattn.layers.pooled_attention import PooledAttention
from videoattn.layers.skip import ReusedWeights

# What attention slots have that are not dense: an operator's parameters, SkipAt's, the values of reused weights.
_NOT_DENSE = ("operator.", "phi.", "v.")


@dataclass
class SuitedState:
    """A state dict that fits the twin, and what became of tensors which dense attention has not, or has alone."""

    state: dict[str, Tensor]
    initialised: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def suit_attention(state: Mapping[str, Tensor], model: nn.Module) -> SuitedState:
    """Fit the tensors of dense attention slots to the slots of `model`; slots that are not dense stay as they are.

    Parameters of an operator and of SkipAt's Φ keep the values that `model` has. Blocks that reuse weights take the
    value rows of the packed projection.
    """
    suited = SuitedState(dict(state))
    reusing = 0
    for name, mixer in model.named_modules():
        if not isinstance(mixer, TokenMixer):
            continue
        start = f"{name}."
        theirs = {key.removeprefix(start) for key in state if key.startswith(start)}
        ours = dict(mixer.state_dict())
        if theirs == ours.keys() or not theirs or any(key.startswith(_NOT_DENSE) for key in theirs):
            continue
        if isinstance(mixer, (MultiheadAttention, PooledAttention)):
            added = [key for key in ours if key.startswith("operator.")]
        else:
            added = [key for key in ours if key.startswith("phi.")]
            for key in theirs - ours.keys():
                value = suited.state.pop(start + key)
                if isinstance(mixer, ReusedWeights) and key.startswith("qkv."):
                    _, _, rows = reorder_qkv_rows(value, mixer.num_heads, to_packed=False).chunk(3)
                    suited.state[start + key.replace("qkv.", "v.")] = rows
                else:
                    suited.dropped.append(start + key)
            reusing += isinstance(mixer, ReusedWeights)
        suited.state |= {start + key: ours[key] for key in added}
        suited.initialised += [start + key for key in added]
    if reusing:
        suited.notes.append(f"q and k left out of {reusing} projections, whose blocks reuse attention weights")
    return suited
