"""The named MViTs and their rules."""

from functools import partial
from typing import Any

from videoattn.config.sections import MViT as MViTSection
from videoattn.models.mvit.model import MVIT_SIZES, MViT
from videoattn.models.mvit.names import MVIT_FAMILIES, find_mvit_family, published_state
from videoattn.models.mvit.settings import read_mvit
from videoattn.models.mvit.weights import describe_mvit, fit_mvit
from videoattn.models.spec import ModelSpec, layers_above
from videoattn.models.weights.adapter import WeightAdapter

ADAPTER = WeightAdapter(
    held="an MViT",
    families=MVIT_FAMILIES,
    find_family=find_mvit_family,
    fit=fit_mvit,
    arguments=describe_mvit,
    from_ours=published_state,
)


def no_decay_of_positions(settings: MViTSection, name: str) -> bool:
    """Return whether a parameter is the class token or a position that MVIT.ZERO_DECAY_POS_CLS exempts from decay."""
    parts = name.split(".")
    return settings.zero_decay_pos_cls and (
        parts[0] == "cls_token" or parts[0].startswith("pos_embed") or "relative" in parts
    )


# "mvit" is what SlowFast calls MViT: no block pools or widens unless the settings say so.
_SIZES: dict[str, dict[str, Any]] = {"mvit": {}, **MVIT_SIZES}

MVIT_SPECS = {
    name: ModelSpec(
        model=MViT,
        size=size,
        clip_size=size.get("clip_size", (16, 224, 224)),
        section="mvit",
        arguments=partial(read_mvit, size),
        aggregate="probabilities",  # as published: SlowFast's models end in a softmax
        no_weight_decay=no_decay_of_positions,
        layer_of=layers_above,
        adapter=ADAPTER,
    )
    for name, size in _SIZES.items()
}
