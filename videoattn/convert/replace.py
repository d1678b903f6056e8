"""Exchange the attention inside a model that exists already, and put back what was there.

Knows timm's VisionTransformer, transformers' TimeSformer, ViViT and VideoMAE, and this package's TimeSformer.
Tested with timm 1.0.3 and 1.0.31, transformers 5.0.0, 5.5.0 and 5.23.0.
"""

import difflib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from videoattn.convert.sites import ConvertedAttention, Slot, find_slots, refuse_weights
from videoattn.grid import Axis
from videoattn.layers.attention import BuildOperator
from videoattn.operators import OPERATORS, AttentionOperator, AttentionSite
from videoattn.operators.options import options_of

logger = logging.getLogger(__name__)

OperatorChoice = str | Mapping[str, Any] | BuildOperator
# attributes of a converted module and of a model that must refuse a request for attention weights
ORIGINAL, GUARD = "videoattn_original", "videoattn_guard"


@dataclass(frozen=True)
class Replacement:
    """One attention module: its path in the model, and the classes that mixed before and after."""

    path: str
    axis: Axis
    site: AttentionSite
    before: str
    after: str


@dataclass(frozen=True)
class ConversionReport:
    """What `convert` or `restore` replaced; as text, a line for each kind of site.

    `new_parameters` names the operators' parameters by their path in the model: an optimizer made before does not hold
    them.
    """

    title: str
    replacements: tuple[Replacement, ...]
    new_parameters: tuple[str, ...] = ()

    def __str__(self) -> str:
        blocks: dict[tuple[Any, ...], list[int]] = {}
        for item in self.replacements:
            layer = item.site.layer
            path = ".".join("*" if part == str(layer) else part for part in item.path.split("."))
            alike = (item.axis, item.before, item.after, replace(item.site, layer=0), path)
            blocks.setdefault(alike, []).append(layer)
        text = f"{self.title}: {len(self.replacements)} attention modules"
        for (axis, before, after, site, path), layers in blocks.items():
            grid, where = site.q_grid, f"{axis.value}, blocks {as_ranges(layers)}"
            text += (
                f"\n  {where}: {before} -> {after} on {grid.t}x{grid.h}x{grid.w} patches and {grid.prefix} prefix "
                f"tokens, {site.num_heads} heads of {site.head_dim}, in {path}"
            )
        if self.new_parameters:
            first, *more = self.new_parameters
            text += f"\n  new parameters, for an optimizer to take: {first}" + f" and {len(more)} more" * bool(more)
        return text


@dataclass(frozen=True)
class Original:
    """What a converted module was: its class, its operator where it had one, and the place of its weights then."""

    axis: Axis
    kind: type[nn.Module]
    operator: AttentionOperator | None
    place: tuple[torch.device, torch.dtype]


def convert(
    model: nn.Module,
    *,
    space: OperatorChoice | None = None,
    time: OperatorChoice | None = None,
    joint: OperatorChoice | None = None,
    layers: Iterable[int] | None = None,
    verbose: bool = True,
) -> ConversionReport:
    """Put an attention operator into `model`, in place, along each axis that is given one; returns what was replaced.

    An operator is a name ("fibonacci"), a dict with a name and options ({"name": "fibonacci", "variant": "wythoff"}),
    or a callable that takes an `AttentionSite`: a class or a `functools.partial` of one. `layers` are the blocks to
    convert, counted from 0; by default all that attend. Image models attend along space, ViViT and VideoMAE jointly,
    TimeSformer as it is configured. `model` may be such a model or hold one. With `verbose` the report is printed,
    else it is logged.

    Modules and parameters stay the same objects, with the keys they have in `state_dict`. An operator that has
    parameters adds keys `<path of the attention>.operator.<name>`; a model of this package has its operators there
    anyway. Weights are loaded into a converted model of the same kind: `convert` first, then `load_state_dict`.

    Differs: no attention weights are formed, so `output_attentions=True` raises ValueError, and so do masks.

    Raises ValueError, leaving the model as it was, for a model or attention that is not known, an axis that the model
    lacks, attention converted already (`restore` first), dropout of attention weights, and sites that an operator
    refuses.
    """
    choices = {Axis.SPACE: space, Axis.TIME: time, Axis.JOINT: joint}
    builders = {axis: bind_operator(choice, axis) for axis, choice in choices.items() if choice is not None}
    if not builders:
        raise ValueError("convert expects an operator for at least one of space, time, joint")
    base, slots = find_slots(model)
    paths = {module: path for path, module in model.named_modules()}
    chosen = choose_slots(slots, set(builders), layers, type(base).__name__)
    for slot in chosen:
        if hasattr(slot.module, ORIGINAL):
            raise ValueError(f"{paths[slot.module]} is converted already; call videoattn.restore first")
    # all operators are built before any is installed, so that a refusal leaves the model as it was
    operators = [build_operator(builders[slot.axis], slot) for slot in chosen]
    replacements, new_parameters = [], []
    for slot, operator in zip(chosen, operators, strict=True):
        path, before = paths[slot.module], mixer_name(slot.module)
        install(operator, slot)
        replacements.append(Replacement(path, slot.axis, slot.site, before, mixer_name(slot.module)))
        new_parameters += [f"{path}.operator.{name}" for name, _ in operator.named_parameters()]
    if any(slot.stand_in and slot.stand_in.weights_collected_outside for slot in chosen) and not hasattr(base, GUARD):
        setattr(base, GUARD, base.register_forward_pre_hook(_refuse_weights_if_asked, with_kwargs=True))
    title = f"converted {type(model).__name__}"
    return announce(ConversionReport(title, tuple(replacements), tuple(new_parameters)), verbose)


