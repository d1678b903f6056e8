"""Weights of attention: rows of packed projections, and dense weights for other operators or skipped blocks."""

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from videoattn.grid import TokenGrid
from videoattn.layers.attention import TokenMixer, reorder_qkv_rows
from videoattn.layers.skip import ReusedWeights
from videoattn.models.weights.files import CheckpointError
from videoattn.models.weights.report import LoadReport

# Parts of attention slots that are not dense: an operator's parameters, SkipAt's, the values of reused weights.
_NOT_DENSE = {"operator", "phi", "v"}


def adapt_attention_weights(state: Mapping[str, Tensor], model: nn.Module, report: LoadReport) -> dict[str, Tensor]:
    """Return a state dict whose dense attention slots fit the slots of `model`, noted in `report`.

    Slots of the state that are not dense stay as they are. An operator's parameters start from `dense_start`, or keep
    the values that `model` has, as those of SkipAt's Φ do. Blocks that reuse weights get the value rows of the packed
    projection.
    """
    adapted = dict(state)
    reusing = 0
    for name, mixer in model.named_modules():
        if not isinstance(mixer, TokenMixer):
            continue
        start = f"{name}."
        theirs = {key.removeprefix(start) for key in state if key.startswith(start)}
        ours = dict(mixer.state_dict())
        if mixer.operator is not None:
            ours |= {f"operator.{key}": value for key, value in mixer.operator.dense_start().items()}
        if theirs == ours.keys() or not theirs or _NOT_DENSE & {_part(key) for key in theirs}:
            continue
        is_attention = mixer.operator is not None
        added = [key for key in ours if _part(key) == ("operator" if is_attention else "phi")]
        if not is_attention:
            for key in theirs - ours.keys():
                value = adapted.pop(start + key)
                if isinstance(mixer, ReusedWeights) and _part(key) == "qkv":
                    _, _, rows = reorder_qkv_rows(value, mixer.num_heads, to_packed=False).chunk(3)
                    adapted[start + key.replace("qkv.", "v.")] = rows
                else:
                    report.dropped.append(start + key)
            reusing += isinstance(mixer, ReusedWeights)
        adapted |= {start + key: ours[key] for key in added}
        report.initialised += [start + key for key in added]
    if reusing:
        report.notes.append(f"q and k left out of {reusing} projections, whose blocks reuse attention weights")
    return adapted


def refuse_other_grids(state: Mapping[str, Tensor], model: nn.Module, said: TokenGrid | None, whole: TokenGrid) -> None:
    """Raise CheckpointError where operators of the state belong to another grid than the model's.

    `said` is the patch grid of the file's clips, if known, and `whole` the model's.
    """
    if said is None:
        return
    for name, mixer in model.named_modules():
        if isinstance(mixer, TokenMixer) and mixer.operator is not None:
            theirs, ours = (replace(grid, prefix=0).along(mixer.axis) for grid in (said, whole))
            bound = [f"{name}.operator.{own}" for own in mixer.operator.bound_parameters()]
            if theirs != ours and any(key in state for key in bound):
                raise CheckpointError(
                    f"{', '.join(bound)} belong to a grid of {said.t} x {said.h} x {said.w} patches, and the model has "
                    f"{whole.t} x {whole.h} x {whole.w}: expected the clip size of the file"
                )


def reorder_projections(tensors: Mapping[str, Tensor], num_heads: int, to_packed: bool) -> dict[str, Tensor]:
    """Return tensors under our names with the rows of packed projections in our order, or back in the usual one.

    Raises CheckpointError for rows that are no multiple of three times the heads.
    """
    reordered = {}
    for name, value in tensors.items():
        if re.search(r"\.mixers\.\w+\.qkv\.(weight|bias)$", name):
            if value.shape[0] % (3 * num_heads):
                raise CheckpointError(f"{name} has {value.shape[0]} rows, no multiple of 3 x {num_heads} heads")
            value = reorder_qkv_rows(value, num_heads, to_packed)
        reordered[name] = value
    return reordered


def _part(key: str) -> str:
    """Return the part of an attention slot that a tensor belongs to, the first word of its name there."""
    return key.partition(".")[0]
