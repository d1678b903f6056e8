"""A report of every tensor when weights are loaded, and the check that none is left over."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from videoattn.models.weights.files import CheckpointError, Family, some_names


class Departure(NamedTuple):
    """A setting whose value differs: `checkpoint` is the value that the weights were trained with, `here` is in use."""

    key: str
    checkpoint: str
    here: str

    def __str__(self) -> str:
        return f"{self.key}: {self.here} here, {self.checkpoint} in the checkpoint"


@dataclass
class LoadReport:
    """The treatment of each tensor, by our names; `dropped` are tensors of the file that the model does not use.

    `initialised` tensors do not come from the file as they are: a new head, or temporal weights of an image model.
    `class_names` are those of the videos that the weights were trained on, where the file says them. `departures` are
    settings that the file says of itself and that differ from those in use; None where it says none.
    """

    source: str
    family: Family
    ema: bool = False
    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    initialised: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    class_names: tuple[str, ...] | None = None
    departures: list[Departure] | None = None

    def __str__(self) -> str:
        kind = f"{self.family}, averaged weights" if self.ema else self.family
        parts = [f"{self.source} ({kind}): {len(self.loaded)} tensors loaded"]
        for what in ("resized", "initialised", "dropped"):
            names = getattr(self, what)
            parts.append(f"{len(names)} {what}" + (f": {count_names(names)}" if names else ""))
        return "; ".join(parts + self.notes)


def count_names(names: Sequence[str]) -> str:
    """Return names of tensors in short, those of different blocks as one with their number."""
    counts = Counter(_any_block(name) for name in names)
    return ", ".join(name + (f" ({n})" if n > 1 else "") for name, n in counts.items())


def _any_block(name: str) -> str:
    """Return a name with "*" for its first number, which is a block's."""
    parts = name.split(".")
    first = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    return ".".join("*" if place == first else part for place, part in enumerate(parts))


def refuse_new_layers(report: LoadReport) -> None:
    """Raise CheckpointError naming the tensors that the file does not fill, if there are any."""
    if report.initialised:
        raise CheckpointError(
            f"the model has {len(report.initialised)} tensors that the file does not fill, so they would keep random "
            f"initial values: {count_names(report.initialised)}; choose the settings that the weights were trained "
            "with, train first, or set TEST.ALLOW_NEW_LAYERS True (allow_new_layers=True) to evaluate all the same"
        )


def refuse_missing_parts(report: LoadReport) -> None:
    """Raise CheckpointError where a file lacks tensors of the attention that it says it was trained with."""
    missing = [name for name in report.initialised if ".mixers." in name]
    said = report.departures is not None and all("ATTENTION" not in departure.key for departure in report.departures)
    if missing and said:
        raise CheckpointError(
            f"the file lacks {some_names(missing)}, which a model of its own settings has: it is not whole"
        )


def keep_head(
    state: dict[str, Tensor], target: Mapping[str, Tensor], report: LoadReport, *, new: bool, sizes: str
) -> dict[str, Tensor]:
    """Return the state with its own head, or with the model's where `new`; `sizes` says of both what they have.

    Raises CheckpointError where the file's head is for other classes and no new one is wanted.
    """
    theirs, ours = state.get("head.weight"), target["head.weight"]
    if not new:
        if theirs is None or theirs.shape[0] != ours.shape[0]:
            raise CheckpointError(
                f"the classes differ (allow_new_head=True, or TRAIN.FINETUNE True, starts a new head): {sizes}"
            )
        return state
    theirs_left = [name for name in state if name.partition(".")[0] == "head"]
    started = {name: value for name, value in target.items() if name.partition(".")[0] == "head"}
    report.dropped += theirs_left
    report.initialised += started
    return {name: value for name, value in state.items() if name not in theirs_left} | started


def start_pooler(state: Mapping[str, Tensor], target: Mapping[str, Tensor], report: LoadReport) -> dict[str, Tensor]:
    """Return the state of a file without a probe with that of the model, if it has one."""
    started = {name: value for name, value in target.items() if name.startswith("pooler.") and name not in state}
    report.initialised += started
    return {**state, **started}


def refuse_new_encoder(report: LoadReport) -> None:
    """Raise CheckpointError naming tensors besides head and probe that the file does not fill.

    Norms before the head may be new: they start without an effect besides normalising.
    """
    new = [name for name in report.initialised if name.partition(".")[0] not in ("head", "pooler", "norms", "fc_norm")]
    if new:
        raise CheckpointError(
            f"MODEL.FREEZE encoder expects a file that fills the whole encoder; {len(new)} tensors would keep random "
            f"initial values: {count_names(new)}"
        )


def note_resized(
    names: Sequence[str], report: LoadReport, clip_size: tuple[int, int, int], *, allowed: bool, sizes: str
) -> None:
    """Report the position tensors that were resized to a model for clips of `clip_size`.

    Raises CheckpointError where there are some and resizing is not `allowed`; `sizes` says of both what they have.
    """
    if names and not allowed:
        permit = "allow_resize=True, or TRAIN.FINETUNE or TEST.ALLOW_RESIZE True, resizes"
        raise CheckpointError(
            f"the file is for clips of another size ({permit} {some_names(names, 3)} to {clip_size}): {sizes}"
        )
    report.resized += names


def complete(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state in the model's order.

    Raises CheckpointError naming tensors that are missing, unexpected, of another shape or type, or not finite.
    """
    problems = {
        "missing": [name for name in target if name not in state],
        "unexpected": [name for name in state if name not in target],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
            for name, value in target.items()
            if name in state and state[name].shape != value.shape
        ],
        "not finite": [
            name
            for name in target
            if name in state and state[name].is_floating_point() and not bool(state[name].isfinite().all())
        ],
        "of another type": [
            f"{name} {state[name].dtype} instead of {value.dtype}"
            for name, value in target.items()
            if name in state and state[name].is_floating_point() != value.is_floating_point()
        ],
    }
    found = [f"{len(names)} {what}: {some_names(names)}" for what, names in problems.items() if names]
    if found:
        raise CheckpointError(
            f"of the {len(target)} tensors of the model, {'; '.join(found)}: is it of another model, or other "
            "settings of MODEL or ATTENTION?"
        )
    return {name: state[name] for name in target}
