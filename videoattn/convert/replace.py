"""Replace the attention inside an existing model, and revert it.

Supports timm's VisionTransformer, transformers' TimeSformer, ViViT, VideoMAE and V-JEPA 2 (of the last also the pooler,
passed by itself), and this package's transformers.
Tested with timm 1.0.3 and 1.0.31, transformers 5.0.0, 5.5.0 and 5.23.0.
"""

import difflib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from operator import index
from typing import Any

import torch
from torch import nn

from videoattn.convert.sites import Slot, find_slots
from videoattn.convert.stand_ins import ReplacedAttention, refuse_weights
from videoattn.grid import Axis
from videoattn.layers.attention import BuildOperator
from videoattn.operators import OPERATORS, AttentionOperator, AttentionSite, keep_heads_dense
from videoattn.operators.options import options_of

logger = logging.getLogger(__name__)

OperatorChoice = str | Mapping[str, Any] | BuildOperator
# attributes of a module whose attention is replaced, and of a model that must refuse to return attention weights
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
class ReplacementReport:
    """The modules that `replace_attention` or `revert_attention` changed; as text, one line per type of site.

    `new_parameters` lists the paths of the operators' parameters in the model. An optimizer that was built before does
    not hold them.
    """

    title: str
    replacements: tuple[Replacement, ...]
    new_parameters: tuple[str, ...] = ()

    def __str__(self) -> str:
        groups: dict[tuple[Any, ...], list[int]] = {}
        for item in self.replacements:
            block = item.site.block
            path = ".".join("*" if part == str(block) else part for part in item.path.split("."))
            alike = (item.axis, item.before, item.after, replace(item.site, block=0), path)
            groups.setdefault(alike, []).append(block)
        text = f"{self.title}: {len(self.replacements)} attention modules"
        for (axis, before, after, site, path), blocks in groups.items():
            grid, where = site.q_grid, f"{axis.value}, blocks {as_ranges(blocks)}"
            text += (
                f"\n  {where}: {before} -> {after} on {grid.t}x{grid.h}x{grid.w} patches and {grid.prefix} prefix "
                f"tokens, {site.num_heads} heads of {site.head_dim}, in {path}"
            )
        if self.new_parameters:
            first, *more = self.new_parameters
            text += f"\n  new parameters to add to the optimizer: {first}" + f" and {len(more)} more" * bool(more)
        return text


@dataclass(frozen=True)
class Original:
    """The former state of a module: its class, its operator if it had one, and the device and type of its weights."""

    axis: Axis
    module_class: type[nn.Module]
    operator: AttentionOperator | None
    place: tuple[torch.device, torch.dtype]


def replace_attention(
    model: nn.Module,
    *,
    space: OperatorChoice | None = None,
    time: OperatorChoice | None = None,
    joint: OperatorChoice | None = None,
    blocks: Iterable[int] | None = None,
    verbose: bool = True,
) -> ReplacementReport:
    """Replace the attention of `model` in place, along each axis for which an operator is given. Return a report.

    An operator is a name ("fibonacci"), a dict with a name and options ({"name": "fibonacci", "variant": "wythoff"}),
    or a callable that accepts an `AttentionSite`: a class or a `functools.partial` of one. In a dict, "dense_heads"
    lists heads that stay dense as (block, head), both counted from 0. `blocks` are the indices of the blocks to change,
    counted from 0; by default all that attend. Image models attend along space, ViViT,
    VideoMAE and V-JEPA 2 jointly, TimeSformer as it is configured. `model` may be such a model or contain one. With
    `verbose` the report is printed, else it is logged.

    Modules and parameters stay the same objects, with the same keys in `state_dict`. An operator that has parameters
    adds keys `<path of the attention>.operator.<name>`; a model of this package has them anyway. To load weights that
    were saved after a replacement, call `replace_attention` first, then `load_state_dict`.

    Differs: no attention weights are computed, so `output_attentions=True` raises ValueError, and so do masks.

    Raises ValueError, and leaves the model unchanged, for an unknown model or attention, an axis that the model lacks,
    attention that is already replaced (call `revert_attention` first), dropout of attention weights, and sites that an
    operator refuses.
    """
    choices = {Axis.SPACE: space, Axis.TIME: time, Axis.JOINT: joint}
    builders = {axis: bind_operator(choice, axis) for axis, choice in choices.items() if choice is not None}
    if not builders:
        raise ValueError("replace_attention expects an operator for at least one of space, time, joint")
    base, slots = find_slots(model)
    paths = {module: path for path, module in model.named_modules()}
    chosen = choose_slots(slots, set(builders), blocks, type(base).__name__)
    for axis, choice in choices.items():
        pairs = choice.get("dense_heads", ()) if isinstance(choice, Mapping) else ()
        replaced = {slot.block for slot in chosen if slot.axis is axis}
        if outside := sorted({block for block, _ in pairs} - replaced):
            raise ValueError(f"{axis.value}: dense_heads names blocks {outside}, which are not replaced")
    for slot in chosen:
        if hasattr(slot.module, ORIGINAL):
            raise ValueError(f"{paths[slot.module]} is already replaced; call videoattn.revert_attention first")
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
    title = f"replaced attention of {type(model).__name__}"
    return announce(ReplacementReport(title, tuple(replacements), tuple(new_parameters)), verbose)