def restore(model: nn.Module, *, verbose: bool = True) -> ConversionReport:
    """Undo every `convert` within `model`, in place; returns what was put back.

    Modules are the same objects as before, and weights keep what they have learned while converted; parameters of
    operators that `convert` brought go with them. Raises ValueError where nothing is converted.
    """
    replacements = []
    for path, module in list(model.named_modules()):
        if (original := vars(module).get(ORIGINAL)) is not None:
            site, before = module.operator.site, mixer_name(module)
            uninstall(module)
            replacements.append(Replacement(path, original.axis, site, before, mixer_name(module)))
        if (guard := vars(module).get(GUARD)) is not None:
            guard.remove()
            delattr(module, GUARD)
    if not replacements:
        raise ValueError(f"nothing to restore: no attention of this {type(model).__name__} is converted")
    return announce(ConversionReport(f"restored {type(model).__name__}", tuple(replacements)), verbose)


def bind_operator(choice: OperatorChoice, axis: Axis) -> BuildOperator:
    """An operator choice as a callable that takes a site. Raises ValueError naming the axis and what is expected."""
    if isinstance(choice, str):
        choice = {"name": choice}
    if isinstance(choice, Mapping):
        options = {key: value for key, value in choice.items() if key != "name"}
        name = choice.get("name")
        if name not in OPERATORS:
            raise ValueError(f"{axis.value} expects the name of an operator ({', '.join(OPERATORS)}), got {name!r}")
        known = list(options_of(OPERATORS[name]))
        for option in options:
            if option not in known:
                nearest = difflib.get_close_matches(str(option), known, n=1)
                raise ValueError(
                    f"{axis.value}: {option!r} is not an option of {name} (options: {', '.join(known) or 'none'})"
                    + (f"; did you mean {nearest[0]!r}?" if nearest else "")
                )
        return partial(OPERATORS[name], **options)
    if callable(choice) and not isinstance(choice, nn.Module):
        return choice
    raise ValueError(
        f"{axis.value} expects an operator's name, a dict with its name and options, or a callable that takes a site, "
        f"got {choice!r}"
    )


def choose_slots(slots: list[Slot], axes: set[Axis], layers: Iterable[int] | None, model: str) -> list[Slot]:
    """The slots along `axes` in blocks `layers`. Raises ValueError naming axes and blocks that the model lacks."""
    present = [axis for axis in Axis if any(slot.axis is axis for slot in slots)]
    if lacking := [axis.value for axis in Axis if axis in axes and axis not in present]:
        raise ValueError(
            f"{model} attends along {' and '.join(axis.value for axis in present)} alone, got an operator for "
            f"{' and '.join(lacking)}"
        )
    chosen = [slot for slot in slots if slot.axis in axes]
    if layers is None:
        return chosen
    wanted = set(layers)
    for axis in axes:
        attending = [slot.layer for slot in chosen if slot.axis is axis]
        if not wanted or not wanted.issubset(attending):
            raise ValueError(
                f"layers expects blocks of {model} that attend along {axis.value}, {as_ranges(attending)}, got "
                f"{sorted(wanted)}"
            )
    return [slot for slot in chosen if slot.layer in wanted]


def build_operator(builder: BuildOperator, slot: Slot) -> AttentionOperator:
    """The operator for a slot, with the device, type and mode of the attention's weights."""
    device, dtype = place_of(slot.module)
    with device:
        operator = builder(slot.site)
    if not isinstance(operator, AttentionOperator):
        raise ValueError(f"{slot.axis.value} expects a callable that makes an AttentionOperator, got {operator!r}")
    if getattr(slot.module, "hand_on", None) == "weights" and not operator.forms_weights:
        raise ValueError(f"block {slot.layer + 1} reuses attention weights, which {type(operator).__name__} lacks")
    return operator.to(device, dtype).train(slot.module.training)


def place_of(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    weight = next(weight for weight in module.parameters() if weight.is_floating_point())
    return weight.device, weight.dtype


def install(operator: AttentionOperator, slot: Slot) -> None:
    module = slot.module
    original = Original(slot.axis, type(module), getattr(module, "operator", None), place_of(module))
    setattr(module, ORIGINAL, original)
    if slot.stand_in is not None:
        # transformers 5.0 leaves the class's own forward on modules once it has collected outputs
        vars(module).pop("forward", None)
        module.__class__ = slot.stand_in
    module.operator = operator


def uninstall(module: nn.Module) -> None:
    original: Original = getattr(module, ORIGINAL)
    delattr(module, ORIGINAL)
    module.__class__ = original.kind
    if original.operator is None:
        del module.operator
        return
    if (place := place_of(module)) != original.place:  # the model was moved without it
        original.operator.to(*place)
    module.operator = original.operator.train(module.training)


def mixer_name(module: nn.Module) -> str:
    return type(getattr(module, "operator", module)).__name__


def _refuse_weights_if_asked(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Where the library collects attention weights around the attention modules, which then hear nothing of it."""
    asked = kwargs.get("output_attentions")
    if asked is None:
        asked = getattr(model.config, "output_attentions", False)
    if asked and any(isinstance(module, ConvertedAttention) for module in model.modules()):
        refuse_weights()


def announce(report: ConversionReport, verbose: bool) -> ConversionReport:
    if verbose:
        print(report)
    else:
        logger.info("%s", report)
    return report


def as_ranges(numbers: Iterable[int]) -> str:
    """Numbers as text, neighbours joined: 0-2, 5."""
    ranges: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
