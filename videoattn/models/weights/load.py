"""Weights between files and models: every tensor of the file used, every tensor of the model filled, or named."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from videoattn.compat import import_timm
from videoattn.layers.attention import count_heads
from videoattn.models.build import parse_description
from videoattn.models.mvit.names import mvit_from_ours, mvit_to_ours
from videoattn.models.registry import (
    adapter_of,
    find_family,
    find_model_type,
    is_model_name,
    list_families,
    list_model_types,
    unknown_names,
)
from videoattn.models.timesformer.names import from_ours, to_ours
from videoattn.models.weights.adapter import FitOptions
from videoattn.models.weights.departures import Description, find_departures, format_departures
from videoattn.models.weights.files import (
    OURS,
    CheckpointError,
    Family,
    WeightFile,
    naming_file,
    read_weight_file,
    some_names,
    write_weight_file,
)
from videoattn.models.weights.report import LoadReport, refuse_missing_parts, refuse_new_encoder, refuse_new_layers
from videoattn.models.weights.transformers_folder import check_model_type
from videoattn.seeding import torch_seed

__all__ = [
    "CheckpointError",
    "LoadReport",
    "count_heads",
    "find_family",
    "from_checkpoint",
    "from_ours",
    "list_families",
    "load_encoder",
    "load_imagenet_vit",
    "load_weights",
    "mvit_from_ours",
    "mvit_to_ours",
    "save_weights",
    "to_ours",
]

logger = logging.getLogger(__name__)


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], *, allow_new_head: bool = False, allow_resize: bool = False,
    file_grid: tuple[int, int] | None = None, trust: bool = False, ema: bool | Literal["auto"] = "auto",
    allow_new_layers: bool = True, data: Description | None = None, probe: str | os.PathLike[str] | None = None,
) -> LoadReport:  # fmt: skip
    """Fill a model from a file of ours, or one that was made elsewhere.

    A TimeSformer accepts files of its release, of transformers, and of image ViTs, an MViT those of SlowFast,
    torchvision and pytorchvideo. `allow_resize` resizes positions that were learned for clips of another size;
    `file_grid` is then the file's (h, w) in patches where a TimeSformer's tensors leave that open. `allow_new_head` is
    for fine-tuning: a head for other classes is left as it is, and a file without time starts a video model, as
    published: temporal attention copied from the spatial one, temporal_fc and time embedding zero; a joint MViT starts
    a divided one, whose temporal_fc is zero-initialised, so that attention along time has no effect at the start. A
    dense file also fills a model with other attention operators or skipped blocks: what dense attention does not have
    keeps its initial value, and the report names it; with `allow_new_layers=False`, as for an evaluation, that is an
    error.

    The settings that a file says of its training are compared with the model, and with `data`, the settings in use as
    `describe_data` returns them. Differences are one logged warning, and the report's `departures`. `trust` loads
    pickles that run code. `ema` chooses averaged weights; "auto": if there are any.

    Raises CheckpointError, before anything is changed, that names the tensors or sizes which do not fit.
    """
    file = _read(path, probe, trust, ema)
    options = FitOptions("may_differ" if allow_new_head else "keep", file_grid, allow_resize)
    return _fill(model, file, options, None if allow_new_layers else refuse_new_layers, data)


def load_encoder(
    model: nn.Module, path: str | os.PathLike[str], *, allow_resize: bool = False, data: Description | None = None
) -> LoadReport:
    """Fill all of a model but its head and probe, which keep their initial values, whatever the file has there.

    Raises CheckpointError, before anything is changed, where the file does not fill the whole encoder.
    """
    file = read_weight_file(path)
    probe = [name for name in file.tensors if name.startswith("pooler.")]
    file = replace(file, tensors={name: value for name, value in file.tensors.items() if name not in probe})
    report = _fill(model, file, FitOptions("new", allow_resize=allow_resize), refuse_new_encoder, data)
    report.dropped += probe
    return report


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
            raise CheckpointError(f"expected an image ViT, got a {family} video model; use load_weights for it")
    return _fill(model, file, FitOptions("new", file_grid, allow_resize=True))


def from_checkpoint(
    path: str | os.PathLike[str], *, num_heads: int | None = None, clip_size: tuple[int, int, int] | None = None,
    attention_type: str | None = None, trust: bool = False, ema: bool | Literal["auto"] = "auto",
    probe: str | os.PathLike[str] | None = None, file_grid: tuple[int, int] | None = None, **overrides: Any,
) -> nn.Module:  # fmt: skip
    """Return the model that a file describes, with its weights, in eval mode.

    A training checkpoint of ours says everything; other files leave some of it open, and what is missing is asked for
    by name in a CheckpointError: num_heads unless the width is a standard one, clip_size where the crop is not square
    or there is no time embedding, operators in our bare files. Given values take precedence; `overrides` are further
    arguments of the model. With another `clip_size` than the file's, any that patches divide, learned positions are
    resized; `file_grid` is the file's (h, w) in patches where that can't be told. What was loaded, and what was
    assumed, is logged.
    """
    file = _read(path, probe, trust, ema)
    given = {"num_heads": num_heads, "clip_size": clip_size, "attention_type": attention_type, **overrides}
    given = {name: value for name, value in given.items() if value is not None}
    notes: list[str] = []
    with naming_file(file.source):
        found = find_model_type(file.tensors)
        check_model_type(file, None if found is None else found[1])
        if found is None and not is_model_name(file.settings.get("model_name")):
            raise unknown_names(file.tensors)
        if found is None or (found[1] == OURS and file.cfg is not None):
            described, said = parse_description(file.cfg or "")
            build, arguments = described.build, {**said, **given}
        else:
            spec, family = found
            build, arguments = spec.model, spec.adapter.arguments(file, family, given, notes)
        with torch_seed(0):  # initial values are overwritten; the caller's generator stays untouched
            model = build(**arguments)
    report = _fill(model, file, FitOptions(file_grid=file_grid, allow_resize="clip_size" in given))
    report.notes += notes
    logger.info("%s", report)
    return model.eval()


def save_weights(
    state: Mapping[str, Tensor], path: str | os.PathLike[str], family: Family = "videoattn", *,
    num_heads: int | None = None, clip_size: tuple[int, int, int] | None = None, cfg: str | None = None,
    arguments: Mapping[str, Any] | None = None, class_names: Sequence[str] | None = None,
) -> None:  # fmt: skip
    """Write a model's state dict in a family's names and row order, whole or not at all.

    The ending chooses safetensors, or {"model_state": ...} for .pyth, .pt, .pth; .pyth of "timesformer" carries the
    prefix "model." that its own code expects. `num_heads` is needed for a TimeSformer in another family's names; it,
    `clip_size`, the YAML text `cfg`, the `arguments` of a video ViT and `class_names` are noted in the file for
    `from_checkpoint`. Raises OSError naming a file that can't be written.
    """
    tensors = dict(state)
    if family != OURS:
        writers = [spec for spec in list_model_types() if family in spec.adapter.families]
        if not writers:
            raise ValueError(f"family expects one of {', '.join(list_families())}, got {family!r}")
        held = find_model_type(state)
        spec = writers[0] if held is None else held[0]
        if not any(spec is writer for writer in writers):
            named = " or ".join(writer.adapter.held for writer in writers)
            raise CheckpointError(f"{family} names the tensors of {named}, and these are of {spec.adapter.held}")
        tensors = spec.adapter.from_ours(state, family, num_heads)
    if family == "timesformer" and os.path.splitext(path)[1] == ".pyth":
        tensors = {f"model.{name}": value for name, value in tensors.items()}
    notes = {
        "num_heads": None if num_heads is None else str(num_heads),
        "clip_size": None if clip_size is None else "x".join(map(str, clip_size)),
        "cfg": cfg,
        "arguments": None if arguments is None else json.dumps(arguments),
        "class_names": None if class_names is None else json.dumps(list(class_names)),
    }
    write_weight_file(tensors, path, {name: text for name, text in notes.items() if text is not None})


def _read(
    path: str | os.PathLike[str], probe: str | os.PathLike[str] | None, trust: bool, ema: bool | Literal["auto"]
) -> WeightFile:
    """Read a file, and the file of a probe on its features, as one."""
    file = read_weight_file(path, trust=trust, ema=ema)
    if probe is None:
        return file
    other = read_weight_file(probe, trust=trust)
    both = sorted(file.tensors.keys() & other.tensors.keys())
    if both:
        raise CheckpointError(f"{probe}: expected a probe for {path}, and both files hold {some_names(both)}")
    return replace(file, source=f"{file.source} with {other.source}", tensors={**file.tensors, **other.tensors})


def _fill(
    model: nn.Module, file: WeightFile, options: FitOptions, check: Callable[[LoadReport], None] | None = None,
    data: Description | None = None,
) -> LoadReport:  # fmt: skip
    adapter = adapter_of(model)
    with naming_file(file.source):
        family = adapter.find_family(list(file.tensors)) if adapter.families else OURS
        if adapter.families:
            check_model_type(file, family)
        if family is None:
            other = find_model_type(file.tensors)
            if other is None:
                raise unknown_names(file.tensors)
            raise CheckpointError(f"the file holds {other[0].adapter.held}; the model is a {type(model).__name__}")
        report = LoadReport(file.source, family, file.ema, class_names=file.class_names)
        state = adapter.fit(model, file, report, options)
        if check is not None:
            check(report)
        report.departures = find_departures(file, model, data)
        refuse_missing_parts(report)
    model.load_state_dict(state)
    special = {*report.resized, *report.initialised}
    report.loaded = [name for name in state if name not in special]
    if report.departures:
        logger.warning("%s: %s", file.source, format_departures(report.departures))
    return report
