"""Checks that training can continue from a state: it is complete, of this model, and finite."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from videoattn.engine.checkpoint.files import BadCheckpointError

# Of checkpoints of a run; files of weights alone have fewer. A bool is no number here.
_TYPES: dict[str, tuple[type, ...]] = {
    "model_state": (dict,), "optimizer_state": (dict,), "scaler_state": (dict,), "meters": (dict,),
    "epoch": (int,), "step": (int,), "cfg": (str,), "best": (float, int, dict, type(None)),
}  # fmt: skip
_SCALER_KEYS = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the name of the first tensor that holds an infinity or NaN, or ""."""
    by_device: dict[torch.device, list[tuple[str, Tensor]]] = defaultdict(list)
    for name, tensor in tensors:
        if tensor.is_floating_point() or tensor.is_complex():
            by_device[tensor.device].append((name, tensor))
    for named in by_device.values():
        finite = torch.stack([tensor.isfinite().all() for _, tensor in named])  # one wait for the device
        if not bool(finite.all()):
            return named[finite.tolist().index(False)][0]
    return ""


def tensors_of_optimizer(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Return the tensors of an optimizer's state dict under descriptive names."""
    for number, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                yield f"{key} of parameter {number} in the optimizer's state", value


def check_content(state: Mapping[str, Any], epoch: int | None = None, step: int | None = None) -> None:
    """Raise BadCheckpointError where a checkpoint lacks what a run needs, or has it of another type.

    `epoch` and `step` are those that the file's name says, if any.
    """
    missing = [key for key in _TYPES if key not in state]
    if missing:
        raise BadCheckpointError(f"lacks {', '.join(missing)}")
    for key, types in _TYPES.items():
        if not isinstance(state[key], types) or isinstance(state[key], bool):
            expected = " or ".join(kind.__name__ for kind in types)
            raise BadCheckpointError(f"{key} is a {type(state[key]).__name__}, expected {expected}")
    for key, said in (("epoch", epoch), ("step", step)):
        if state[key] < 0 or said not in (None, state[key]):
            raise BadCheckpointError(f"{key} is {state[key]}, expected {'0 or more' if said is None else said}")
    for name in ("model_state", "ema_state", "probe_state"):
        _check_tensors(state.get(name, {}), name)


def check_fit(
    state: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, *, averaged: bool, scaled: bool
) -> None:
    """Raise BadCheckpointError where a checkpoint that passed `check_content` does not fit what is to be trained.

    `averaged` and `scaled` say that averaged weights and a loss scale are needed, too.
    """
    target = model.state_dict()
    check_weights(state["model_state"], target, "model_state")
    if averaged:
        if "ema_state" not in state or not isinstance(state.get("ema_updates"), int):
            raise BadCheckpointError("lacks the averaged weights: ema_state and ema_updates")
        check_weights(state["ema_state"], target, "ema_state")
    _check_optimizer(state["optimizer_state"], optimizer, state.get("num_moments"))
    if scaled and state["scaler_state"]:
        missing = [key for key in _SCALER_KEYS if key not in state["scaler_state"]]
        if missing:
            raise BadCheckpointError(f"scaler_state lacks {', '.join(missing)}")
        check_fields(state["scaler_state"], dict.fromkeys(_SCALER_KEYS), "scaler_state")


def check_fields(values: Any, fields: Mapping[str, Any], what: str) -> None:
    """Raise BadCheckpointError where `values` is no dictionary of finite numbers named by `fields`."""
    if not isinstance(values, Mapping) or not set(values) <= set(fields):
        raise BadCheckpointError(f"{what} is {values!r}, expected numbers called {', '.join(fields)}")
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise BadCheckpointError(f"{what}: {key} is {value!r}, expected a finite number")


def _check_tensors(tensors: Any, what: str) -> None:
    if not isinstance(tensors, Mapping):
        raise BadCheckpointError(f"{what} is a {type(tensors).__name__}, expected tensors by name")
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or value.device.type != "cpu" or value.layout != torch.strided:
            raise BadCheckpointError(f"{what}: {name} is a {type(value).__name__}, expected a tensor with its numbers")
    odd = first_not_finite(tensors.items())
    if odd:
        raise BadCheckpointError(f"{what}: {odd} is not finite")


def check_weights(state: Mapping[str, Tensor], target: Mapping[str, Tensor], what: str) -> None:
    """Raise BadCheckpointError where tensors are missing, not those of `target`, or of another shape or type."""
    problems = {
        "missing": [name for name in target if name not in state],
        "not of this model": [str(name) for name in state if name not in target],
        "of another shape or type": [
            f"{name} {tuple(state[name].shape)} {state[name].dtype} instead of {tuple(value.shape)} {value.dtype}"
            for name, value in target.items()
            if name in state and (state[name].shape != value.shape or state[name].dtype != value.dtype)
        ],
    }
    found = [f"{len(names)} {kind}, the first: {names[0]}" for kind, names in problems.items() if names]
    if found:
        raise BadCheckpointError(f"{what}: {'; '.join(found)}")


def _check_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer, num_moments: Any) -> None:
    """Check an optimizer's state: torch compares only the numbers of groups and parameters, and fails in a step.

    `num_moments` is the number of parameters that had moments, where the checkpoint says it.
    """
    groups, states = state.get("param_groups"), state.get("state")
    if not isinstance(groups, list) or not isinstance(states, Mapping):
        raise BadCheckpointError("optimizer_state lacks param_groups or state")
    numbers = [group.get("params") if isinstance(group, Mapping) else None for group in groups]
    if numbers != [group["params"] for group in optimizer.state_dict()["param_groups"]]:
        raise BadCheckpointError("optimizer_state: its groups of parameters are not those of this model")
    expected = _expected_moments(optimizer)
    if (expected and not states) or num_moments not in (None, len(states)):
        raise BadCheckpointError(f"optimizer_state: it has the moments of {len(states)} parameters, and had more")
    numbered = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    _check_moments(states, numbered, expected)


def _expected_moments(optimizer: torch.optim.Optimizer) -> Sequence[str]:
    if isinstance(optimizer, torch.optim.SGD):
        return ("momentum_buffer",) if any(group["momentum"] for group in optimizer.param_groups) else ()
    return ("step", "exp_avg", "exp_avg_sq")


def _check_moments(states: Mapping[Any, Any], parameters: Mapping[int, Tensor], expected: Sequence[str]) -> None:
    for number, values in states.items():
        what = f"optimizer_state: parameter {number}"
        if number not in parameters or not isinstance(values, Mapping):
            raise BadCheckpointError(f"{what} is not one of this model's, or has no values")
        missing = [key for key in expected if not isinstance(values.get(key), Tensor)]
        if missing:
            raise BadCheckpointError(f"{what} lacks {', '.join(missing)}")
        for key in expected:
            shape = () if key == "step" else parameters[number].shape
            if values[key].shape != shape:
                raise BadCheckpointError(f"{what}: {key} is {tuple(values[key].shape)}, expected {tuple(shape)}")
    odd = first_not_finite(tensors_of_optimizer({"state": states}))
    if odd:
        raise BadCheckpointError(f"{odd} is not finite")
