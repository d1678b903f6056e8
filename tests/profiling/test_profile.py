"""Costs of models: published figures, closed forms, two other counters, and what must never be left out."""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from videoattn.compat import import_torchvision
from videoattn.grid import Axis, TokenGrid
from videoattn.kernels.offsets import is_compiled
from videoattn.models import TimeSformer, timesformer_base, timesformer_base_hr, timesformer_base_l
from videoattn.operators import AttentionOperator, AttentionSite, DenseAttention, FibonacciAttention
from videoattn.profiling.operations import ELEMENTWISE, UNCOUNTED
from videoattn.profiling.profile import MAC_FORMULAS, Profile, UnknownOperationError, measure, profile
from videoattn.profiling.table import format_measurement, format_profile

TINY: dict[str, Any] = {"clip_size": (3, 32, 64), "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 7}
SMALL = partial(TimeSformer, **TINY)


class Function(nn.Module):
    """A module that computes one function."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def build_meta(build: Callable[..., TimeSformer], **options: Any) -> TimeSformer:
    with torch.device("meta"):
        return build(**options)


def profile_meta(build: Callable[..., TimeSformer], **options: Any) -> Profile:
    model = build_meta(build, **options)
    return profile(model, model.clip_size)


def macs_of(function: Callable[[Tensor], Any], *shape: int) -> int:
    return profile(Function(function), torch.ones(1, *shape)).macs_executed


def count_by_torch(model: nn.Module, clip: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(clip)
    return counter.get_total_flops() // 2  # torch counts a multiply-add as two


def timesformer_macs(axes: tuple[Axis, ...], t: int, h: int, w: int, dim: int, depth: int, num_classes: int) -> int:
    """Closed form with patches of 16: q, k and v projected on the stream, the output projected as folded."""
    patches, stream = t * h * w, t * h * w + 1
    block = 8 * stream * dim**2  # the MLP
    for axis in axes:
        folded = {Axis.SPACE: t * (h * w + 1), Axis.TIME: patches, Axis.JOINT: stream}[axis]
        pairs = {Axis.SPACE: t * (h * w + 1) ** 2, Axis.TIME: h * w * t**2, Axis.JOINT: stream**2}[axis]
        block += 3 * stream * dim**2 + folded * dim**2 + 2 * pairs * dim
        block += patches * dim**2 if axis is Axis.TIME else 0  # temporal_fc
    return patches * 3 * 256 * dim + depth * block + dim * num_classes


@pytest.mark.parametrize(
    ("build", "options", "giga_macs", "mega_parameters"),
    [
        (timesformer_base, {}, 195.8, 121.57),
        pytest.param(timesformer_base_hr, {}, 1702.7, 122.02, marks=pytest.mark.slow),
        pytest.param(timesformer_base_l, {}, 2379.9, 121.63, marks=pytest.mark.slow),
        pytest.param(timesformer_base, {"attention_type": "joint_space_time"}, 179.6, None, marks=pytest.mark.slow),
    ],
)
def test_published_figures_within_a_thousandth(
    build: Callable[..., TimeSformer], options: dict[str, Any], giga_macs: float, mega_parameters: float | None
) -> None:
    result = profile_meta(build, **options)
    assert result.macs_executed == result.macs_needed
    assert result.macs_executed / 1e9 == pytest.approx(giga_macs, rel=1e-3)
    if mega_parameters:
        assert result.parameters / 1e6 == pytest.approx(mega_parameters, rel=1e-3)


@pytest.mark.parametrize(
    ("attention_type", "axes"),
    [("divided_space_time", (Axis.TIME, Axis.SPACE)), ("joint_space_time", (Axis.JOINT,))],
)
@pytest.mark.parametrize("clip_size", [(3, 32, 64), (5, 48, 16)])
def test_macs_equal_the_closed_form(
    attention_type: str, axes: tuple[Axis, ...], clip_size: tuple[int, int, int]
) -> None:
    result = profile_meta(SMALL, attention_type=attention_type, clip_size=clip_size)
    t, height, width = clip_size
    assert result.macs_executed == timesformer_macs(axes, t, height // 16, width // 16, 24, 2, 7)


@pytest.mark.parametrize("attention_type", ["divided_space_time", "joint_space_time", "space_only"])
def test_macs_equal_those_of_torch_and_fvcore(attention_type: str) -> None:
    model = build_meta(SMALL, attention_type=attention_type)
    result = profile(model, model.clip_size)
    assert result.macs_executed == count_by_torch(model, torch.empty(1, 3, *model.clip_size, device="meta"))

    real = SMALL(attention_type=attention_type).eval()
    clip = torch.zeros(1, 3, *real.clip_size)
    counter, activations = FlopCountAnalysis(real, (clip,)), ActivationCountAnalysis(real, (clip,))
    for analysis in (counter, activations):
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    # fvcore alone counts norms as operations and fused attention not at all
    assert result.macs_executed - result.attention_executed == counter.total() - counter.by_operator()["layer_norm"]
    fused = sum(cost.activations for cost in result.modules if cost.kind == "DenseAttention")
    assert result.activations - fused == activations.total()
    assert profile(real, real.clip_size).to_dict() == result.to_dict()


def test_macs_equal_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    import_torchvision()
    config = transformers.TimesformerConfig(
        image_size=32, patch_size=16, num_frames=3, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=96, num_labels=7,
    )  # fmt: skip
    theirs = transformers.TimesformerForVideoClassification(config)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theirs = theirs

        def forward(self, clip: Tensor) -> Tensor:
            return self.theirs(clip.transpose(1, 2)).logits

    result = profile(Logits(), (3, 32, 32))
    ours = profile_meta(SMALL, clip_size=(3, 32, 32))
    # q, k and v are projected in theirs after folding (12 tokens along time, 15 in space), in ours on all 13 before it
    assert result.macs_executed == ours.macs_executed + 2 * 3 * 24**2 * (12 + 15 - 2 * 13)
    assert result.parameters == ours.parameters


def test_needed_macs_count_only_attending_pairs() -> None:
    masked = partial(FibonacciAttention, implementation="masked")
    operators = {Axis.TIME: masked, Axis.SPACE: partial(masked, semantics="zero_logit")}
    result = profile_meta(SMALL, operators=operators, clip_size=(5, 32, 64))
    dense = profile_meta(SMALL, clip_size=(5, 32, 64))
    model = build_meta(SMALL, operators=operators, clip_size=(5, 32, 64))
    needed = 0
    for block in model.blocks:
        time, space = block.mixers["time"].operator, block.mixers["space"].operator
        needed += 2 * 4 * time.macs() + 5 * space.macs()  # a call per location, a call per frame
    assert result.macs_executed == dense.macs_executed
    assert result.attention_executed == dense.attention_needed == 2 * 2 * 24 * (8 * 5**2 + 5 * 9**2)
    assert result.attention_needed == needed < result.attention_executed
    assert result.macs_executed - result.macs_needed == result.attention_executed - needed
    assert result.attention_share_needed == needed / result.macs_needed


def test_one_head_of_known_offsets_needs_the_pairs_counted_by_hand() -> None:
    result = profile_meta(
        SMALL, attention_type="space_only", num_heads=1, depth=1, clip_size=(2, 16, 96),
        operators={Axis.SPACE: partial(FibonacciAttention, variant="wythoff", implementation="masked")},
    )  # fmt: skip
    # 6 patches in a row, offsets {0, 1, 2} (the sequence 1, 2, 3 up to the window 6 // 3, and self): 6 + 2·5 + 2·4
    # pairs; the class token is 6 times a key and asks 7; two frames, two products of 24 channels
    assert result.attention_needed == 2 * 2 * 24 * (24 + 6 + 7)
    assert result.attention_executed == 2 * 2 * 24 * 7**2


@pytest.mark.parametrize("semantics", ["exclude", "zero_logit"])
def test_sums_over_pairs_execute_the_slots_of_their_tables(semantics: str) -> None:
    operator = partial(FibonacciAttention, semantics=semantics, implementation="gather")
    options: dict[str, Any] = {"attention_type": "joint_space_time", "operators": {Axis.JOINT: operator}}
    model = build_meta(SMALL, **options)
    result = profile(model, model.clip_size)
    plan = model.blocks[0].mixers["joint"].operator.gather
    assert plan.keys.shape[:2] == (3, 24)
    # the class token asks all 25 tokens; two products of 8 channels a head in each of two blocks
    assert result.attention_executed == 2 * 2 * 8 * (plan.keys.numel() + 3 * 25)
    dense = profile_meta(SMALL, attention_type="joint_space_time")
    assert result.attention_needed < result.attention_executed < dense.attention_executed
    assert result.macs_executed == count_by_torch(model, torch.empty(1, 3, *model.clip_size, device="meta"))
    real = SMALL(**options)
    assert profile(real, real.clip_size).to_dict() == result.to_dict()


@pytest.mark.skipif(not is_compiled(), reason="no C++ compiler on this machine")
@pytest.mark.parametrize("axis", Axis)
def test_the_compiled_form_executes_what_is_needed(axis: Axis) -> None:
    kinds = {Axis.JOINT: "joint_space_time", Axis.TIME: "divided_space_time", Axis.SPACE: "space_only"}
    options: dict[str, Any] = {
        "attention_type": kinds[axis],
        "operators": {axis: partial(FibonacciAttention, implementation="compiled")},
    }
    model = build_meta(SMALL, **options)
    result = profile(model, model.clip_size)
    assert result.attention_needed == result.attention_executed
    assert result.macs_executed == count_by_torch(model, torch.empty(1, 3, *model.clip_size, device="meta"))
    real = SMALL(**options)
    assert profile(real, real.clip_size).to_dict() == result.to_dict()


def test_modules_sum_up_to_the_model() -> None:
    result = profile_meta(SMALL, operators={Axis.SPACE: FibonacciAttention})
    costs = {cost.name: cost for cost in result.modules}
    top = [cost for name, cost in costs.items() if name and "." not in name]
    for quantity in ("macs_executed", "macs_needed", "activations"):
        assert sum(getattr(cost, quantity) for cost in top) == getattr(result, quantity)
    assert costs["blocks.0.mlp.fc1"].macs_executed == 25 * 24 * 96
    assert costs["patch_embed"].macs_executed == 24 * 768 * 24
    assert costs["patch_embed"].parameters == 24 * 768 + 24
    assert sum(result.macs_by_operation.values()) == result.macs_executed


def test_videos_cost_their_views() -> None:
    model = build_meta(SMALL)
    result = profile(model, model.clip_size, views=30)
    assert result.macs_executed_per_video == 30 * result.macs_executed
    assert result.to_dict()["macs_needed_per_video"] == 30 * result.macs_needed


def test_norms_and_elementwise_work_are_listed_apart() -> None:
    result = profile_meta(SMALL, depth=1)
    assert result.elements["gelu"] == 25 * 96
    assert result.elements["layer_norm"] == 3 * 25 * 24 + 24
    assert "layer_norm" not in result.macs_by_operation
    assert not any(name in result.macs_by_operation for name in result.uncounted)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bij,bjk->bik", [(1, 2, 3), (1, 3, 5)]),
        ("bi,ij,jk->bk", [(1, 4), (4, 5), (5, 6)]),
        ("ab,bc,cd,de->ae", [(1, 3), (3, 5), (5, 7), (7, 11)]),
        ("...nd,...md->...nm", [(1, 3, 4, 5), (3, 6, 5)]),
        ("ab,cb->a", [(1, 3), (4, 3)]),
        ("abd,abd->abd", [(1, 3, 4), (1, 3, 4)]),
        ("ab,bc", [(1, 3), (3, 2)]),
    ],
)
def test_einsum_is_counted_as_torch_computes_it(equation: str, shapes: list[tuple[int, ...]]) -> None:
    others = [torch.ones(shape) for shape in shapes[1:]]

    def function(x: Tensor) -> Tensor:
        return torch.einsum(equation, x, *others)

    expected = count_by_torch(Function(function), torch.ones(shapes[0]))
    assert macs_of(function, *shapes[0][1:]) == expected


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x @ torch.ones(2, 5, 6), 2 * 4 * 5 * 6),  # the second operand broadcasts the first
        (lambda x: x @ torch.ones(5), 4 * 5),
        (lambda x: torch.baddbmm(torch.ones(4, 6), x, torch.ones(1, 5, 6)), 4 * 5 * 6),
        (lambda x: torch.addbmm(torch.ones(4, 6), x, torch.ones(1, 5, 6)), 4 * 5 * 6),
        (lambda x: torch.addmm(torch.ones(6), x[0], torch.ones(5, 6)), 4 * 5 * 6),
        (lambda x: torch.tensordot(x, torch.ones(4, 5, 6), dims=([1, 2], [0, 1])), 4 * 5 * 6),
        (lambda x: x.to(torch.complex64) @ torch.ones(5, 6, dtype=torch.complex64), 4 * 4 * 5 * 6),
        (lambda x: F.scaled_dot_product_attention(x[None], torch.ones(1, 1, 7, 5), torch.ones(1, 1, 7, 3)), 4 * 7 * 8),
        (lambda x: F.conv1d(x, torch.ones(6, 2, 3), padding="same", groups=2), 5 * 6 * 2 * 3),
        (lambda x: F.conv_transpose1d(x, torch.ones(4, 6, 2), stride=2), 5 * 4 * 6 * 2),
    ],
)
def test_products_are_exact(function: Callable[[Tensor], Tensor], expected: int) -> None:
    assert macs_of(function, 4, 5) == expected


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: torch.fft.rfft(x), 6 * (5 * 8 * 3) / 4),
        (lambda x: torch.fft.fft(x, dim=1), 8 * (5 * 6 * math.log2(6)) / 2),
        (lambda x: torch.fft.rfft2(x), 5 * 48 * math.log2(48) / 4),
        (lambda x: torch.fft.rfft(x, n=16), 6 * (5 * 16 * 4) / 4),
        (lambda x: torch.fft.irfft(x, n=14), 6 * (5 * 14 * math.log2(14)) / 4),
        (lambda x: torch.fft.fftn(x, dim=(0, 2)), 6 * (5 * 8 * 3) / 2),
    ],
)
def test_fourier_transforms_follow_their_convention(function: Callable[[Tensor], Tensor], expected: float) -> None:
    assert macs_of(function, 6, 8) == round(expected)


@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_on_the_meta_device_count_as_elsewhere(bias: bool) -> None:
    model = nn.Sequential(
        nn.Conv3d(3, 6, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), groups=3, bias=bias),
        nn.BatchNorm3d(6),
        nn.ConvTranspose3d(6, 4, 2, stride=2, output_padding=1, bias=bias),
        nn.Conv3d(4, 2, 3, padding="same", bias=bias),
        nn.Flatten(3),
        nn.Conv2d(2, 3, (1, 5), dilation=2, bias=bias),
    )
    real = profile(model, (2, 8, 10))
    assert real.to_dict() == profile(model.to("meta"), (2, 8, 10)).to_dict()
    assert real.macs_executed == count_by_torch(model, torch.empty(1, 3, 2, 8, 10, device="meta"))


@pytest.mark.parametrize(
    ("function", "name"),
    [(lambda x: torch.cdist(x, x), "aten::cdist"), (lambda x: Doubled.apply(x), "prim::PythonOp.Doubled")],
)
def test_unknown_operations_refuse_a_total_and_name_their_module(function: Callable[[Tensor], Any], name: str) -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Sequential(Function(function)))
    with pytest.raises(UnknownOperationError, match=rf"{name} \(called 1 times, in 1\.0\)"):
        profile(model, torch.ones(1, 4, 5))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


def test_custom_operations_count_by_their_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    @torch.library.custom_op("videoattn_tests::self_product", mutates_args=())
    def self_product(x: Tensor) -> Tensor:
        return x @ x.transpose(-2, -1)

    @self_product.register_fake
    def _(x: Tensor) -> Tensor:
        return x.new_empty(*x.shape[:-1], x.shape[-2])

    with pytest.raises(UnknownOperationError, match="videoattn_tests::self_product"):
        macs_of(self_product, 4, 5)
    monkeypatch.setitem(
        MAC_FORMULAS,
        "videoattn_tests::self_product",
        lambda arguments, outputs: math.prod(outputs[0]) * arguments[0][-1],
    )
    assert macs_of(self_product, 4, 5) == 4 * 4 * 5


def test_torch_transformer_layers_are_counted_unfused() -> None:
    layer = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True)
    result = profile(layer, torch.ones(1, 5, 12))
    assert result.attention_executed == 2 * 5 * 5 * 12
    assert result.macs_executed == 5 * (4 * 12 * 12 + 2 * 12 * 24) + 2 * 5 * 5 * 12


def test_tables_do_not_overlap() -> None:
    assert not ELEMENTWISE & UNCOUNTED
    assert not (ELEMENTWISE | UNCOUNTED) & MAC_FORMULAS.keys()


@pytest.mark.parametrize("fails", [False, True])
def test_profiling_leaves_the_model_as_it_was(fails: bool) -> None:
    model = SMALL(act_checkpoint=True).train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    if fails:
        with pytest.raises(ValueError, match="the model expects clips"):
            profile(model, (4, 32, 64))
    else:
        profile(model, model.clip_size)
    assert [module.training for module in model.modules()] == modes
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks and not module._forward_pre_hooks_with_kwargs
    assert torch.backends.mha.get_fastpath_enabled()


def test_operators_called_by_keyword_are_counted() -> None:
    class ByKeyword(nn.Module):
        def __init__(self, operator: AttentionOperator) -> None:
            super().__init__()
            self.operator = operator

        def forward(self, x: Tensor) -> Tensor:
            return self.operator(q=x, k=x, v=x)

    site = AttentionSite(TokenGrid(3, 1, 1), TokenGrid(3, 1, 1), num_heads=3, head_dim=8, block=0)
    result = profile(ByKeyword(DenseAttention(site)), torch.ones(1, 6, 3, 8))
    assert result.macs_needed == result.macs_executed == 2 * 6 * 3 * 3 * 8  # two groups of three heads


def test_bad_requests_are_refused() -> None:
    model = build_meta(SMALL)
    with pytest.raises(ValueError, match="views expects at least 1, got 0"):
        profile(model, model.clip_size, views=0)
    with pytest.raises(ValueError, match=r"one clip \[1, 3, T, H, W\], got \(2, 3, 3, 32, 64\)"):
        profile(model, torch.empty(2, 3, 3, 32, 64, device="meta"))
    with pytest.raises(ValueError, match="meta device has no weights"):
        measure(model, model.clip_size)
    with pytest.raises(ValueError, match="repeats are at least 1"):
        measure(SMALL(), model.clip_size, repeats=0)
    with pytest.raises(ValueError, match="precision expects one of fp32, bf16, fp16, got 'int8'"):
        measure(SMALL(), model.clip_size, precision="int8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="device expects cpu, cuda or cuda:NUMBER, got 'gpu'"):
        measure(SMALL(), model.clip_size, device="gpu")


def test_alike_blocks_share_a_row_with_their_sum() -> None:
    model = build_meta(SMALL, depth=4, operators={Axis.SPACE: FibonacciAttention})
    result = profile(model, model.clip_size, views=3)
    costs = {cost.name: cost for cost in result.modules}
    text = format_profile(result)
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["blocks.0-3"][1] == "x4"
    assert rows["blocks.0-3"][2] == f"{costs['blocks'].macs_executed / 1e6:,.2f}"
    assert rows["blocks.0-3"][3] == f"{costs['blocks'].macs_needed / 1e6:,.2f}"
    assert rows["mixers.space"][2] == f"{4 * costs['blocks.1.mixers.space'].macs_needed / 1e6:,.2f}"
    assert rows["total"][1] == f"{result.macs_executed / 1e6:,.2f}"
    assert "per video (3 views)" in text and "one multiply-add counts as 1" in text
    ran = re.search(r"What ran, in MACs: (.*?)\.\n", text, re.DOTALL)
    assert ran is not None and all(name in ran[1] for name in result.macs_by_operation)
    assert "mixers" not in format_profile(result, depth=1) and "    qkv" in format_profile(result, depth=3)


def test_blocks_that_differ_have_rows_of_their_own() -> None:
    model = build_meta(SMALL, depth=3)
    model.blocks[1].mlp.fc1 = nn.Linear(24, 48, device="meta")
    model.blocks[1].mlp.fc2 = nn.Linear(48, 24, device="meta")
    labels = [line.split()[0] for line in format_profile(profile(model, model.clip_size), 1).splitlines() if line]
    assert [label for label in labels if label.startswith("blocks")] == ["blocks.0", "blocks.1", "blocks.2"]


@pytest.mark.parametrize(("train", "precision"), [(False, "fp32"), (True, "bf16")])
def test_measuring_reports_what_ran_and_leaves_no_trace(train: bool, precision: Any) -> None:
    model = SMALL(operators={Axis.SPACE: FibonacciAttention}).train()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    state, generator = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    result = measure(model, model.clip_size, batch_size=2, precision=precision, warmup=1, repeats=3, train=train)
    assert result.latency_quartiles_ms[0] <= result.latency_ms <= result.latency_quartiles_ms[1]
    assert result.clips_per_second == pytest.approx(2 / (result.latency_ms / 1e3))
    assert result.peak_memory_bytes is None or result.peak_memory_bytes >= 0
    assert result.implementations["DenseAttention"] == ["_scaled_dot_product_flash_attention_for_cpu"]
    assert result.implementations["FibonacciAttention (auto)"]
    assert "median" in format_measurement(result) and result.memory_meaning in format_measurement(result)

    assert model.training and model.blocks[0].training
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert model.head.bias.grad is None
    assert torch.equal(generator, torch.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_measuring_in_training_restores_running_statistics() -> None:
    model = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))
    measure(model, (2, 4, 4), warmup=1, repeats=1, train=True)
    assert torch.equal(model[1].running_mean, torch.zeros(4)) and model[1].num_batches_tracked == 0


@pytest.mark.gpu
def test_measuring_on_a_gpu_counts_tensors_and_returns_the_model() -> None:
    model = SMALL()
    result = measure(model, model.clip_size, device="cuda", warmup=1, repeats=2)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert result.peak_memory_bytes is not None and result.peak_memory_bytes > weights
    assert next(model.parameters()).device.type == "cpu"
