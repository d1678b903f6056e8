import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.small_models import ATTENTION_TYPES, SMALL, random_clip, small_model
from videoattn.grid import Axis
from videoattn.layers.drop_path import DropPath
from videoattn.layers.skip import SkipSettings
from videoattn.models import MODELS, TimeSformer
from videoattn.operators import FibonacciAttention


def logits_of(model: nn.Module, clip: Tensor) -> Tensor:
    with torch.no_grad():
        return model(clip)


# Refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"clip_size": (4, 20, 24)},
            "patches of 1 x 8 x 8 must divide the clip, got T x H x W = 4 x 20 x 24: H expects a multiple of 8",
        ),
        ({"clip_size": (4, 16, 30)}, "got T x H x W = 4 x 16 x 30"),
        ({"clip_size": (0, 16, 24)}, r"three whole numbers of at least 1, got \(0, 16, 24\)"),
        ({"attention_type": "divided"}, "expects one of divided_space_time, .* got 'divided'"),
        ({"num_heads": 5}, "multiple of the number of heads, got 24 and 5"),
        ({"drop_path_rate": 1.0}, r"a drop rate lies in \[0, 1\), got 1.0"),
    ],
)
def test_what_can_not_be_built_is_refused_with_its_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model(**changes)


@pytest.mark.parametrize("shape", [(3, 5, 16, 24), (3, 4, 24, 16), (3, 4, 16, 32), (4, 3, 16, 24)])
def test_a_clip_of_another_size_is_refused_with_both_sizes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"T, H, W = \(4, 16, 24\), got \(2, " + ", ".join(map(str, shape))):
        small_model()(torch.zeros(2, *shape))


# Laws of the architecture


@pytest.mark.parametrize("clip_size", list(itertools.permutations([8, 16, 24])) + [(3, 8, 32), (1, 16, 24)])
@pytest.mark.parametrize("attention_type", ATTENTION_TYPES)
def test_every_clip_size_gives_logits_and_gradients(attention_type: Any, clip_size: tuple[int, int, int]) -> None:
    model = small_model(attention_type, clip_size=clip_size)
    logits = model(random_clip(2, clip_size))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("attention_type", ATTENTION_TYPES)
def test_one_clip_alone_equals_the_clip_in_a_batch(attention_type: str) -> None:
    model, clips = small_model(attention_type).double(), random_clip(3).double()
    together = logits_of(model, clips)
    for i in range(3):
        torch.testing.assert_close(logits_of(model, clips[i : i + 1])[0], together[i])


def test_the_order_of_frames_matters_unless_they_are_apart() -> None:
    clip, order = random_clip().double(), [2, 0, 3, 1]
    for attention_type in ATTENTION_TYPES:
        model = small_model(attention_type).double()
        change = (logits_of(model, clip[:, :, order]) - logits_of(model, clip)).abs().max()
        assert change < 1e-12 if attention_type == "space_only" else change > 1e-3


def test_attention_along_time_alone_does_not_see_the_order_of_frames() -> None:
    clip, order = random_clip().double(), [2, 0, 3, 1]
    for attention_type in ("divided_space_time", "joint_space_time"):
        model = small_model(attention_type).double()
        nn.init.zeros_(model.time_embed)  # type: ignore[arg-type]
        torch.testing.assert_close(logits_of(model, clip[:, :, order]), logits_of(model, clip))


def test_time_is_mute_in_every_block_of_a_fresh_model() -> None:
    model = TimeSformer(**SMALL)
    for block in model.blocks:
        assert not block.temporal_fc.weight.any() and not block.temporal_fc.bias.any()
    assert model.time_embed is not None and not model.time_embed.any()
    clip = random_clip()
    before = logits_of(model.eval(), clip)
    for block in model.blocks:
        nn.init.normal_(block.mixers["time"].proj.weight, generator=torch.Generator().manual_seed(0))
    assert torch.equal(logits_of(model, clip), before)


def test_a_still_clip_in_a_fresh_model_is_the_image_of_the_space_only_model() -> None:
    divided = TimeSformer(**SMALL).eval().double()
    image = TimeSformer(**SMALL, attention_type="space_only").eval().double()
    shared = {name: value for name, value in divided.state_dict().items() if name in image.state_dict()}
    image.load_state_dict(shared)
    still = random_clip()[:, :, :1].expand(-1, -1, 4, -1, -1).double()
    torch.testing.assert_close(logits_of(divided, still), logits_of(image, still))


def test_attention_along_time_leaves_the_class_token_alone() -> None:
    model = small_model(depth=1)
    for module in (model.blocks[0].mixers["space"].proj, model.blocks[0].mlp.fc2):
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    x = torch.randn(2, model.grid.tokens, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y, _ = model.blocks[0](x, {})
    assert torch.equal(y[:, 0], x[:, 0])
    assert (y[:, 1:] - x[:, 1:]).abs().min(dim=-1).values.max() > 0
    assert not torch.equal(y[:, 1:], x[:, 1:])


def test_the_class_token_takes_the_mean_of_its_updates_in_all_frames() -> None:
    model = small_model(depth=1).double()
    block = model.blocks[0]
    for module in (block.temporal_fc, block.mlp.fc2):
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    x = torch.randn(1, model.grid.tokens, 24, generator=torch.Generator().manual_seed(0)).double()
    frames = x[:, 1:].unflatten(1, (4, 6))
    image = small_model("space_only", depth=1).double().blocks[0]
    image.load_state_dict({k: v for k, v in block.state_dict().items() if "time" not in k and "temporal" not in k})
    with torch.no_grad():
        y, _ = block(x, {})
        alone = [image(torch.cat([x[:, :1], frames[:, t]], dim=1), {})[0] for t in range(4)]
    torch.testing.assert_close(y[:, 0], torch.stack([frame[:, 0] for frame in alone]).mean(dim=0))
    torch.testing.assert_close(y[:, 1:], torch.cat([frame[:, 1:] for frame in alone], dim=1))


def test_a_block_gets_what_its_slots_carried_one_block_before() -> None:
    skip = {Axis.TIME: SkipSettings((1, 3), "identity"), Axis.SPACE: SkipSettings((2,), "weights")}
    model, seen = small_model(depth=4, skip=skip), []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: seen.append((args[1], output[1])))
    logits_of(model, random_clip())
    assert seen[0][0] == {}
    for (_, produced), (received, _) in itertools.pairwise(seen):
        assert received is produced
    assert [list(carried_next) for _, carried_next in seen] == [["time"], ["space"], ["time"], []]
    assert seen[0][1]["time"].shape == (2, 4, 6, 24) and seen[1][1]["space"].shape == (8, 3, 7, 7)


