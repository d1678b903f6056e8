"""Weights between files and models: every tensor of the file used, every tensor of the model filled, or named."""

import logging
import os
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from videoattn.compat import import_timm
from videoattn.models.baselines import Baseline
from videoattn.models.build import parse_description
from videoattn.models.mvit.model import MViT
from videoattn.models.mvit.names import mvit_from_ours, mvit_to_ours
from videoattn.models.mvit.weights import fit_mvit, mvit_arguments
from videoattn.models.timesformer.model import TimeSformer
from videoattn.models.timesformer.names import MVIT_FAMILIES, Family, find_family, from_ours, holds_mvit, to_ours
from videoattn.models.timesformer.weights import fit_timesformer, timesformer_arguments
from videoattn.models.weights.departures import Description, find_departures, format_departures
from videoattn.models.weights.files import CheckpointError, WeightFile, naming_file, read_weight_file, write_weight_file
from videoattn.models.weights.report import LoadReport, complete, refuse_new_layers
from videoattn.seeding import torch_seed

__all__ = [
    "CheckpointError",
    "LoadReport",
    "from_checkpoint",
    "from_ours",
    "load_imagenet_vit",
    "load_weights",
    "mvit_from_ours",
    "mvit_to_ours",
    "save_weights",
    "to_ours",
]

logger = logging.getLogger(__name__)

Head = Literal["keep", "may_differ", "new"]


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], *, allow_new_head: bool = False, allow_resize: bool = False,
    file_grid: tuple[int, int] | None = None, trust: bool = False, ema: bool | Literal["auto"] = "auto",
    allow_new_layers: bool = True, data: Description | None = None,
) -> LoadReport:  # fmt: skip
    """Fill a model from a file of ours, or one that was made elsewhere.

    A TimeSformer takes files of its release, of transformers, and of image ViTs, an MViT those of SlowFast,
    torchvision and pytorchvideo. `allow_resize` resizes positions that were learned for clips of another size;
    `file_grid` is then the file's (h, w) in patches where a TimeSformer's tensors leave that open. `allow_new_head` is
    for fine-tuning: a head for other classes is left as it is, and a file without time starts a video model, as
    published: temporal attention copied from the spatial one, temporal_fc and time embedding zero; a joint MViT starts
    a divided one, whose attention along time begins mute. A dense file also fills a model with other attention
    operators or skipped blocks: what dense attention does not have keeps its initial value, and the report names it;
    with `allow_new_layers=False`, as for an evaluation, that is an error.

    The settings that a file says of its training are compared with the model, and with `data`, the settings in use as
    `describe_data` returns them. Differences are one logged warning, and the report's `departures`. `trust` loads
    pickles that run code. `ema` takes averaged weights: "auto" if there are any.

    Raises CheckpointError, before anything is changed, that names the tensors or sizes which do not fit.
    """
    file = read_weight_file(path, trust=trust, ema=ema)
    head: Head = "may_differ" if allow_new_head else "keep"
    return _fill(model, file, head, file_grid, allow_resize, allow_new_layers, data)


def load_imagenet_vit(
    model: nn.Module, source: str | os.PathLike[str], *, file_grid: tuple[int, int] | None = None, trust: bool = False
) -> LoadReport:
    """Start a TimeSformer from an image ViT: a local file, or "timm:NAME", which timm fetches; its head is left out.

    Raises CheckpointError where timm can't fetch it, or the file is no plain ViT with a class token of these sizes.
    """
    name = str(source)
    if not name.startswith("timm:"):
        file = read_weight_file(source, trust=trust)
    else:
        timm = import_timm()
        try:
            vit = timm.create_model(name.removeprefix("timm:"), pretrained=True, num_classes=0)
        except (OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"timm can't provide {name} ({str(error).splitlines()[0]}): give a name of timm.list_pretrained(), or "
                "fetch the weights where there is a network and give the path of the .safetensors or .pth file"
            ) from error
        file = WeightFile(name, vit.state_dict())
    with naming_file(name):
        family = find_family(file.tensors)
        if family != "vit":
            raise CheckpointError(f"expected an image ViT, got a {family} video model; load_weights loads those")
    return _fill(model, file, "new", file_grid, allow_resize=True)


