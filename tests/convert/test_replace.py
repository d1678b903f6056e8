"""Laws of `replace_attention` and `revert_attention`: what they change, and what they leave as it is."""

import copy
import io
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import videoattn
from tests.convert.supported_models import (
    CASES,
    NAMES,
    SIZES,
    TYPES,
    GainedAttention,
    ours,
    outputs,
    replace,
    timesformer,
    timm_vit,
    transformers,
    vjepa2,
)
from tests.models.mvit.small_mvits import CLIP_SIZE as MVIT_CLIP_SIZE
from tests.models.mvit.small_mvits import small_mvit
from tests.models.small_models import CLIP_SIZE, randomize
from videoattn.compat import import_timm
from videoattn.grid import Axis, TokenGrid
from videoattn.layers.skip import SkipSettings
from videoattn.models import TimeSformer
from videoattn.models.weights.load import to_ours
from videoattn.operators import OPERATORS, AttentionSite, FibonacciAttention


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[str, ...], Tensor]:
    """A model in float64 with random weights, its axes, and inputs for it."""
    build, axes, shape = CASES[request.param]
    model = randomize(build()).double()
    return model, axes, torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_dense_attention_changes_no_output(case: Any) -> None:
    model, axes, inputs = case
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model, inputs = model.to(dtype), inputs.to(dtype)
        before = outputs(model, inputs)
        replace(model, axes, "dense")
        torch.testing.assert_close(outputs(model, inputs), before, rtol=tolerance, atol=tolerance)
        videoattn.revert_attention(model, verbose=False)
    assert before.std() > 0.1


def test_reverting_gives_back_the_same_modules_weights_and_outputs(case: Any) -> None:
    model, axes, inputs = case
    modules, state, before = list(model.named_modules()), copy.deepcopy(model.state_dict()), outputs(model, inputs)
    kinds, parameters = [type(module) for _, module in modules], list(model.parameters())
    attributes = [set(vars(module)) for _, module in modules]
    replace(model, axes, "fibonacci")
    assert (outputs(model, inputs) - before).abs().max() > 1e-4
    videoattn.revert_attention(model, verbose=False)
    assert all(a is b for (_, a), (_, b) in zip(model.named_modules(), modules, strict=True))
    assert [name for name, _ in model.named_modules()] == [name for name, _ in modules]
    assert [type(module) for _, module in modules] == kinds
    assert [set(vars(module)) for _, module in modules] == attributes
    assert not any(module._forward_pre_hooks for _, module in modules)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(outputs(model, inputs), before)


def test_weights_learned_while_replaced_are_kept(case: Any) -> None:
    model, axes, inputs = case
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    keys, before = list(model.state_dict()), outputs(model, inputs)
    replace(model, axes, "dense")
    assert list(model.state_dict()) == keys
    before.logsumexp(dim=-1).sum().backward()
    optimizer.step()
    learned = outputs(model, inputs)
    videoattn.revert_attention(model, verbose=False)
    assert not torch.allclose(learned, before, atol=1e-3)
    torch.testing.assert_close(outputs(model, inputs), learned, rtol=1e-10, atol=1e-10)


def test_gradients_reach_every_parameter_of_a_model_in_training(case: Any) -> None:
    model, axes, inputs = case
    model.train()
    report = replace(model, axes, GainedAttention)
    outputs(model, inputs).square().mean().backward()
    assert {name for name, _ in model.named_parameters()} >= set(report.new_parameters)
    assert len(report.new_parameters) == 2 * len(axes)
    for name, parameter in model.named_parameters():
        if ".predictor." in name:  # V-JEPA 2's, which classification leaves out
            continue
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if not name.endswith(("k_proj.bias", "key.bias", "k_norm.bias")):  # move all logits of a query alike
            assert parameter.grad.abs().sum() > 1e-12, name


def test_parameters_of_operators_are_the_only_new_keys(case: Any) -> None:
    model, axes, inputs = case
    keys, other = set(model.state_dict()), copy.deepcopy(model)
    report = replace(model, axes, partial(GainedAttention, start=0.5))
    state = model.state_dict()
    assert set(state) - keys == set(report.new_parameters) and keys <= set(state)
    assert all(name.endswith(".operator.gain") and state[name].dtype == torch.float64 for name in report.new_parameters)
    replace(other, axes, GainedAttention)
    other.load_state_dict(state)
    assert torch.equal(outputs(other, inputs), outputs(model, inputs))


def test_copies_and_pickles_of_a_model_with_replaced_attention_can_be_reverted(case: Any) -> None:
    model, axes, inputs = case
    before = outputs(model, inputs)
    replace(model, axes, "fibonacci")
    replaced, file = outputs(model, inputs), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(outputs(other, inputs), replaced)
        videoattn.revert_attention(other, verbose=False)
        assert torch.equal(outputs(other, inputs), before)
    assert torch.equal(outputs(model, inputs), replaced)


