"""Swapping dense attention: the heads that stay dense, the calibration, and the laws that hold for both."""

import copy
from functools import partial
from typing import Any

import pytest
import torch

from tests.models.small_models import CLIP_SIZE, random_clip, small_model
from videoattn.grid import Axis
from videoattn.models import MODELS
from videoattn.operators import FibonacciAttention, FocusedLinearAttention, LisaAttention, keep_heads_dense
from videoattn.swap.calibrate import calibrate, order_of_execution
from videoattn.swap.heads import choose_heads, measure_effects
from videoattn.swap.report import DensePoint, Point, draw_points, format_points
from videoattn.swap.slots import DenseSlot, divergence, find_dense_slots, predict, swap_operators
from videoattn.swap.swap import Swap, time_models

BUILD = partial(FibonacciAttention, semantics="mean_logit")


def clips(num: int = 8, batch: int = 2, size: tuple[int, int, int] = CLIP_SIZE) -> list[torch.Tensor]:
    return [random_clip(batch, size, seed=seed) for seed in range(num)]


def passes(batches: list[torch.Tensor]) -> Any:
    return lambda: iter(batches)


def joint_vit() -> torch.nn.Module:
    torch.manual_seed(0)
    model = MODELS["videomae_small"].build(
        clip_size=(4, 16, 24), patch_size=8, tubelet=1, embed_dim=24, mlp_dim=48, depth=2, num_heads=3, num_classes=5,
        init="from_scratch", drop_path_rate=0.0,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("axes", [[Axis.TIME], [Axis.SPACE], [Axis.TIME, Axis.SPACE]])
def test_slots_are_the_dense_attention_along_the_axes(axes: list[Axis]) -> None:
    slots = find_dense_slots(small_model(), axes)
    assert {(slot.block, slot.axis) for slot in slots} == {(block, axis) for block in (0, 1) for axis in axes}
    mixed = small_model(operators={Axis.TIME: FibonacciAttention})
    with pytest.raises(ValueError, match="TimeSformer has no dense attention along time"):
        find_dense_slots(mixed, [Axis.TIME])
    with pytest.raises(ValueError, match="no dense attention along joint"):
        find_dense_slots(mixed, [Axis.JOINT])


def test_slots_are_taken_in_the_order_of_a_forward_pass() -> None:
    model = small_model()
    slots = find_dense_slots(model, [Axis.SPACE, Axis.TIME])
    order = order_of_execution(model, slots[::-1], passes(clips(1)))
    assert [(slot.block, slot.axis) for slot in order] == [
        (block, axis) for block in (0, 1) for axis in (Axis.TIME, Axis.SPACE)
    ]


def test_a_swap_leaves_the_dense_model_as_it_was() -> None:
    model = small_model()
    before, batches = copy.deepcopy(model.state_dict()), clips(2)
    dense = predict(model, passes(batches))
    slots = find_dense_slots(model, [Axis.TIME])
    swapped = swap_operators(model, slots, {Axis.TIME: BUILD})
    calibrate(model, swapped, slots, passes(batches))
    measure_effects(model, slots, {Axis.TIME: BUILD}, passes(batches), dense)
    assert torch.equal(predict(model, passes(batches)), dense)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert divergence(dense, predict(swapped, passes(batches))) > 0


def test_the_effect_of_a_head_is_that_of_swapping_it_alone() -> None:
    """A head whose columns of the projection are zero has none; others have that of a model built by hand."""
    model, batches = joint_vit(), passes(clips(2))
    with torch.no_grad():
        model.blocks[1].mixers["joint"].proj.weight[:, 8:16] = 0
    dense = predict(model, batches)
    slots = find_dense_slots(model, [Axis.JOINT])
    effects = measure_effects(model, slots, {Axis.JOINT: BUILD}, batches, dense)
    assert len(effects) == 6 and effects[slots[1], 1] == pytest.approx(0, abs=1e-12)
    assert min(effect for key, effect in effects.items() if key != (slots[1], 1)) > 1e-9
    alone = keep_heads_dense(BUILD, [(0, 0), (0, 1)])
    swapped = swap_operators(model, slots[:1], {Axis.JOINT: alone})
    assert effects[slots[0], 2] == pytest.approx(divergence(dense, predict(swapped, batches)), rel=1e-6)


def test_heads_of_the_largest_effects_stay_dense() -> None:
    slots = [DenseSlot(f"blocks.{block}", block, Axis.JOINT, 2) for block in (0, 1)]
    effects = {(slots[0], 0): 0.1, (slots[0], 1): 0.7, (slots[1], 0): 0.5, (slots[1], 1): 0.2}
    assert choose_heads(effects, 0) == {Axis.JOINT: []}
    assert choose_heads(effects, 0.5) == {Axis.JOINT: [(0, 1), (1, 0)]}
    assert choose_heads(effects, 0.75) == {Axis.JOINT: [(0, 1), (1, 0), (1, 1)]}
    assert len(choose_heads(effects, 1)[Axis.JOINT]) == 4
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match="expects a share from 0 to 1"):
            choose_heads(effects, share)


