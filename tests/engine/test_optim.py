import math

import pytest
import torch
from torch import nn

from videoattn.config import Config
from videoattn.engine.optim import (
    GradientClip,
    build_optimizer,
    build_schedule,
    parameter_groups,
    set_learning_rate,
)


def solver(**keys):
    return Config(**{"SOLVER": {name.upper(): value for name, value in keys.items()}})


def test_steps_follow_the_published_timesformer_schedule():
    lr = build_schedule(
        solver(base_lr=0.005, lr_policy="steps_with_relative_lrs", steps=(0, 11, 14), lrs=(1, 0.1, 0.01), max_epoch=15)
    )
    assert [lr(e) for e in (0, 10.99, 11, 13.5, 14, 14.99)] == pytest.approx([5e-3, 5e-3, 5e-4, 5e-4, 5e-5, 5e-5])


def test_cosine_runs_from_base_to_end():
    lr = build_schedule(solver(base_lr=1.0, cosine_end_lr=0.2, max_epoch=10))
    assert [lr(0), lr(5), lr(10)] == pytest.approx([1.0, 0.6, 0.2])
    assert lr(2.5) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)


def test_warmup_rises_linearly_to_the_value_the_cosine_has_there():
    keys = {"base_lr": 1.0, "max_epoch": 10, "warmup_epochs": 2.0, "warmup_start_lr": 0.1}
    lr = build_schedule(solver(**keys))
    top = (1 + math.cos(math.pi * 0.2)) / 2
    assert [lr(0), lr(1), lr(2)] == pytest.approx([0.1, (0.1 + top) / 2, top])
    after = build_schedule(solver(**keys, cosine_after_warmup=True))
    assert [after(2), after(6), after(10)] == pytest.approx([1.0, 0.5, 0.0])


def test_learning_rates_scale_with_machines_only_if_asked():
    assert build_schedule(solver(base_lr=0.1), 4)(0) == pytest.approx(0.1)
    assert build_schedule(solver(base_lr=0.1, base_lr_scale_num_shards=True), 4)(0) == pytest.approx(0.4)


class Rules:
    """Layers are counted from the head back; nothing is exempt from decay by its name."""

    @staticmethod
    def layer_of(model, name):
        return {"pos_embed": 3, "blocks.0": 2, "blocks.1": 1}.get(name.removesuffix(".weight").removesuffix(".bias"), 0)

    @staticmethod
    def no_weight_decay(settings, name):
        return False

    @staticmethod
    def settings(cfg):
        return None


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 3, 2))
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
        self.norm = nn.LayerNorm(2)
        self.head = nn.Linear(2, 2)


def test_every_parameter_is_in_one_group():
    model = Blocks()
    for options in ({}, {"zero_wd_1d_param": True, "layer_decay": 0.5, "layer_of": Rules.layer_of}):
        grouped = [p for g in parameter_groups(model, 0.1, **options) for p in g["params"]]
        assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))


def test_vectors_are_decayed_unless_exempt():
    model = Blocks()
    assert {g["weight_decay"] for g in parameter_groups(model, 0.1)} == {0.1}
    decay = {id(p): g["weight_decay"] for g in parameter_groups(model, 0.1, True) for p in g["params"]}
    assert decay[id(model.head.bias)] == decay[id(model.norm.weight)] == 0 and decay[id(model.head.weight)] == 0.1
    groups = parameter_groups(model, 0.1, is_exempt=lambda name: name == "pos_embed")
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.0, 1), (0.1, 8)]


def test_layer_decay_shrinks_learning_rates_towards_the_input():
    model = Blocks()
    groups = parameter_groups(model, 0.1, layer_decay=0.5, layer_of=Rules.layer_of)
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    with pytest.raises(ValueError, match="layer_decay 0.5 expects layer_of"):
        parameter_groups(model, 0.1, layer_decay=0.5)
    named = (model.pos_embed, model.blocks[0].weight, model.blocks[1].bias, model.head.weight)
    assert [scale[id(p)] for p in named] == [0.125, 0.25, 0.5, 1.0]


def test_learning_rate_reaches_groups_times_their_scale():
    cfg = solver(optimizing_method="adamw", layer_decay=0.5, base_lr=1.0)
    optimizer = build_optimizer(cfg, Blocks(), Rules)
    set_learning_rate(optimizer, 0.4)
    assert sorted({g["lr"] for g in optimizer.param_groups}) == pytest.approx([0.05, 0.1, 0.2, 0.4])


@pytest.mark.parametrize("method", ["sgd", "adam", "adamw"])
def test_optimizers_move_every_parameter(method):
    model = Blocks()
    optimizer = build_optimizer(solver(optimizing_method=method, weight_decay=0.0), model, Rules)
    before = [p.clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    set_learning_rate(optimizer, 0.1)
    optimizer.step()
    assert all((b - p).min() > 0.05 for b, p in zip(before, model.parameters(), strict=True))


def test_gradients_are_clipped_by_norm_and_by_value():
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([3.0, 4.0])
    assert GradientClip()([p]) == pytest.approx(5.0) and p.grad.tolist() == [3.0, 4.0]
    GradientClip(norm=1.0)([p])
    assert p.grad.tolist() == pytest.approx([0.6, 0.8], abs=1e-5)
    GradientClip(value=0.7)([p])
    assert p.grad.tolist() == pytest.approx([0.6, 0.7], abs=1e-5)