def heads_of(projected: Tensor) -> Tensor:
    return torch.stack([projected[..., 8 * head : 8 * head + 8] for head in range(3)], dim=1)


def queries_keys_values(attention: Any, x: Tensor) -> list[Tensor]:
    """From the weights alone, each [B, 3, N, 8]."""
    state = {name: value.detach() for name, value in attention.named_parameters()}
    if "qkv.weight" in state:
        rows = zip(state["qkv.weight"].split(24), state["qkv.bias"].split(24), strict=True)
    else:
        names = ("query", "key", "value") if "query.weight" in state else ("q_proj", "k_proj", "v_proj")
        free = {"query": state.get("q_bias", 0), "key": 0, "value": state.get("v_bias", 0)}
        rows = [(state[f"{name}.weight"], state.get(f"{name}.bias", free.get(name))) for name in names]
    q, k, v = (heads_of(x @ weight.T + bias) for weight, bias in rows)
    for name, value in (("q_norm", q), ("k_norm", k)):
        if f"{name}.weight" in state:
            value.copy_(nn.functional.layer_norm(value, (8,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6))
    return [q, k, v]


# the order in which a joint TimeSformer of transformers holds the tokens that stand here in the order t, h, w
HWT = [0] + [1 + (y * 3 + x) * 4 + t for t in range(4) for y in range(2) for x in range(3)]
LAYERS = [
    ("timm", "space", TokenGrid(1, 2, 3, 3), None),
    ("vivit", "joint", TokenGrid(4, 3, 2, 1), None),
    ("videomae", "joint", TokenGrid(4, 2, 3), None),
    ("hf_divided", "time", TokenGrid(4, 1, 1), None),
    ("hf_divided", "space", TokenGrid(1, 2, 3, 1), None),
    ("hf_joint", "joint", TokenGrid(4, 2, 3, 1), HWT),
    ("hf_space", "space", TokenGrid(1, 2, 3, 1), None),
]


@pytest.mark.parametrize(("name", "axis", "grid", "order"), LAYERS, ids=[f"{name}-{axis}" for name, axis, *_ in LAYERS])
def test_a_layer_gives_what_the_operator_gives_for_its_queries_keys_and_values(
    name: str, axis: str, grid: TokenGrid, order: list[int] | None
) -> None:
    build, _, shape = CASES[name]
    model = randomize(build()).double()
    options = {"variant": "wythoff", "geometry": "axial"}
    report = replace(model, (axis,), {"name": "fibonacci", **options}, blocks=[1])
    (replacement,) = report.replacements
    assert replacement.site == AttentionSite(grid, grid, 3, 8, block=1) and replacement.axis is Axis(axis)
    attention, seen = model.get_submodule(replacement.path), {}
    attention.register_forward_hook(lambda module, args, output: seen.update(x=args[0], output=output))
    outputs(model, torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    q, k, v = queries_keys_values(attention, seen["x"])
    places = order or list(range(grid.tokens))
    operator = FibonacciAttention(AttentionSite(grid, grid, 3, 8, block=1), **options)
    mixed = torch.empty_like(v)
    mixed[:, :, places] = operator(q[:, :, places], k[:, :, places], v[:, :, places])
    expected = torch.cat(list(mixed.unbind(1)), dim=-1)
    for projection in ("proj", "o_proj"):
        if hasattr(attention, projection):
            expected = getattr(attention, projection)(expected)
    output = seen["output"] if isinstance(seen["output"], Tensor) else seen["output"][0]
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["divided", "joint"])
def test_their_timesformer_with_an_operator_is_ours_with_that_operator(kind: str) -> None:
    axes, chosen = TYPES[kind], {"variant": "wythoff", "semantics": "zero_logit"}
    theirs = randomize(timesformer(NAMES[kind]))
    replace(theirs, axes, partial(FibonacciAttention, **chosen))
    model = TimeSformer(
        CLIP_SIZE, 8, embed_dim=24, depth=2, num_heads=3, num_classes=5, attention_type=NAMES[kind],
        operators={Axis(axis): partial(FibonacciAttention, **chosen) for axis in axes},
    ).eval()  # fmt: skip
    model.load_state_dict(to_ours(theirs.state_dict(), "huggingface", num_heads=3))
    clip = torch.randn(2, 3, *CLIP_SIZE, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(outputs(theirs, clip.transpose(1, 2)), model(clip), rtol=1e-5, atol=1e-5)


def test_videomae_of_published_length_trains_with_fibonacci_attention() -> None:
    config = transformers.VideoMAEConfig(**{**SIZES, "hidden_size": 48})
    model = randomize(transformers.VideoMAEForVideoClassification(config)).train()
    report = videoattn.replace_attention(model, joint="fibonacci", verbose=False)
    assert report.replacements[0].site.q_grid == TokenGrid(8, 14, 14)
    clip = torch.randn(1, 16, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    model(clip, labels=torch.tensor([3])).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_blocks_can_be_replaced_apart() -> None:
    vit = timm_vit()
    report = replace(vit, ("space",), "fibonacci", blocks=[1])
    assert [item.path for item in report.replacements] == ["blocks.1.attn"]
    assert type(vit.blocks[0].attn).__name__ == "Attention"
    replace(vit, ("space",), GainedAttention, blocks=(0,))
    assert [type(block.attn.operator) for block in vit.blocks] == [GainedAttention, FibonacciAttention]
    for blocks in ([1], None):
        with pytest.raises(ValueError, match=r"blocks\.[01]\.attn is already replaced; call .*revert_attention first"):
            replace(vit, ("space",), "dense", blocks=blocks)
    assert len(videoattn.revert_attention(vit, verbose=False).replacements) == 2


def test_axes_can_have_different_operators() -> None:
    model = ours()
    videoattn.replace_attention(model, time="fibonacci", space=GainedAttention, verbose=False)
    mixers = model.blocks[1].mixers
    assert isinstance(mixers["time"].operator, FibonacciAttention) and mixers["time"].operator.site.block == 1
    assert isinstance(mixers["space"].operator, GainedAttention)


def test_an_operator_of_ours_comes_back_to_where_the_model_has_gone() -> None:
    model = TimeSformer(CLIP_SIZE, 8, 24, 2, 3, operators={Axis.SPACE: GainedAttention})
    first = model.blocks[0].mixers["space"].operator
    replace(model, ("space",), "dense")
    model.double().eval()
    videoattn.revert_attention(model, verbose=False)
    assert model.blocks[0].mixers["space"].operator is first
    assert first.gain.dtype == torch.float64 and not first.training


def test_blocks_that_skip_attention_stay_as_they_are() -> None:
    skip = {Axis.SPACE: SkipSettings(blocks=(1,), phi="weights"), Axis.TIME: SkipSettings(blocks=(2,))}
    model = TimeSformer(CLIP_SIZE, 8, 24, 3, 3, skip=skip)
    report = replace(model, ("space", "time"), "dense")
    assert [(item.axis.value, item.site.block) for item in report.replacements] == [
        ("time", 0), ("space", 0), ("time", 1), ("space", 2),
    ]  # fmt: skip
    videoattn.revert_attention(model, verbose=False)
    with pytest.raises(ValueError, match=r"blocks expects blocks .* along time, 0-1, got \[2\]"):
        replace(model, ("time",), "dense", blocks=[2])
    with pytest.raises(ValueError, match="block 1 reuses attention weights, which GainedAttention lacks"):
        replace(model, ("space",), GainedAttention)


def test_plain_subclasses_and_models_inside_others_are_known() -> None:
    from timm.models.vision_transformer import VisionTransformer

    class Subclass(VisionTransformer):
        pass

    vit = Subclass(
        img_size=(16, 24), patch_size=8, embed_dim=24, depth=1, num_heads=3, class_token=False, global_pool="avg"
    )
    report = videoattn.replace_attention(nn.Sequential(vit, nn.Linear(1000, 5)), space="fibonacci", verbose=False)
    assert report.replacements[0].path == "0.blocks.0.attn" and report.replacements[0].site.q_grid.prefix == 0


def test_a_distilled_vit_has_two_prefix_tokens() -> None:
    vit = import_timm().create_model(
        "deit_tiny_distilled_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=3, num_classes=5
    )
    report = videoattn.replace_attention(vit, space="dense", verbose=False)
    assert report.replacements[0].site.q_grid == TokenGrid(1, 2, 2, 2)


def test_half_precision_and_models_without_memory_are_supported() -> None:
    vit = randomize(timm_vit())
    replace(vit, ("space",), "fibonacci")
    with torch.autocast("cpu", torch.bfloat16):
        assert vit(torch.randn(1, 3, 16, 24)).isfinite().all()
    half = randomize(timm_vit()).bfloat16()
    replace(half, ("space",), GainedAttention)
    assert half.blocks[0].attn.operator.gain.dtype == half(torch.randn(1, 3, 16, 24).bfloat16()).dtype == torch.bfloat16
    bare = timm_vit().to("meta")
    replace(bare, ("space",), GainedAttention)
    assert all(tensor.is_meta for tensor in [*bare.parameters(), *bare.buffers()])


def test_the_report_is_printed_or_logged(capsys: Any, caplog: Any) -> None:
    model = ours()
    report = videoattn.replace_attention(model, space=GainedAttention)
    assert capsys.readouterr().out == f"{report}\n"
    assert str(report) == (
        "replaced attention of TimeSformer: 2 attention modules\n"
        "  space, blocks 0-1: DenseAttention -> GainedAttention on 1x2x3 patches and 1 prefix tokens, 3 heads of 8, in "
        "blocks.*.mixers.space\n"
        "  new parameters to add to the optimizer: blocks.0.mixers.space.operator.gain and 1 more"
    )
    with caplog.at_level("INFO", logger="videoattn"):
        videoattn.revert_attention(model, verbose=False)
    assert capsys.readouterr().out == "" and "GainedAttention -> DenseAttention" in caplog.text


def test_every_operator_is_known_by_its_name() -> None:
    for name, operator in OPERATORS.items():
        vit = timm_vit()
        videoattn.replace_attention(vit, space=name, verbose=False)
        assert type(vit.blocks[0].attn.operator) is operator
        assert vit(torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))).isfinite().all()


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_an_mvit_takes_operators_and_gives_its_own_back(kind: str) -> None:
    clip = torch.randn(2, 3, *MVIT_CLIP_SIZE, generator=torch.Generator().manual_seed(3))
    model = small_mvit(kind)
    before = outputs(model, clip)
    replace(model, ("joint",), "dense")
    torch.testing.assert_close(outputs(model, clip), before, rtol=1e-5, atol=1e-5)
    videoattn.revert_attention(model, verbose=False)
    report = replace(model, ("joint",), "fibonacci")
    assert len(report.replacements) == 4
    built = small_mvit(kind, operators={Axis.JOINT: FibonacciAttention})
    torch.testing.assert_close(outputs(model, clip), outputs(built, clip), rtol=1e-5, atol=1e-5)
    videoattn.revert_attention(model, verbose=False)
    assert torch.equal(outputs(model, clip), before)
    if kind == "v2":
        with pytest.raises(ValueError, match="bias"):
            replace(model, ("joint",), "lisa")


def test_the_pooler_of_vjepa2_is_replaced_apart_from_the_encoder() -> None:
    model = randomize(vjepa2()).double()
    clips = torch.randn(2, 8, 3, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = outputs(model, clips)
    report = videoattn.replace_attention(model.pooler, joint="dense", verbose=False)  # type: ignore[arg-type]
    assert [item.path for item in report.replacements] == [f"self_attention_layers.{i}.self_attn" for i in range(2)]
    torch.testing.assert_close(outputs(model, clips), before, rtol=0, atol=1e-10)
    report = videoattn.replace_attention(model, joint="dense", verbose=False)
    assert [item.path for item in report.replacements] == [f"vjepa2.encoder.layer.{i}.attention" for i in range(2)]
    torch.testing.assert_close(outputs(model, clips), before, rtol=0, atol=1e-6)  # their angles are float32
    with pytest.raises(ValueError, match="does not accept position_mask"):
        model.vjepa2.encoder.layer[0](torch.zeros(1, 36, 24).double(), torch.zeros(1, 36))  # type: ignore[operator, union-attr, index]
    videoattn.revert_attention(model, verbose=False)
    assert torch.equal(outputs(model, clips), before)


def test_heads_stay_dense_in_any_model(case: Any) -> None:
    """All heads dense change nothing; some give a model between."""
    model, axes, inputs = case
    before = outputs(model, inputs)
    everywhere = [(block, head) for block in range(2) for head in range(12)]
    slots = videoattn.replace_attention(model, **dict.fromkeys(axes, "dense"), verbose=False).replacements
    videoattn.revert_attention(model, verbose=False)
    present = {
        axis: {slot.site.block: slot.site.num_heads for slot in slots if slot.axis.value == axis} for axis in axes
    }
    chosen = {
        axis: {
            "name": "fibonacci",
            "dense_heads": [pair for pair in everywhere if pair[1] < present[axis].get(pair[0], 0)],
        }
        for axis in axes
    }
    videoattn.replace_attention(model, **chosen, verbose=False)
    torch.testing.assert_close(outputs(model, inputs), before, rtol=1e-10, atol=1e-10)
    videoattn.revert_attention(model, verbose=False)
    some = {axis: {"name": "fibonacci", "dense_heads": [(1, 0)]} for axis in axes}
    report = videoattn.replace_attention(model, **some, verbose=False)
    assert {slot.after for slot in report.replacements if slot.site.block == 1} == {"DenseHeadsAttention"}
    assert (outputs(model, inputs) - before).abs().max() > 1e-6