def revert_attention(model: nn.Module, *, verbose: bool = True) -> ReplacementReport:
    """Undo every `replace_attention` within `model`, in place. Return a report.

    Modules are the same objects as before, and weights keep what they have learned since; the parameters of the
    operators that `replace_attention` added are removed. Raises ValueError if no attention is replaced.
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
        raise ValueError(f"nothing to revert: no attention of this {type(model).__name__} is replaced")
    return announce(ReplacementReport(f"reverted attention of {type(model).__name__}", tuple(replacements)), verbose)


def bind_operator(choice: OperatorChoice, axis: Axis) -> BuildOperator:
    """Return an operator choice as a callable that accepts a site. Raises ValueError naming the axis."""
    if isinstance(choice, str):
        choice = {"name": choice}
    if isinstance(choice, Mapping):
        options = {key: value for key, value in choice.items() if key not in ("name", "dense_heads")}
        name = choice.get("name")
        if name not in OPERATORS:
            hint = " (keys are in small letters: name)" if "NAME" in choice else ""
            raise ValueError(
                f"{axis.value} expects the name of an operator ({', '.join(OPERATORS)}), got {name!r}{hint}"
            )
        known = list(options_of(OPERATORS[name]))
        for option in options:
            if option not in known:
                nearest = difflib.get_close_matches(str(option), known, n=1)
                raise ValueError(
                    f"{axis.value}: {option!r} is not an option of {name} (options: {', '.join(known) or 'none'})"
                    + (f"; did you mean {nearest[0]!r}?" if nearest else "")
                )
        build = partial(OPERATORS[name], **options)
        return keep_heads_dense(build, read_dense_heads(choice.get("dense_heads", ()), axis))
    if callable(choice) and not isinstance(choice, nn.Module):
        return choice
    raise ValueError(
        f"{axis.value} expects an operator's name, a dict with its name and options, or a callable of a site, "
        f"got {choice!r}"
    )


def read_dense_heads(pairs: Any, axis: Axis) -> list[tuple[int, int]]:
    """Return pairs of a block and a head. Raises ValueError for anything else."""
    try:
        return [(index(block), index(head)) for block, head in pairs]
    except (TypeError, ValueError):
        raise ValueError(f"{axis.value}: dense_heads expects pairs (block, head), got {pairs!r}") from None


def choose_slots(slots: list[Slot], axes: set[Axis], blocks: Iterable[int] | None, model: str) -> list[Slot]:
    """Return the slots along `axes` in `blocks`. Raises ValueError naming axes and blocks that the model lacks."""
    present = [axis for axis in Axis if any(slot.axis is axis for slot in slots)]
    if lacking := [axis.value for axis in Axis if axis in axes and axis not in present]:
        raise ValueError(
            f"{model} attends along {' and '.join(axis.value for axis in present)} alone, got an operator for "
            f"{' and '.join(lacking)}"
        )
    chosen = [slot for slot in slots if slot.axis in axes]
    if blocks is None:
        return chosen
    wanted = set(blocks)
    for axis in axes:
        attending = [slot.block for slot in chosen if slot.axis is axis]
        if not wanted or not wanted.issubset(attending):
            raise ValueError(
                f"blocks expects blocks of {model} that attend along {axis.value}, {as_ranges(attending)}, got "
                f"{sorted(wanted)}"
            )
    return [slot for slot in chosen if slot.block in wanted]


def build_operator(builder: BuildOperator, slot: Slot) -> AttentionOperator:
    """Build the operator for a slot, with the device, type and mode of the attention's weights."""
    device, dtype = place_of(slot.module)
    with device:
        operator = builder(slot.site)
    if not isinstance(operator, AttentionOperator):
        raise ValueError(f"{slot.axis.value} expects a callable that makes an AttentionOperator, got {operator!r}")
    if getattr(slot.module, "carry", None) == "weights" and not operator.forms_weights:
        raise ValueError(f"block {slot.block + 1} reuses attention weights, which {type(operator).__name__} lacks")
    operator.load_state_dict(operator.dense_start(), strict=False)
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
    if isinstance(module, ReplacedAttention):
        module.set_up()


def uninstall(module: nn.Module) -> None:
    original: Original = getattr(module, ORIGINAL)
    installed: Any = module.operator
    delattr(module, ORIGINAL)
    if isinstance(module, ReplacedAttention):
        module.take_down()
    module.__class__ = original.module_class
    if original.operator is None:
        del module.operator
        return
    operator, place = original.operator, place_of(module)
    if operator.site != installed.site:  # a view for clips of another size
        with place[0]:
            operator = operator.planned_for(installed.site)
    if place != original.place or operator is not original.operator:  # the model was moved without it
        operator.to(*place)
    module.operator = operator.train(module.training)


def mixer_name(module: nn.Module) -> str:
    return type(getattr(module, "operator", module)).__name__


def _refuse_weights_if_asked(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise ValueError if attention weights are requested from a library that collects them outside the modules."""
    asked = kwargs.get("output_attentions")
    if asked is None:
        asked = getattr(getattr(model, "config", None), "output_attentions", False)  # a part has none
    if asked and any(isinstance(module, ReplacedAttention) for module in model.modules()):
        refuse_weights()


def announce(report: ReplacementReport, verbose: bool) -> ReplacementReport:
    if verbose:
        print(report)
    else:
        logger.info("%s", report)
    return report


def as_ranges(numbers: Iterable[int]) -> str:
    """Format numbers as text, with neighbours joined: 0-2, 5."""
    ranges: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
