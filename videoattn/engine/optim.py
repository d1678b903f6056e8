"""Optimizer, parameter groups and the published learning-rate schedules."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from videoattn.config import Config

Schedule = Callable[[float], float]


def cosine_schedule(base: float, end: float, max_epoch: float, offset: float = 0.0) -> Schedule:
    """Half a cosine from `base` at epoch `offset` to `end` at `max_epoch`, as a function of the fractional epoch."""

    def at(epoch: float) -> float:
        progress = (epoch - offset) / (max_epoch - offset)
        return end + (base - end) * (math.cos(math.pi * progress) + 1) / 2

    return at


def step_schedule(base: float, steps: tuple[float, ...], relative: tuple[float, ...]) -> Schedule:
    """`base` times the value of `relative` whose step was passed last."""

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
    """Learning rate as a function of the epoch, fractions included: it changes with every optimizer step.

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


def layer_index(name: str, num_blocks: int) -> int:
    """Depth of a parameter for layer decay: 0 for embeddings, i + 1 in block i, num_blocks + 1 for norm and head."""
    block = re.search(r"(?:^|\.)blocks\.(\d+)\.", name)
    if block:
        return int(block.group(1)) + 1
    return 0 if re.search(r"embed|token|pos", name) else num_blocks + 1


def parameter_groups(
    model: nn.Module, weight_decay: float, zero_wd_1d_param: bool = False, layer_decay: float = 1.0,
    zero_wd_positions: bool = False,
) -> list[dict[str, object]]:  # fmt: skip
    """Groups of parameters that share weight decay and `lr_scale`, which falls by `layer_decay` per layer of depth.

    With `zero_wd_1d_param`, vectors and biases are not decayed, with `zero_wd_positions` neither are position
    embeddings, tables of relative positions and the class token; without, everything is, as TimeSformer was trained.
    """
    num_blocks = 1 + max((int(m) for name, _ in model.named_parameters() for m in re.findall(r"blocks\.(\d+)\.", name)),
                         default=-1)  # fmt: skip
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = zero_wd_1d_param and (parameter.dim() <= 1 or name.endswith(".bias"))
        exempt |= zero_wd_positions and re.search(r"(^|\.)(cls_token|pos_embed\w*|relative\..+)$", name) is not None
        scale = layer_decay ** (num_blocks + 1 - layer_index(name, num_blocks)) if layer_decay < 1 else 1.0
        groups.setdefault((0.0 if exempt else weight_decay, scale), []).append(parameter)
    return [{"params": params, "weight_decay": wd, "lr_scale": scale} for (wd, scale), params in groups.items()]


def build_optimizer(cfg: Config, model: nn.Module) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW over `parameter_groups`; learning rates are set per step by `set_learning_rate`."""
    solver = cfg.solver
    positions = cfg.mvit.zero_decay_pos_cls and cfg.model.model_name.startswith("mvit")
    groups = parameter_groups(model, solver.weight_decay, solver.zero_wd_1d_param, solver.layer_decay, positions)
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
