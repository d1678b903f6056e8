"""The named TimeSformers and their rules."""

from functools import partial

from videoattn.models.spec import ModelSpec, decay_all, layers_above
from videoattn.models.timesformer.model import TIMESFORMER_SIZES, TimeSformer
from videoattn.models.timesformer.names import TIMESFORMER_FAMILIES, find_timesformer_family, release_state
from videoattn.models.timesformer.settings import read_timesformer
from videoattn.models.timesformer.transformers_form import to_transformers
from videoattn.models.timesformer.weights import describe_timesformer, fit_timesformer
from videoattn.models.weights.adapter import WeightAdapter

ADAPTER = WeightAdapter(
    held="a TimeSformer or an image ViT",
    families=TIMESFORMER_FAMILIES,
    find_family=find_timesformer_family,
    fit=fit_timesformer,
    arguments=describe_timesformer,
    from_ours=release_state,
    to_transformers=to_transformers,
)

TIMESFORMER_SPECS = {
    name: ModelSpec(
        model=TimeSformer,
        size=size,
        clip_size=size.get("clip_size", (8, 224, 224)),
        section="timesformer",
        arguments=partial(read_timesformer, size),
        aggregate="logits",
        no_weight_decay=decay_all,  # as published: vectors, too, unless SOLVER.ZERO_WD_1D_PARAM exempts them
        layer_of=layers_above,
        adapter=ADAPTER,
    )
    for name, size in TIMESFORMER_SIZES.items()
}