@pytest.mark.parametrize("model", [small_model, joint_vit])
def test_calibration_finds_a_projection_that_was_changed(model: Any) -> None:
    """Attention is the same, so that least squares must bring back every weight and bias of the projections."""
    dense = model().double()
    axis = Axis.TIME if model is small_model else Axis.JOINT
    slots = find_dense_slots(dense, [axis])
    changed = copy.deepcopy(dense)
    with torch.no_grad():
        for slot in slots:
            projection = changed.get_submodule(slot.path).proj
            projection.weight.add_(0.1 * torch.randn_like(projection.weight))
            projection.bias.add_(0.1)
    batches = passes([batch.double() for batch in clips(16)])
    apart = divergence(predict(dense, batches), predict(changed, batches))
    penalties = calibrate(dense, changed, slots, batches)
    assert list(penalties.values()) == [1e-4] * len(slots)
    assert divergence(predict(dense, batches), predict(changed, batches)) < 1e-4 * apart


def test_calibration_solves_the_penalised_problem() -> None:
    """Against torch's least squares on the same rows, with the penalty as further rows."""
    from videoattn.swap.calibrate import _Sums

    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(50, n, dtype=torch.float64, generator=generator) for n in (6, 4))
    sums = _Sums()
    sums.add(x[:20], y[:20])
    sums.add(x[20:], y[20:])
    penalty = 0.1
    root = (penalty * x.square().sum(0).mean()).sqrt()
    rows = torch.cat(
        [torch.cat([x, x.new_ones(50, 1)], 1), torch.cat([root * torch.eye(6).double(), x.new_zeros(6, 1)], 1)]
    )
    expected = torch.linalg.lstsq(rows, torch.cat([y, y.new_zeros(6, 4)])).solution
    change = sums.solve(penalty)
    torch.testing.assert_close(change, expected, rtol=0, atol=1e-10)
    fitted = y - torch.cat([x, x.new_ones(50, 1)], 1) @ change
    assert sums.gain(change) == pytest.approx(float(y.square().sum() - fitted.square().sum()))


def test_a_fit_that_does_not_help_unseen_clips_is_not_made() -> None:
    """The batches kept apart differ from the others by noise of the opposite sign."""
    dense, swapped = joint_vit(), joint_vit()
    slots = find_dense_slots(dense, [Axis.JOINT])[:1]
    path = f"{slots[0].path}.proj"
    sign = iter([1.0, 1.0, 1.0, -1.0] * 2)
    dense.get_submodule(path).register_forward_hook(lambda _, inputs, output: output + next(sign))
    weight = swapped.get_submodule(path).weight.clone()
    assert calibrate(dense, swapped, slots, passes(clips(8))) == {slots[0].path: None}
    assert torch.equal(swapped.get_submodule(path).weight, weight)


@pytest.mark.parametrize("build", [BUILD, FocusedLinearAttention, LisaAttention])
def test_with_every_head_dense_predictions_are_the_dense_ones_and_calibration_brings_others_closer(build: Any) -> None:
    fitting, testing = clips(24), clips(4, batch=3)
    swap = Swap(joint_vit(), {Axis.JOINT: build}, passes(fitting), passes(testing))
    effects = swap.measure_effects()
    whole = swap.swap(effects, 1.0)
    torch.testing.assert_close(whole.after, swap.dense, rtol=0, atol=1e-5)
    assert whole.penalties == {}
    none = swap.swap(effects, 0.0)
    assert 0 < swap.divergence(none.after) < swap.divergence(none.before)
    half = swap.swap(effects, 0.5)
    assert sum(map(len, half.dense_heads.values())) == 3
    assert swap.divergence(half.before) < swap.divergence(none.before)


def test_blocks_that_stay_dense_are_not_counted() -> None:
    def build(site: Any) -> Any:
        return BUILD(site) if site.block == 1 else keep_heads_dense(BUILD, [(0, h) for h in range(3)])(site)

    swap = Swap(joint_vit(), {Axis.JOINT: build}, passes(clips(2)), passes(clips(2)))
    assert [slot.block for slot in swap.slots] == [1] and swap.num_heads == 3
    with pytest.raises(ValueError, match="every operator of the swap is dense"):
        Swap(joint_vit(), {Axis.JOINT: keep_heads_dense(BUILD, [(b, h) for b in (0, 1) for h in range(3)])},
             passes(clips(2)), passes(clips(2)))  # fmt: skip


def test_convolutions_start_at_zero_in_dense_weights() -> None:
    swapped = swap_operators(
        joint_vit(), find_dense_slots(joint_vit(), [Axis.JOINT]), {Axis.JOINT: FocusedLinearAttention}
    )
    operator = swapped.blocks[0].mixers["joint"].operator
    assert not operator.dwc_space.any() and not operator.dwc_bias.any() and operator.dwc_time.any()


def test_times_are_one_of_each_model() -> None:
    times = time_models([joint_vit(), joint_vit()], random_clip(1), rounds=2)
    assert len(times) == 2 and min(times) > 0


def test_the_table_and_the_picture_show_every_point(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    dense = DensePoint(0.9, 20.0, 10**9, 8)
    points = [
        Point(budget, {"joint": [(0, head) for head in range(int(8 * budget))]}, 0.5, 0.1, 0.7, 0.85, 10.0, 5 * 10**8)
        for budget in (0.0, 0.25)
    ]
    lines = format_points(dense, points, 0.25).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["all", "0", "2"] and len({len(line) for line in lines}) == 1
    assert "2 of 8*" in lines[3] and "2.00x" in lines[3] and "85.00 %" in lines[3] and "0 of 8 " in lines[2]
    draw_points(tmp_path / "swap.png", dense, points, "a title")
    assert (tmp_path / "swap.png").stat().st_size > 5000