def from_checkpoint(
    path: str | os.PathLike[str], *, num_heads: int | None = None, clip_size: tuple[int, int, int] | None = None,
    attention_type: str | None = None, trust: bool = False, ema: bool | Literal["auto"] = "auto", **overrides: Any,
) -> nn.Module:  # fmt: skip
    """The model that a file describes, with its weights, in eval mode.

    A training checkpoint of ours says everything; other files leave some of it open, and what is missing is asked for
    by name in a CheckpointError: num_heads unless the width is a standard one, clip_size where the crop is not square
    or there is no time embedding, operators in our bare files. Given values take precedence; `overrides` are further
    arguments of the model. What was loaded, and what was assumed, is logged.
    """
    file = read_weight_file(path, trust=trust, ema=ema)
    given = {"num_heads": num_heads, "clip_size": clip_size, "attention_type": attention_type, **overrides}
    given = {name: value for name, value in given.items() if value is not None}
    build: Any = TimeSformer
    notes: list[str] = []
    with naming_file(file.source):
        family = find_family(file.tensors)
        if family == "videoattn" and file.cfg is not None:
            build, said = parse_description(file.cfg)
            arguments = {**said, **given}
        elif family in MVIT_FAMILIES:
            if num_heads is not None:
                raise CheckpointError("the file holds an MViT, whose numbers of heads it tells: expected no num_heads")
            build, arguments = MViT, mvit_arguments(file, family, given, notes)
        elif holds_mvit(file.tensors, family):
            raise CheckpointError("the file does not say how its MViT pools: build the model and use load_weights")
        else:
            arguments = timesformer_arguments(file, family, given, notes)
        with torch_seed(0):  # initial values are overwritten; the caller's generator stays untouched
            model: nn.Module = build(**arguments)
    report = _fill(model, file, "keep", None, allow_resize="clip_size" in given)
    report.notes += notes
    logger.info("%s", report)
    return model.eval()


def save_weights(
    state: Mapping[str, Tensor], path: str | os.PathLike[str], family: Family = "videoattn", *,
    num_heads: int | None = None, clip_size: tuple[int, int, int] | None = None, cfg: str | None = None,
) -> None:  # fmt: skip
    """Write a model's state dict in a family's names and row order, whole or not at all.

    The ending chooses safetensors, or {"model_state": ...} for .pyth, .pt, .pth; .pyth of "timesformer" carries the
    prefix "model." that its own code expects. `num_heads` is needed for a TimeSformer in another family's names; it,
    `clip_size` and the YAML text `cfg` are noted in the file for `from_checkpoint`. Raises OSError naming a file that
    can't be written.
    """
    if family != "videoattn" and holds_mvit(state, "videoattn") != (family in MVIT_FAMILIES):
        held, wanted = ("an MViT", "TimeSformers or ViTs") if family not in MVIT_FAMILIES else ("no MViT", "MViTs")
        raise CheckpointError(f"{family} names the tensors of {wanted}, and these are of {held}")
    if family in MVIT_FAMILIES:
        tensors = mvit_from_ours(state, family)
    elif family != "videoattn" and num_heads is None:
        raise ValueError(f"num_heads is needed to order the rows of qkv for {family}")
    else:
        tensors = from_ours(state, family, num_heads or 1)
    if family == "timesformer" and str(path).endswith(".pyth"):
        tensors = {f"model.{name}": value for name, value in tensors.items()}
    notes = {
        "num_heads": None if num_heads is None else str(num_heads),
        "clip_size": None if clip_size is None else "x".join(map(str, clip_size)),
        "cfg": cfg,
    }
    write_weight_file(tensors, path, {name: text for name, text in notes.items() if text is not None})


def _fill(
    model: nn.Module, file: WeightFile, head: Head, file_grid: tuple[int, int] | None, allow_resize: bool,
    allow_new_layers: bool = True, data: Description | None = None,
) -> LoadReport:  # fmt: skip
    if isinstance(model, Baseline):
        return _fill_baseline(model, file, head, data)
    if not isinstance(model, (TimeSformer, MViT)):
        raise ValueError(f"weights are loaded into models of this package, got {type(model).__name__}")
    with naming_file(file.source):
        report = LoadReport(file.source, find_family(file.tensors), file.ema, class_names=file.class_names)
        if holds_mvit(file.tensors, report.family) != isinstance(model, MViT):
            held = "a TimeSformer or an image ViT" if isinstance(model, MViT) else "an MViT"
            raise CheckpointError(f"the file holds {held}; the model is a {type(model).__name__}")
        if isinstance(model, MViT):
            state = fit_mvit(model, file, report, head, allow_resize)
        else:
            state = fit_timesformer(model, file, report, head, file_grid, allow_resize)
        if not allow_new_layers:
            refuse_new_layers(report)
    model.load_state_dict(state)
    special = {*report.resized, *report.initialised}
    report.loaded = [name for name in state if name not in special]
    _compare_settings(report, file, model, data)
    return report


def _compare_settings(report: LoadReport, file: WeightFile, model: nn.Module, data: Description | None) -> None:
    """Note in the report, and warn, where the file's own settings differ from those in use."""
    report.departures = find_departures(file, model, data)
    if report.departures:
        logger.warning("%s: %s", file.source, format_departures(report.departures))


def _fill_baseline(model: Baseline, file: WeightFile, head: Head, data: Description | None) -> LoadReport:
    """Fill one of pytorchvideo's networks from a file of ours or of theirs, by the names that it has there."""
    report = LoadReport(file.source, "pytorchvideo", file.ema, class_names=file.class_names)
    target = model.network.state_dict()
    state = {name.removeprefix("network."): value for name, value in file.tensors.items()}
    if head == "may_differ":
        others = [n for n, v in target.items() if n in state and state[n].shape != v.shape and ".proj." in n]
        report.dropped += others
        report.initialised += others
        state |= {name: target[name] for name in others}
    with naming_file(file.source):
        model.network.load_state_dict(complete(state, target))
    report.loaded = [name for name in target if name not in report.initialised]
    _compare_settings(report, file, model, data)
    return report