# Drop path


@pytest.mark.parametrize(
    ("axis", "unit", "varying"),
    [
        (Axis.SPACE, "call", (0, 1)),  # clips and frames
        (Axis.TIME, "call", (0, 2)),  # clips and locations
        (Axis.JOINT, "call", (0,)),
        (Axis.SPACE, "sample", (0,)),
        (Axis.TIME, "sample", (0,)),
        (None, "sample", (0,)),
    ],
)
def test_dropped_units_are_whole_calls_or_clips(axis: Axis | None, unit: Any, varying: tuple[int, ...]) -> None:
    drop = DropPath(0.25, axis, unit).train()
    shape = (300, 4, 6, 5) if axis is not None else (300, 30, 5)
    torch.manual_seed(0)
    kept = drop(torch.ones(shape, dtype=torch.float64))
    assert set(kept.unique().tolist()) == {0.0, 1 / 0.75}
    assert abs((kept > 0).double().mean().item() - 0.75) < 0.06
    for dim in range(len(shape)):
        first = kept.select(dim, 0).unsqueeze(dim)
        assert torch.equal(kept, first.expand_as(kept)) == (dim not in varying), dim
    assert torch.equal(drop.eval()(kept), kept)


def test_drop_rates_rise_linearly_and_the_units_follow_the_option() -> None:
    for unit, axes in (("call", (Axis.TIME, Axis.SPACE)), ("sample", (None, None))):
        model = small_model(depth=3, drop_path_rate=0.2, drop_path_unit=unit)
        for rate, block in zip((0.0, 0.1, 0.2), model.blocks, strict=True):
            drops = [block.drop_paths["time"], block.drop_paths["space"], block.drop_path_mlp]
            assert [drop.rate for drop in drops] == pytest.approx([rate] * 3)
            assert [drop.axis for drop in drops] == [*axes, None]


def test_the_bias_of_temporal_fc_survives_a_dropped_track() -> None:
    block = small_model(depth=1).train().blocks[0]
    block.drop_paths["time"].rate = 1 - 1e-12
    for module in (block.mixers["space"].proj, block.mlp.fc2):
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    x = torch.randn(1, 25, 24, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with torch.no_grad():
        torch.testing.assert_close(block(x, {})[0][:, 1:], x[:, 1:] + block.temporal_fc.bias)


# Training and tools around


def test_recomputed_blocks_have_the_same_gradients() -> None:
    gradients = []
    for act_checkpoint in (False, True):
        model = small_model(act_checkpoint=act_checkpoint, drop_path_rate=0.3).double().train()
        torch.manual_seed(0)
        model(random_clip().double()).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("timesformer_base", 121.57),
        ("timesformer_base_hr", 122.02),
        ("timesformer_base_l", 121.63),
    ],
)
def test_published_sizes_have_the_published_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = MODELS[name]()
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize(("name", "dim", "heads"), [("timesformer_tiny", 192, 3), ("timesformer_small", 384, 6)])
def test_small_sizes_have_the_parameters_of_their_formula(name: str, dim: int, heads: int) -> None:
    with torch.device("meta"):
        model = MODELS[name]()
    attention = 4 * dim * dim + 4 * dim + 2 * dim  # qkv, proj, norm
    block = 2 * attention + (dim * dim + dim) + (8 * dim * dim + 5 * dim) + 2 * dim  # two axes, temporal_fc, MLP, norm
    ends = 768 * dim + dim + dim + 197 * dim + 8 * dim + 2 * dim + 400 * dim + 400
    assert sum(parameter.numel() for parameter in model.parameters()) == 12 * block + ends
    assert model.get_submodule("blocks.0.mixers.time").num_heads == heads


OPERATORS = {"dense": None, "fibonacci": {Axis.TIME: FibonacciAttention, Axis.SPACE: FibonacciAttention}}


@pytest.mark.parametrize("operators", OPERATORS)
def test_an_exported_model_gives_the_same_logits(operators: str) -> None:
    model, clip = small_model(operators=OPERATORS[operators]), random_clip()
    exported = torch.export.export(model, (clip,)).module()
    other = random_clip(seed=8)
    torch.testing.assert_close(logits_of(exported, other), logits_of(model, other), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("operators", OPERATORS)
def test_a_compiled_model_gives_the_same_logits_and_gradients(operators: str) -> None:
    model, clip = small_model(operators=OPERATORS[operators]), random_clip()
    compiled = torch.compile(model)
    gradients = []
    for run in (model, compiled):
        model.zero_grad()
        logits = run(clip)
        logits.square().sum().backward()
        gradients.append([logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    for plain, fused in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-4 * plain.abs().max().item())
