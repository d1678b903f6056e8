"""WeightAdapter: conversion between files of weights and the state of one type of model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from videoattn.models.weights.files import CheckpointError, Family, WeightFile
from videoattn.models.weights.report import LoadReport, complete

Head = Literal["keep", "may_differ", "new"]
State = dict[str, Tensor]


@dataclass(frozen=True)
class FitOptions:
    """The changes that are permitted while a file is fitted to a model.

    `head` is kept, replaced where the classes differ, or new in any case. `allow_resize` permits positions of another
    clip size, and `file_grid` is the file's (h, w) in patches where its tensors leave that open.
    """

    head: Head = "keep"
    file_grid: tuple[int, int] | None = None
    allow_resize: bool = False


def know_no_names(names: Sequence[str]) -> Family | None:
    """Return None: the model's tensors are not recognised by their names."""
    return None


def fit_strictly(model: Any, file: WeightFile, report: LoadReport, options: FitOptions) -> State:
    """Return a file's tensors as the state of a model with exactly the same names and shapes."""
    return complete(file.tensors, model.state_dict())


def refuse_arguments(file: WeightFile, family: Family, given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Raise CheckpointError, since tensors alone do not describe the model."""
    raise CheckpointError("the file does not carry the settings of its model: build the model and use load_weights")


def refuse_families(state: Mapping[str, Tensor], family: Family, num_heads: int | None) -> State:
    """Raise CheckpointError, since no other project has files of the model."""
    raise CheckpointError(f"the model has no form in the names of {family}; expected videoattn")


def refuse_transformers(model: Any) -> tuple[dict[str, Any], State]:
    """Raise CheckpointError, since transformers has no class for the model."""
    raise CheckpointError(f"transformers has no class for the model, {type(model).__name__}")


@dataclass(frozen=True)
class WeightAdapter:
    """Reads and writes the weights of one type of model; every function raises CheckpointError on what does not fit.

    The defaults are for a model that only has files of this package: they are loaded strictly.

    Args:
        held: the type of model with its article, as in "the file holds an MViT".
        families: the projects besides this package whose files are understood. None if only ours are, strictly.
        find_family: returns the family of the names of a file, or None if the file holds another type of model.
        fit: returns the complete new state of a model from a file, and notes in the report what became of the tensors.
        arguments: returns the arguments of the model that a file without our settings holds, from the file, its family
            and the arguments given by the user; assumptions go to the list of notes.
        from_ours: returns a state under another family's names, from the number of heads if that matters.
        to_transformers: returns the config.json and the tensors of transformers' class for a model, and raises
            CheckpointError saying why where there is no such class.
    """

    held: str
    families: tuple[Family, ...] = ()
    find_family: Callable[[Sequence[str]], Family | None] = know_no_names
    fit: Callable[[Any, WeightFile, LoadReport, FitOptions], State] = fit_strictly
    arguments: Callable[[WeightFile, Family, Mapping[str, Any], list[str]], dict[str, Any]] = refuse_arguments
    from_ours: Callable[[Mapping[str, Tensor], Family, int | None], State] = refuse_families
    to_transformers: Callable[[Any], tuple[dict[str, Any], State]] = refuse_transformers
