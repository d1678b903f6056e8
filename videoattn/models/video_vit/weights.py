"""A file's weights fitted to a video ViT, and the video ViT that a file's tensors describe."""

from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from videoattn.layers.attention import count_heads
from videoattn.models.video_vit.model import VideoViT
from videoattn.models.video_vit.names import VideoViTSizes, to_ours
from videoattn.models.video_vit.positions import fit_positions
from videoattn.models.weights.adapt_attention import adapt_attention_weights, refuse_other_grids
from videoattn.models.weights.adapter import FitOptions
from videoattn.models.weights.files import OURS, CheckpointError, Family, WeightFile
from videoattn.models.weights.grids import said_grid
from videoattn.models.weights.report import LoadReport, complete, keep_head

# The heads of every published model of a width: VideoMAE S, B, L, H, then V-JEPA 2's g and 2.1's G.
STANDARD_HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 22, 1664: 26}
_VIDEOMAE_HEADS = {**STANDARD_HEADS, 1408: 16}  # VideoMAE v2's g
# After which blocks V-JEPA 2.1 normalises tokens, by depth.
LEVELS = {12: (2, 5, 8, 11), 24: (5, 11, 17, 23), 40: (9, 19, 29, 39), 48: (11, 23, 37, 47)}
_SAME = ("depth", "embed_dim", "mlp_dim", "tubelet", "bias", "modality", "num_levels")
_OF_HEAD = ("fc_norm.", "pooler.", "head.", "norms.")


def fit_video_vit(model: VideoViT, file: WeightFile, report: LoadReport, options: FitOptions) -> dict[str, Tensor]:
    """Return the model's complete new state from the file's tensors, noted in `report`."""
    target = model.state_dict()
    num_heads, said = count_heads(model), file.settings.get("num_heads")
    assert num_heads is not None  # a model's first block always attends
    if said not in (None, num_heads):
        raise CheckpointError(f"the file has {said} heads, the model {num_heads}")
    state = to_ours(file.tensors, report.family, num_heads, report.dropped, with_norm=model.norms is not None)
    theirs, ours = VideoViTSizes.of(state), VideoViTSizes.of(target)
    both = f"the file has {theirs}; the model has {ours}"
    started = options.head != "keep" and theirs.head != ours.head
    differing = [name for name in _SAME if getattr(theirs, name) != getattr(ours, name)]
    if started and "num_levels" in differing and (ours.head == "mean" or not theirs.num_levels):
        differing.remove("num_levels")
    if differing:
        values = ", ".join(f"{name}: {getattr(theirs, name)} and {getattr(ours, name)}" for name in differing)
        raise CheckpointError(f"{both}; {values}")
    trained = positions_of(theirs)
    if report.family != OURS and trained != model.positions:
        name = trained["positions"]
        raise CheckpointError(
            f"weights of such files were trained with {trained}, and the model has {model.positions}: set "
            f"VIDEO_VIT.POSITIONS {name} ({', '.join(f'{key}={value!r}' for key, value in trained.items())})"
        )
    if theirs.head != ours.head:
        if not started:
            raise CheckpointError(
                f"the heads differ (allow_new_head=True, or TRAIN.FINETUNE True, starts a new head; probe= names the "
                f"file of a probe): {both}"
            )
        state = _start_head(state, target, report)
    elif ours.head != "none":
        new = options.head == "new" or (options.head == "may_differ" and theirs.num_classes != ours.num_classes)
        state = keep_head(state, target, report, new=new, sizes=both)
    state |= fit_positions(model, state, file, report, options, both)
    whole = complete(adapt_attention_weights(state, model, report), target)
    said = said_grid(file, model.patch_of(file.settings.get("clip_size", ())))
    refuse_other_grids(state, model, said, model.grid)
    return whole


