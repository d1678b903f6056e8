"""SkipAt as a mixer: against the official tensors, and its laws on grids whose t, h and w all differ."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.small_models import ATTENTION_TYPES, CLIP_SIZE, random_clip, randomize, small_model
from tests.samples import first_quick
from tests.shared_files import GOLDEN, needs_golden
from videoattn.grid import Axis, TokenGrid, fold
from videoattn.layers.attention import MultiheadAttention
from videoattn.layers.skip import Leff, ReusedWeights, SkipAttention, SkipSettings
from videoattn.models import TimeSformer
from videoattn.models.timesformer.model import AXES
from videoattn.operators import DenseAttention, FibonacciAttention

GRID = TokenGrid(4, 3, 5, prefix=1)
PHIS = ("leff", "identity", "weights")
# the official names of Φ's tensors, and ours
LEFF_NAMES = {"linear1.0": "expand", "dwconv.0": "conv", "linear2.0": "reduce", "eca.conv": "gate"}


def golden(name: str) -> dict[str, Any]:
    case: dict[str, Any] = torch.load(GOLDEN / f"{name}.pt", weights_only=True)
    return case


def leff_state(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        if name.startswith(prefix):
            module, _, kind = name.removeprefix(prefix).rpartition(".")
            renamed[f"{LEFF_NAMES[module]}.{kind}"] = value
    return renamed


def stream(seed: int = 0, grid: TokenGrid = GRID, width: int = 12) -> Tensor:
    return torch.randn(2, grid.tokens, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- the official tensors


@needs_golden
def test_phi_equals_the_official_phi() -> None:
    case = golden("skipat_leff_d48_n36_f64")
    phi = Leff(48, Axis.SPACE).double()
    phi.load_state_dict(leff_state(case["state_dict"]))
    x = case["x"].clone().requires_grad_()
    y = phi(x.unflatten(1, (1, 6, 6))).flatten(1, 3)
    torch.testing.assert_close(y, case["y"], rtol=0, atol=1e-12)
    if "grad_x" in case:
        (y * case["cotangent"]).sum().backward()
        torch.testing.assert_close(x.grad, case["grad_x"], rtol=0, atol=1e-12)


@needs_golden
def test_a_whole_vit_equals_the_official_one_in_every_block() -> None:
    case = golden("skipat_vit_d48_depth12_f64")
    state, heads = case["state_dict"], case["ctor"].get("num_heads", 4)
    classes = state["head.weight"].shape[0]
    skip = {Axis.SPACE: SkipSettings((3, 4, 5, 6, 7, 8))}
    model = TimeSformer(
        (1, 32, 32), 8, 48, 12, heads, classes, "space_only", skip=skip, drop_path_rate=0.0,
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / 48,
    )  # fmt: skip
    model.double().load_state_dict(_ours(state, heads))
    seen: list[tuple[Tensor, Tensor]] = []
    for block in model.blocks:
        block.mixers["space"].register_forward_hook(lambda module, args, output: seen.append(output[0]))
    streams: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: streams.append(output[0]))
    with torch.no_grad():
        logits = model(case["x"].unsqueeze(2))
    for i in range(12):
        torch.testing.assert_close(streams[i], case["block_out"][i], rtol=0, atol=1e-9)
        torch.testing.assert_close(seen[i][:, 0], case["block_msa_val"][i], rtol=0, atol=1e-9)
    torch.testing.assert_close(logits, case["logits"], rtol=0, atol=1e-9)


def _ours(state: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
    from videoattn.layers.attention import reorder_qkv_rows

    renamed = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0].startswith("param_"):
            block = 2 + int(parts[0].removeprefix("param_"))
            (inner,) = leff_state({".".join(parts[1:]): value})
            renamed[f"blocks.{block}.mixers.space.phi.{inner}"] = value
            continue
        name = name.replace(".norm1.", ".mixers.space.norm.").replace(".norm2.", ".norm_mlp.")
        name = name.replace(".attn.", ".mixers.space.")
        if parts[0] == "blocks" and 3 <= int(parts[1]) <= 8 and ".mixers.space." in name:
            continue  # the official model keeps the attention of skipped blocks, which never runs
        renamed[name] = reorder_qkv_rows(value, heads) if ".qkv." in name else value
    return renamed


# ---- laws of a slot


@pytest.mark.parametrize("axis", list(Axis))
@pytest.mark.parametrize("phi", [None, "leff"])
def test_prefix_rows_are_frozen_and_patch_rows_go_through_phi(axis: Axis, phi: str | None) -> None:
    module = randomize(Leff(12, axis)).double() if phi else None
    mixer = SkipAttention(GRID, axis, module, "update")
    carried = fold(stream(), GRID, axis)
    update, carried_next = mixer(stream(1), carried)
    assert carried_next is update and update.shape == carried.shape
    prefix = 0 if axis is Axis.TIME else 1
    assert torch.equal(update[:, :, :prefix], carried[:, :, :prefix])
    patches = carried[:, :, prefix:]
    if phi is None:
        assert torch.equal(update, carried)
        return
    assert module is not None
    for call, expected in _calls(module, patches, axis):
        torch.testing.assert_close(update[:, :, prefix:][call], expected, rtol=0, atol=1e-12)


def _calls(phi: nn.Module, patches: Tensor, axis: Axis) -> list[tuple[Any, Tensor]]:
    """Φ on each attention call by itself: which part of the update it makes, and its value."""
    everything = slice(None)
    if axis is Axis.SPACE:
        return [((everything, t), phi(patches[:, t].unflatten(1, (3, 5)).unsqueeze(1)).flatten(1, 3)) for t in range(4)]
    if axis is Axis.TIME:
        return [((everything, everything, i), phi(patches[:, :, i][:, :, None, None]).flatten(1, 3)) for i in range(15)]
    return [((everything, 0), phi(patches[:, 0].unflatten(1, (4, 3, 5))).flatten(1, 3))]


@pytest.mark.parametrize("axis", list(Axis))
@pytest.mark.parametrize("operator", [DenseAttention, FibonacciAttention])
def test_reused_weights_mix_new_values_as_the_operator_would(axis: Axis, operator: Any) -> None:
    first = MultiheadAttention(12, 3, GRID, axis, 0, operator, carry="weights").double()
    plain = MultiheadAttention(12, 3, GRID, axis, 0, operator).double()
    randomize(first)
    plain.load_state_dict(first.state_dict())
    x = stream()
    update, weights = first(x)
    assert weights is not None
    torch.testing.assert_close(update, plain(x)[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))

    second = ReusedWeights(12, 3, GRID, axis, "weights").double()
    rows = plain.qkv.weight.unflatten(0, (3, 3, 4))[:, 2].flatten(0, 1)
    bias = plain.qkv.bias.unflatten(0, (3, 3, 4))[:, 2].flatten()
    second.load_state_dict(
        {"v.weight": rows, "v.bias": bias}
        | {name: value for name, value in plain.state_dict().items() if name.split(".")[0] in ("norm", "proj")}
    )
    again, carried_next = second(x, weights)
    torch.testing.assert_close(again, update, rtol=0, atol=1e-12)
    assert carried_next is weights


# ---- models


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("attention_type", ATTENTION_TYPES)
def test_models_skip_along_every_axis(phi: Any, attention_type: str) -> None:
    skip = {axis: SkipSettings((1, 2, 4), phi) for axis in AXES[attention_type]}
    # nothing is dropped: by chance that could be all that reaches a parameter
    model = small_model(attention_type, depth=6, skip=skip, drop_path_rate=0.0).double().train()
    clip = random_clip().double()
    model(clip).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), f"{name} is dead"
        if "phi" in name or ".v." in name:
            assert parameter.grad.abs().max() > 0, name
    names = [name for name, _ in model.named_parameters()]
    for i in (1, 2, 4):
        assert not [name for name in names if name.startswith(f"blocks.{i}.mixers") and "qkv" in name]
    model.eval()
    whole = model(clip)
    torch.testing.assert_close(torch.cat([model(clip[:1]), model(clip[1:])]), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("phi", PHIS)
def test_recomputed_blocks_give_the_same_gradients(phi: Any) -> None:
    gradients = []
    for recompute in (False, True):
        skip = {axis: SkipSettings((1, 2), phi) for axis in (Axis.TIME, Axis.SPACE)}
        model = small_model(depth=4, skip=skip, act_checkpoint=recompute, drop_path_rate=0.0).double().train()
        model(random_clip().double()).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


@pytest.mark.parametrize("phi", first_quick(PHIS))
def test_an_exported_model_gives_the_same_logits(phi: Any) -> None:
    skip = {axis: SkipSettings((1, 2), phi) for axis in (Axis.TIME, Axis.SPACE)}
    model = small_model(depth=3, skip=skip)
    program = torch.export.export(model, (random_clip(),))
    torch.testing.assert_close(program.module()(random_clip(seed=2)), model(random_clip(seed=2)))


@pytest.mark.slow
@pytest.mark.parametrize("phi", PHIS)
def test_a_compiled_model_gives_the_same_logits(phi: Any) -> None:
    skip = {axis: SkipSettings((1,), phi) for axis in (Axis.TIME, Axis.SPACE)}
    model = small_model(depth=2, skip=skip)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(random_clip()), model(random_clip()), rtol=1e-3, atol=1e-4)


def test_the_chains_of_two_axes_are_independent() -> None:
    time_only = {Axis.TIME: SkipSettings((1,), "identity")}
    model = small_model(depth=2, skip=time_only)
    assert isinstance(model.blocks[1].mixers["time"], SkipAttention)
    assert isinstance(model.blocks[1].mixers["space"], MultiheadAttention)


# ---- refusals


def test_block_0_and_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="blocks from 1 on, since block 0 has no block before it"):
        SkipSettings((0, 1))
    with pytest.raises(ValueError, match="PHI expects one of leff, identity, weights, got 'conv'"):
        SkipSettings((1,), "conv")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="EXPANSION expects 1 or more, got 0"):
        SkipSettings((1,), expansion=0)


def test_weights_of_an_operator_that_forms_none_are_refused() -> None:
    class Mixing(DenseAttention):
        forms_weights = False

    with pytest.raises(ValueError, match="Mixing along SPACE forms no attention weights that block 1"):
        small_model("space_only", operators={Axis.SPACE: Mixing}, skip={Axis.SPACE: SkipSettings((1,), "weights")})


def test_a_skipped_slot_without_a_block_before_it_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs the update of the block before it along TIME"):
        SkipAttention(GRID, Axis.TIME, None)(stream())
    with pytest.raises(ValueError, match="needs those of the block before it along TIME"):
        ReusedWeights(12, 3, GRID, Axis.TIME)(stream().float())


def test_the_models_initialisation_reaches_phi() -> None:
    skip = {Axis.SPACE: SkipSettings((1,))}
    model = TimeSformer(CLIP_SIZE, 8, 96, 2, 3, 5, "space_only", skip=skip)
    phi = model.blocks[1].mixers["space"].phi
    for linear in (phi.expand, phi.reduce):
        assert abs(linear.weight.std().item() - 0.02) < 0.002 and not linear.bias.any()
