"""MViT, joint and divided: published sizes, equality with torchvision's and pytorchvideo's, operators in its slots."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.mvit.small_mvits import CLIP_SIZE, SMALL, SQUARE, V1, mvit_with, small_mvit, torchvisions
from tests.models.small_models import random_clip
from videoattn.compat import import_pytorchvideo, import_torchvision
from videoattn.grid import Axis, TokenGrid
from videoattn.layers.skip import SkipSettings
from videoattn.models import MODELS, MViT, MViTShape
from videoattn.models.mvit.model import MVIT_AXES
from videoattn.models.mvit.plan import plan_blocks
from videoattn.models.weights.load import mvit_from_ours, mvit_to_ours
from videoattn.operators import OPERATORS
from videoattn.profiling.profile import profile

SLOTS = [("joint", Axis.JOINT), ("divided", Axis.TIME), ("divided", Axis.SPACE)]
PUBLISHED = [  # parameters and multiply-accumulates as published or counted by torchvision
    ("mvit_v1_b", {}, 36.610672, 70.60),
    pytest.param("mvit_v1_b_32x3", {}, 53.115280, 235.78, marks=pytest.mark.slow),
    pytest.param("mvit_v1_b_32x3_depth16", {}, 36.611440, 169.96, marks=pytest.mark.slow),
    pytest.param("mvit_v2_s", {}, 34.537744, 64.22, marks=pytest.mark.slow),
    pytest.param("mvit_v2_s", {"num_classes": 174}, 34.364, 64.22, marks=pytest.mark.slow),
]  # the larger ones are counted as rows of the model zoo


@pytest.mark.parametrize(("name", "changes", "parameters", "macs"), PUBLISHED)
def test_published_sizes_have_the_published_cost(
    name: str, changes: dict[str, Any], parameters: float, macs: float
) -> None:
    with torch.device("meta"):
        model: Any = MODELS[name](**changes)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=1e-3)
    counted = profile(model, model.clip_size)
    assert counted.macs_needed / 1e9 == pytest.approx(macs, rel=2e-4)
    assert counted.macs_executed == counted.macs_needed


@pytest.mark.parametrize("kind", ["v1", "v2", "v1, tall kernels"])
def test_logits_and_gradients_are_torchvisions(kind: str) -> None:
    ours = small_mvit(kind, clip_size=SQUARE)
    theirs = torchvisions(ours)
    ours.load_state_dict(mvit_to_ours(theirs.state_dict(), "torchvision"))
    ours, theirs, clip = ours.double(), theirs.double(), random_clip(clip_size=SQUARE).double()
    logits, expected = ours(clip), theirs(clip)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    cost = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (logits * cost).sum().backward()
    (expected * cost).sum().backward()
    gradients = mvit_to_ours({name: p.grad for name, p in theirs.named_parameters()}, "torchvision")  # type: ignore[misc]
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        scale = max(float(gradients[name].abs().max()), 1e-6)
        torch.testing.assert_close(
            parameter.grad, gradients[name], rtol=0, atol=1e-8 * scale, msg=lambda m, n=name: n + m
        )


def test_relative_positions_hold_where_grids_are_rounded_up() -> None:
    shape = replace(SMALL["v2"]["shape"], pool_kv_stride_adaptive=(1, 2, 2))
    ours = small_mvit("v2", clip_size=(6, 44, 44), shape=shape)  # 11 x 11 patches, then 6 x 6, then 3 x 3
    assert [block.plan.grid.h for block in ours.blocks] == [11, 11, 6, 6]
    theirs = torchvisions(ours)
    ours.load_state_dict(mvit_to_ours(theirs.state_dict(), "torchvision"))
    clip = random_clip(clip_size=(6, 44, 44)).double()
    with torch.no_grad():
        expected = theirs.double()(clip)
        torch.testing.assert_close(ours.double()(clip), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_weights_return_to_torchvision(kind: str) -> None:
    ours = small_mvit(kind, clip_size=SQUARE)
    theirs = torchvisions(ours)
    theirs.load_state_dict(mvit_from_ours(ours.state_dict(), "torchvision"))
    clip = random_clip(clip_size=SQUARE)
    with torch.no_grad():
        torch.testing.assert_close(theirs(clip), ours(clip), rtol=1e-4, atol=1e-4)


def pytorchvideos() -> nn.Module:
    build = import_pytorchvideo("models.vision_transformers").create_multiscale_vision_transformers
    doubling = [[1, 2.0], [3, 2.0]]
    model: nn.Module = build(
        spatial_size=32, temporal_size=6, patch_embed_dim=8, depth=4, num_heads=1, embed_dim_mul=doubling,
        atten_head_mul=doubling, pool_q_stride_size=[[1, 1, 2, 2], [3, 1, 2, 2]], pool_kv_stride_adaptive=[1, 4, 4],
        pool_kvq_kernel=[3, 3, 3], head_num_classes=5, head_activation=None, qkv_bias=True,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def test_logits_are_pytorchvideos_both_ways() -> None:
    theirs, ours = pytorchvideos(), small_mvit("v1", clip_size=SQUARE)
    ours.load_state_dict(mvit_to_ours(theirs.state_dict(), "pytorchvideo"))
    for module in theirs.modules():  # its norms behind pooling have torch's default, ours the paper's
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    clip = random_clip(clip_size=SQUARE)
    with torch.no_grad():
        torch.testing.assert_close(ours.double()(clip.double()), theirs.double()(clip.double()), rtol=0, atol=1e-9)
    other = small_mvit("v1", seed=9, clip_size=SQUARE)
    theirs.float().load_state_dict(mvit_from_ours(other.state_dict(), "pytorchvideo"))
    with torch.no_grad():
        torch.testing.assert_close(theirs(clip), other(clip), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mvit_v1_b", "mvit_v2_s"])
def test_logits_of_the_published_size_are_torchvisions(name: str) -> None:
    import_torchvision()
    from torchvision.models import video

    torch.manual_seed(0)
    theirs, ours = getattr(video, name)().eval(), MODELS[name]().eval()
    ours.load_state_dict(mvit_to_ours(theirs.state_dict(), "torchvision"))
    clip = torch.randn(1, 3, 16, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(clip), theirs(clip), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "attention_type"), [("v1", "joint"), ("v2", "divided")])
def test_a_compiled_model_trains_as_the_plain_one(kind: str, attention_type: str) -> None:
    clip, results = random_clip(clip_size=CLIP_SIZE), []
    strides = {0: (1, 1, 1), 1: (1, 2, 2)} if kind == "v2" else {1: (1, 2, 2)}
    shape = replace(SMALL[kind]["shape"], depth=2, dim_mul={1: 2}, head_mul={1: 2}, pool_q_stride=strides)
    for compiled in (False, True):
        model = small_mvit(kind, attention_type=attention_type, dropout=0.0, shape=shape).train()
        logits = (torch.compile(model) if compiled else model)(clip)
        logits.square().sum().backward()
        results.append({"logits": logits.detach(), **{n: p.grad for n, p in model.named_parameters()}})
    # of all gradients together: those of biases that shift all keys alike are nothing but rounding errors
    scale = max(float(value.abs().max()) for value in results[0].values() if value is not None)
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-3, atol=1e-5 * scale, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("name", [name for name, kind in OPERATORS.items() if not kind.accepts_bias])
@pytest.mark.parametrize(("attention_type", "axis"), SLOTS)
def test_operators_without_logits_refuse_relative_positions(name: str, attention_type: str, axis: Axis) -> None:
    with pytest.raises(ValueError, match="bias"):
        small_mvit("v2", attention_type=attention_type, operators={axis: OPERATORS[name]})


@pytest.mark.parametrize(
    ("kind", "name"), [(k, n) for k in ("v1", "v2") for n in OPERATORS if k == "v1" or OPERATORS[n].accepts_bias]
)
@pytest.mark.parametrize(("attention_type", "axis"), SLOTS)
class TestOperatorInMViT:
    def build(self, kind: str, name: str, attention_type: str, axis: Axis) -> MViT:
        return mvit_with(name, kind, axis, attention_type=attention_type)

    def test_gradients_reach_every_parameter(self, kind: str, name: str, attention_type: str, axis: Axis) -> None:
        model = self.build(kind, name, attention_type, axis).train()
        model(random_clip(clip_size=CLIP_SIZE)).square().sum().backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key

    def test_a_clip_alone_equals_the_clip_in_a_batch(
        self, kind: str, name: str, attention_type: str, axis: Axis
    ) -> None:
        model, clip = self.build(kind, name, attention_type, axis).double(), random_clip(3, CLIP_SIZE).double()
        alone = torch.cat([model(clip[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(model(clip), alone, rtol=0, atol=1e-9 * float(alone.abs().max()))

    @pytest.mark.slow
    def test_needed_work_is_counted_by_the_operator(
        self, kind: str, name: str, attention_type: str, axis: Axis
    ) -> None:
        model = self.build(kind, name, attention_type, axis)
        costs = {cost.name: cost for cost in profile(model, CLIP_SIZE).modules}
        for i, block in enumerate(model.blocks):
            operator = block.mixers[axis.value].operator
            cost = costs[f"blocks.{i}.mixers.{axis.value}.operator"]
            assert cost.macs_needed == operator.macs() * block.plan.grid.num_calls(axis)
            assert cost.macs_executed >= cost.macs_needed

    def test_autocast_stays_close_to_full_precision(
        self, kind: str, name: str, attention_type: str, axis: Axis
    ) -> None:
        model, clip = self.build(kind, name, attention_type, axis), random_clip(clip_size=CLIP_SIZE)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)  # random weights of 0.3 make rounding errors grow from block to block
            exact = model(clip)
            with torch.autocast("cpu", torch.bfloat16):
                rounded = model(clip)
        assert (rounded - exact).abs().max() < 0.1 * exact.abs().max()

    @pytest.mark.slow
    def test_the_exported_model_gives_the_same(self, kind: str, name: str, attention_type: str, axis: Axis) -> None:
        model, clip = self.build(kind, name, attention_type, axis), random_clip(clip_size=CLIP_SIZE)
        with torch.no_grad():
            exported = torch.export.export(model, (clip,)).module()
            torch.testing.assert_close(exported(clip), model(clip), rtol=1e-4, atol=1e-4)


def test_a_divided_model_starts_as_its_part_in_space() -> None:
    torch.manual_seed(0)
    model = MViT(CLIP_SIZE, V1, num_classes=5, attention_type="divided").eval()
    clip = random_clip(clip_size=CLIP_SIZE)
    with torch.no_grad():
        before = model(clip)
        for block in model.blocks:
            block.mixers["time"].qkv.weight.normal_()
        assert torch.equal(model(clip), before)


@pytest.mark.parametrize(("axis", "heard"), [(Axis.TIME, "location"), (Axis.SPACE, "frame")])
def test_a_divided_model_attends_within_frames_and_within_locations(axis: Axis, heard: str) -> None:
    model = small_mvit("no class token", attention_type="divided")
    grid, mixer = model.grid, model.blocks[0].mixers[axis.value]
    stream = torch.randn(1, grid.tokens, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    update, _ = mixer(stream, None)
    (gradient,) = torch.autograd.grad(update[0, 1, 7].sum(), stream)
    felt = gradient[0].abs().sum(-1).view(grid.t, -1) > 0
    assert felt[:, 7].all() if heard == "location" else felt[1].sum() > grid.w
    felt[:, 7] &= heard != "location"
    felt[1] &= heard != "frame"
    assert not felt.any()


class TestSkip:
    @pytest.mark.parametrize("phi", ["leff", "identity", "weights"])
    @pytest.mark.parametrize("kind", ["v1", "v2"])
    @pytest.mark.parametrize(("attention_type", "axis"), SLOTS)
    def test_a_block_of_the_same_stage_is_skipped(self, kind: str, attention_type: str, axis: Axis, phi: Any) -> None:
        skip = {axis: SkipSettings((5,), phi)}
        shape = replace(SMALL[kind]["shape"], depth=6)
        model = small_mvit(kind, attention_type=attention_type, skip=skip, shape=shape).train()
        model(random_clip(clip_size=CLIP_SIZE)).square().sum().backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key

    def test_reused_weights_of_equal_blocks_change_nothing(self) -> None:
        """A block whose q and k are those of the block before, on the same input, may as well reuse its weights."""
        shape = replace(V1, depth=2, dim_mul={}, head_mul={}, pool_q_stride={})
        model = small_mvit("v1", shape=shape, skip={Axis.JOINT: SkipSettings((1,), "weights")}).double()
        first, second = (block.mixers["joint"] for block in model.blocks)
        stream = model.embed(random_clip(clip_size=CLIP_SIZE).double())
        update, weights = first(stream, None)
        second.norm.load_state_dict(first.norm.state_dict())
        second.proj.load_state_dict(first.proj.state_dict())
        second.pool_v.load_state_dict(first.pool_v.state_dict())
        with torch.no_grad():
            heads = first.num_heads
            second.v.weight.copy_(first.qkv.weight.unflatten(0, (heads, 3, -1))[:, 2].flatten(0, 1))
            second.v.bias.copy_(first.qkv.bias.unflatten(0, (heads, 3, -1))[:, 2].flatten(0, 1))
            torch.testing.assert_close(second(stream, weights)[0], update, rtol=0, atol=1e-12)

    def test_a_block_on_another_grid_is_refused(self) -> None:
        with pytest.raises(ValueError, match="block 1 can't skip attention along JOINT: .* do not follow from"):
            small_mvit("v1", skip={Axis.JOINT: SkipSettings((1,))})

    def test_weights_over_other_keys_are_refused(self) -> None:
        shape = replace(V1, pool_kv_stride_adaptive=(1, 2, 2), dim_mul={}, head_mul={})
        with pytest.raises(ValueError, match="block 2 can't reuse the attention weights of block 1 along JOINT"):
            small_mvit("v1", shape=shape, skip={Axis.JOINT: SkipSettings((2,), "weights")})


class TestPlan:
    grid = TokenGrid(8, 56, 56, 1)

    def test_keys_are_pooled_less_as_queries_are_pooled_more(self) -> None:
        shape = MViTShape(
            dim_mul={1: 2, 3: 2, 14: 2}, head_mul={1: 2, 3: 2, 14: 2}, pool_kv_stride_adaptive=(1, 8, 8),
            pool_q_stride=dict.fromkeys((1, 3, 14), (1, 2, 2)), pool_kernel=(3, 3, 3),
        )  # fmt: skip
        plans = plan_blocks(shape, self.grid)
        assert [plan.pool_kv.stride[1] for plan in plans] == [8, 4, 4] + [2] * 11 + [1, 1]
        assert [plan.grid.h for plan in plans] == [56, 56, 28, 28] + [14] * 11 + [7]
        assert {plan.pool_kv.apply_to(plan.grid).h for plan in plans} == {7, 14}
        assert [plan.attention_dim for plan in plans] == [96, 192, 192] + [384] * 11 + [768] * 2
        assert {plan.head_dim for plan in plans} == {96}

    def test_without_a_kernel_it_is_one_more_than_the_stride(self) -> None:
        plans = plan_blocks(MViTShape(depth=1, pool_kv_stride_adaptive=(1, 8, 8)), self.grid)
        assert plans[0].pool_kv.kernel == (1, 9, 9) and plans[0].pool_q.is_identity

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"dim_mul": {2: 1.3}}, "DIM_MUL 1.3 at block 2"),
            ({"head_mul": {2: 5}}, "block 2 has a width of 96, which 5 heads do not divide"),
            ({"dim_mul": {16: 2}}, "DIM_MUL expects blocks 0 to 15"),
            ({"pool_kv_stride": {0: (1, 2, 2)}, "pool_kv_stride_adaptive": (1, 8, 8)}, "contradict .* at block 0"),
        ],
    )
    def test_numbers_that_do_not_fit_are_refused(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            plan_blocks(MViTShape(**changes), self.grid)

    def test_the_plan_of_a_block_has_all_that_distinguishes_it(self) -> None:
        shape = MViTShape(depth=3, dim_mul={1: 2}, head_mul={1: 2}, pool_kv_stride_adaptive=(1, 8, 8))
        plans = plan_blocks(
            shape, self.grid, rel_pos="t", mlp_ratio=2.5, drop_path_rate=0.2, qkv_bias=False, residual_pooling=True
        )
        assert [plan.block for plan in plans] == [0, 1, 2]
        assert [plan.mlp_dim for plan in plans] == [240, 480, 480]
        assert [plan.drop_path_rate for plan in plans] == pytest.approx([0, 0.1, 0.2])
        assert all(plan.table_lengths == {"t": 15} and not plan.qkv_bias and plan.residual_pooling for plan in plans)
        assert [plan.table_lengths for plan in plan_blocks(shape, self.grid)] == [{}] * 3

    def test_a_divided_model_pools_in_space_alone(self) -> None:
        with pytest.raises(ValueError, match=r"a divided MViT pools in space alone, got stride \(2, 2, 2\) in block 1"):
            plan_blocks(MViTShape(pool_q_stride={1: (2, 2, 2)}), self.grid, "divided")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip_size": (5, 32, 40)}, "must divide the clip, got T x H x W = 5 x 32 x 40: T expects a multiple of 2"),
        ({"attention_type": "both"}, "attention_type expects one of joint, divided"),
        ({"positions": "learned"}, "positions expects one of separable, none"),
        ({"init": "zero"}, "init expects one of published, from_scratch"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MViT(**{"clip_size": CLIP_SIZE, "shape": V1, **arguments})


def test_a_clip_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"T, H, W = \(6, 32, 40\), got \(1, 3, 6, 32, 32\)"):
        small_mvit()(torch.zeros(1, 3, 6, 32, 32))


@pytest.mark.parametrize("kind", SMALL)
def test_checkpointing_activations_changes_no_gradient(kind: str) -> None:
    clip = random_clip(clip_size=CLIP_SIZE)
    gradients: list[dict[str, Tensor | None]] = []
    for act_checkpoint in (False, True):
        model = small_mvit(kind, act_checkpoint=act_checkpoint, dropout=0.0).train()
        model(clip).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name  # type: ignore[arg-type]


def test_axes_are_those_of_the_attention_types() -> None:
    assert {name for name, _ in SLOTS} == MVIT_AXES.keys()