def _start_head(state: Mapping[str, Tensor], target: Mapping[str, Tensor], report: LoadReport) -> dict[str, Tensor]:
    """Return the encoder of a state with the head of the model, named in `report`; norms of tokens are kept."""
    kept = {name: value for name, value in state.items() if not name.startswith(_OF_HEAD) or name in target}
    kept = {name: value for name, value in kept.items() if not name.startswith("head.")}
    report.dropped += [name for name in state if name not in kept]
    started = {name: value for name, value in target.items() if name.startswith(_OF_HEAD) and name not in kept}
    report.initialised += started
    return kept | started


def describe_video_vit(file: WeightFile, family: Family, given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the arguments of the model whose tensors these are; assumptions go to `notes`."""
    if family == OURS:
        return {**_noted_arguments(file), **given}
    sizes = VideoViTSizes.of(to_ours(file.tensors, family, 1, []))
    standard = _VIDEOMAE_HEADS if sizes.bias == "qv" else STANDARD_HEADS
    num_heads = given.get("num_heads", file.settings.get("num_heads", standard.get(sizes.embed_dim)))
    if num_heads is None:
        raise CheckpointError(f"the number of heads can't be told from width {sizes.embed_dim}: pass num_heads=")
    if "clip_size" not in given and "clip_size" not in file.settings:
        raise CheckpointError("the clip size can't be told from the tensors: pass clip_size=(T, H, W)")
    frames, size = sizes.tubelet
    levels = given.get("levels", (sizes.depth - 1,))
    if sizes.num_levels > 1 and "levels" not in given:
        levels = LEVELS.get(sizes.depth, ())
        if len(levels) != sizes.num_levels:
            raise CheckpointError(
                f"the file has {sizes.num_levels} norms; which of its {sizes.depth} blocks they follow can't be told: "
                "pass levels="
            )
    probe = {"probe_depth": sizes.probe_depth} if sizes.head == "attentive" else {}
    if probe and family == "huggingface":  # transformers' probe has as many heads as its encoder
        probe["probe_heads"] = num_heads
    return {
        "clip_size": file.settings.get("clip_size"),
        "patch_size": size,
        "tubelet": frames,
        "embed_dim": sizes.embed_dim,
        "depth": sizes.depth,
        "mlp_dim": sizes.mlp_dim,
        **({} if sizes.num_classes is None else {"num_classes": sizes.num_classes}),
        "bias": sizes.bias,
        "modality": sizes.modality,
        "levels": levels,
        "head": sizes.head,
        **positions_of(sizes),
        **probe,
        **{name: file.settings[name] for name in ("norm_eps", "head_eps") if name in file.settings},
        **{name: value for name, value in given.items() if name != "attention_type"},
        "num_heads": num_heads,
    }


def _noted_arguments(file: WeightFile) -> dict[str, Any]:
    """Return the arguments that a file of ours notes. Raises CheckpointError for wrong ones, or none."""
    noted = file.settings.get("arguments")
    if noted is None:
        raise CheckpointError("the file does not carry the settings of its model: build the model and use load_weights")
    types = get_type_hints(VideoViT.__init__)
    arguments = {}
    for name, value in noted.items():
        if name not in types or name in ("operators", "skip", "return"):
            raise CheckpointError(f"the file notes {name!r}, which is no argument of a video ViT")
        try:
            arguments[name] = TypeAdapter(types[name]).validate_python(value)
        except ValidationError as error:
            raise CheckpointError(f"the file notes {name} {value!r}: {error.errors()[0]['msg']}") from error
    return arguments


def positions_of(sizes: VideoViTSizes) -> dict[str, Any]:
    """Return the positions that published weights of these tensors were trained with."""
    if sizes.num_positions is not None:  # by an option of VideoMAE's code
        return {"positions": "learned", "rotary_base": None}
    if sizes.bias == "qv":  # VideoMAE alone
        return {"positions": "sincos_1d", "rotary_base": None}
    if sizes.modality:  # V-JEPA 2.1
        return {"positions": "rope_interleaved", "rotary_base": 16}
    return {"positions": "rope_tiled", "rotary_base": None}
