"""Optimizer, parameter groups and the published learning-rate schedules."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from videoattn.config import Config

Schedule = Callable[[float], float]


def cosine_schedule(base: float, end: float, max_epoch: float, offset: float = 0.0) -> Schedule:
    """Return half a cosine from `base` at epoch `offset` to `end` at `max_epoch`, as a function of the epoch."""

    def at(epoch: float) -> float:
        progress = (epoch - offset) / (max_epoch - offset)
        return end + (base - end) * (math.cos(math.pi * progress) + 1) / 2

    return at


def step_schedule(base: float, steps: tuple[float, ...], relative: tuple[float, ...]) -> Schedule:
    """Return `base` times the value of `relative` whose step was passed last, as a function of the epoch."""

    def at(epoch: float) -> float:
        return base * [lr for step, lr in zip(steps, relative, strict=True) if step <= epoch][-1]

    return at


def with_warmup(schedule: Schedule, start: float, epochs: float) -> Schedule:
    """Rise linearly from `start` to what `schedule` gives at `epochs`, then follow it. Source: SlowFast's lr_policy."""
    if epochs <= 0:
        return schedule
    top = schedule(epochs)
    return lambda epoch: start + (top - start) * epoch / epochs if epoch < epochs else schedule(epoch)


def build_schedule(cfg: Config, num_machines: int = 1) -> Schedule:
    """Return the learning rate as a function of the epoch, fractions included: it changes with every optimizer step.

    The settings have been checked when they were read: the rate is finite, and warm-up ends before the run does.
    """
    solver = cfg.solver
    factor = num_machines if solver.base_lr_scale_num_shards else 1
    base, end = solver.base_lr * factor, solver.cosine_end_lr * factor
    if solver.lr_policy == "constant":
        schedule: Schedule = lambda epoch: base  # noqa: E731
    elif solver.lr_policy == "steps_with_relative_lrs":
        schedule = step_schedule(base, solver.steps, solver.lrs)
    else:
        offset = solver.warmup_epochs if solver.cosine_after_warmup else 0.0
        schedule = cosine_schedule(base, end, solver.max_epoch, offset)
    return with_warmup(schedule, solver.warmup_start_lr * factor, solver.warmup_epochs)


class ParameterRules(Protocol):
    """The answers that an optimizer needs about a model's parameters, by name; `videoattn.models.ModelSpec` has them.

    `layer_of(model, name)` is the number of layers between a parameter and the output. `no_weight_decay(settings,
    name)` exempts a parameter from weight decay, where `settings(cfg)` is the model's own section of the config.
    """

    @property
    def layer_of(self) -> Callable[[Any, str], int]: ...

    @property
    def no_weight_decay(self) -> Callable[[Any, str], bool]: ...

    def settings(self, cfg: Config) -> Any: ...


def parameter_groups(
    model: nn.Module, weight_decay: float, zero_wd_1d_param: bool = False, layer_decay: float = 1.0, *,
    layer_of: Callable[[Any, str], int] | None = None, is_exempt: Callable[[str], bool] | None = None,
) -> list[dict[str, object]]:  # fmt: skip
    """Return groups of parameters that share weight decay and `lr_scale`.

    The scale is `layer_decay` to the power of `layer_of(model, name)`, and 1 without `layer_of`. With
    `zero_wd_1d_param`, vectors and biases are not decayed; neither are parameters whose name `is_exempt`.
    """
    if layer_decay < 1 and layer_of is None:
        raise ValueError(f"layer_decay {layer_decay} expects layer_of, which gives the depth of parameters")
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = zero_wd_1d_param and (parameter.dim() <= 1 or name.rpartition(".")[2] == "bias")
        exempt = exempt or (is_exempt is not None and is_exempt(name))
        scale = layer_decay ** layer_of(model, name) if layer_decay < 1 and layer_of is not None else 1.0
        groups.setdefault((0.0 if exempt else weight_decay, scale), []).append(parameter)
    return [{"params": params, "weight_decay": wd, "lr_scale": scale} for (wd, scale), params in groups.items()]


def build_optimizer(cfg: Config, model: nn.Module, rules: ParameterRules) -> torch.optim.Optimizer:
    """Return SGD, Adam or AdamW over the parameter groups that the settings and the model's `rules` make.

    Learning rates are set in each step by `set_learning_rate`.
    """
    solver = cfg.solver
    groups = parameter_groups(
        model, solver.weight_decay, solver.zero_wd_1d_param, solver.layer_decay,
        layer_of=rules.layer_of, is_exempt=partial(rules.no_weight_decay, rules.settings(cfg)),
    )  # fmt: skip
    return _optimizer(cfg, groups)


def build_probe_optimizer(cfg: Config, probes: Iterable[nn.Module]) -> torch.optim.Optimizer:
    """Return the optimizer of a grid of probes, in the order of `PROBE.list_grid`, each with groups of its own.

    A probe's learning rate is its value of PROBE.LRS where the schedule is at SOLVER.BASE_LR, and follows the schedule
    in proportion.
    """
    solver, groups = cfg.solver, []
    for probe, (lr, weight_decay) in zip(probes, cfg.probe.list_grid(solver.base_lr, solver.weight_decay), strict=True):
        own = parameter_groups(probe, weight_decay, solver.zero_wd_1d_param)
        groups += [group | {"lr_scale": lr / solver.base_lr} for group in own]
    return _optimizer(cfg, groups)


def _optimizer(cfg: Config, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    solver = cfg.solver
    if solver.optimizing_method == "sgd":
        # Nesterov's rule needs momentum and no dampening; without them it is plain SGD, as in SlowFast
        nesterov = solver.nesterov and solver.momentum > 0 and solver.dampening == 0
        return torch.optim.SGD(
            groups, lr=solver.base_lr, momentum=solver.momentum, dampening=solver.dampening, nesterov=nesterov
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[solver.optimizing_method]
    return kind(groups, lr=solver.base_lr, betas=solver.betas, eps=1e-8)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its own lr_scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


@dataclass(frozen=True)
class GradientClip:
    """Limits gradients by value, by their joint L2 norm, or not at all."""

    value: float | None = None
    norm: float | None = None

    def __call__(self, parameters: Iterable[Tensor]) -> float:
        """Clip in place; returns the L2 norm before clipping."""
        parameters = [p for p in parameters if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.norm if self.norm else math.inf)
        if self.value:
            torch.nn.utils.clip_grad_value_(parameters, self.value)
        return float(norm)
