"""A video ViT accepts clips of other sizes at run time: what it gives is what a model built for them gives."""

import copy
import pickle
import re
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tests.models.small_models import randomize
from tests.models.video_vit.test_video_vit import KINDS, SMALL, small
from videoattn import replace_attention, revert_attention
from videoattn.grid import Axis, TokenGrid
from videoattn.layers.attention import TokenMixer
from videoattn.layers.skip import SkipSettings
from videoattn.layers.views import GridModule, ViewCache, view_on
from videoattn.models.video_vit.model import VideoViT
from videoattn.operators import OPERATORS, AttentionOperator, AttentionSite, FibonacciAttention
from videoattn.profiling.profile import profile

Size = tuple[int, int, int]
ROTARY = ("vjepa2", "vjepa2_1")
OTHER: tuple[Size, ...] = ((4, 48, 80), (12, 64, 32))  # SMALL is 8 x 32 x 48
FIBONACCI: list[dict[str, Any]] = [
    {"geometry": "raster"}, {"geometry": "axial"}, {"geometry": "block"}, {"geometry": "raster", "order": "hwt"},
    {"semantics": "zero_logit"}, {"semantics": "zero_logit", "geometry": "axial"}, {"implementation": "masked"},
    {"implementation": "gather"},
]  # fmt: skip


def clip(size: Size, dtype: torch.dtype = torch.float64, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(3), dtype=dtype)


def arguments_of(kind: str, **changes: Any) -> dict[str, Any]:
    return {**SMALL, **KINDS[kind], **changes}


def with_operator(**options: Any) -> dict[str, Any]:
    return {"operators": {Axis.JOINT: lambda site: FibonacciAttention(site, **options)}}


def rebuilt(model: VideoViT, size: Size, kind: str, **changes: Any) -> VideoViT:
    """Return a model built for clips of `size`, with the same state, type and mode."""
    other = VideoViT(**arguments_of(kind, clip_size=size, **changes)).to(next(model.parameters()))
    other.load_state_dict(model.state_dict())
    return other.train(model.training)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"{kind}, dense": (kind, {}) for kind in ROTARY},
    **{f"fibonacci {options}": ("vjepa2_1", with_operator(**options)) for options in FIBONACCI},
    **{
        f"skip {phi}": ("vjepa2", {"skip": {Axis.JOINT: SkipSettings((1, 2), phi)}})  # type: ignore[arg-type]
        for phi in ("leff", "identity", "weights")
    },
    "a class token": ("vjepa2", {"class_token": True, "head": "class_token"}),
    "a mean": ("vjepa2", {"head": "mean"}),
    "recomputed blocks": ("vjepa2", {"act_checkpoint": True}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_clip_of_another_size_gives_what_a_model_built_for_it_gives(case: str) -> None:
    kind, changes = CASES[case]
    model = small(kind, **changes).double()
    for mode in (False, True):
        model.train(mode)
        for size in OTHER:
            other = rebuilt(model, size, kind, **changes)
            torch.testing.assert_close(model(clip(size)), other(clip(size)), rtol=0, atol=1e-12)
            for one, two in zip(model.forward_levels(clip(size)), other.forward_levels(clip(size)), strict=True):
                torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
    built_for = clip(model.clip_size)
    torch.testing.assert_close(
        model(built_for), rebuilt(model, model.clip_size, kind, **changes)(built_for), rtol=0, atol=0
    )


def test_float32_agrees_as_well() -> None:
    model = small("vjepa2_1", **with_operator())
    for size in OTHER:
        other = rebuilt(model, size, "vjepa2_1", **with_operator())
        torch.testing.assert_close(
            model(clip(size, torch.float32)), other(clip(size, torch.float32)), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("kind", ROTARY)
def test_shared_parameters_get_the_gradients_of_every_size(kind: str) -> None:
    model = small(kind, **with_operator()).double().train()
    sizes = (model.clip_size, *OTHER)
    sum(model(clip(size)).square().sum() for size in sizes).backward()  # type: ignore[union-attr]
    expected: dict[str, Tensor] = {}
    for size in sizes:
        other = rebuilt(model, size, kind, **with_operator())
        other(clip(size)).square().sum().backward()
        for name, parameter in other.named_parameters():
            if parameter.grad is not None:
                expected[name] = expected.get(name, torch.zeros(())) + parameter.grad
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in expected), name
        if parameter.grad is not None:
            scale = float(expected[name].abs().max())
            torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-12 * max(scale, 1))


def test_an_image_goes_through_the_patches_of_images() -> None:
    model = small("vjepa2_1").double()
    other = rebuilt(model, (1, 48, 32), "vjepa2_1")
    torch.testing.assert_close(model(clip((1, 48, 32))), other(clip((1, 48, 32))), rtol=0, atol=1e-12)
    torch.testing.assert_close(other(clip((4, 32, 48))), model(clip((4, 32, 48))), rtol=0, atol=1e-12)


# ---- what is refused


@pytest.mark.parametrize(("axis", "patch"), [("T", 2), ("H", 16), ("W", 16)])
def test_sizes_that_patches_do_not_divide_are_refused_by_axis(axis: str, patch: int) -> None:
    model, size = small("vjepa2"), [8, 32, 48]
    size["THW".index(axis)] += 1
    wrong = "patches of 2 x 16 x 16 must divide the clip, got T x H x W = " + " x ".join(map(str, size))
    for call in (lambda: model(torch.zeros(1, 3, *size)), lambda: model.for_clips(tuple(size))):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=re.escape(f"{wrong}: {axis} expects a multiple of {patch}")):
            call()


def test_what_is_no_clip_is_refused() -> None:
    for shape in ((3, 8, 32, 48), (1, 4, 8, 32, 48), (1, 3, 8, 32)):
        with pytest.raises(ValueError, match=r"the model expects clips \[B, 3, T, H, W\] with T, H, W = \(8, 32, 48\)"):
            small("vjepa2")(torch.zeros(shape))


@pytest.mark.parametrize(("operator", "parameters"), [("lisa", "r1, r2"), ("focused_linear", "pos_time, pos_space")])
def test_operators_whose_parameters_belong_to_the_grid_say_so(operator: str, parameters: str) -> None:
    model = small("vjepa2", operators={Axis.JOINT: OPERATORS[operator]})
    with pytest.raises(
        ValueError,
        match=rf"clips of 4 x 48 x 80 in a model for 8 x 32 x 48: {OPERATORS[operator].__name__} serves no other grid "
        rf"than 4 x 2 x 3, to whose positions its parameters {parameters} belong$",
    ):
        model(clip((4, 48, 80), torch.float32))
    assert len(model._views) == 0
    model(clip(model.clip_size, torch.float32))


class Scaled(AttentionOperator):
    """An operator whose one parameter serves every grid."""

    grid_parameters = ()

    def __init__(self, site: AttentionSite) -> None:
        super().__init__(site)
        self.scale = nn.Parameter(torch.rand(site.num_heads, 1, 1))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        return (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v


class Undeclared(Scaled):
    grid_parameters = None


def test_an_operator_may_declare_that_its_parameters_serve_every_grid() -> None:
    changes: dict[str, Any] = {"operators": {Axis.JOINT: Scaled}}
    model = small("vjepa2", **changes).double()
    state = torch.get_rng_state()
    model(clip(OTHER[0])).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(block.mixers["joint"].operator.scale.grad is not None for block in model.blocks)
    other = rebuilt(model, OTHER[0], "vjepa2", **changes)
    torch.testing.assert_close(model(clip(OTHER[0])), other(clip(OTHER[0])), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="Undeclared serves no other grid than 4 x 2 x 3, .* parameters scale belong"):
        small("vjepa2", operators={Axis.JOINT: Undeclared})(clip(OTHER[0], torch.float32))


def test_a_table_of_sines_is_changed_only_when_asked_and_learned_positions_never() -> None:
    model = small("videomae").double()
    with pytest.raises(ValueError, match=r"the model expects clips .* = \(8, 32, 48\), got \(2, 3, 4, 48, 80\)"):
        model(clip(OTHER[0]))
    view = model.for_clips(OTHER[0])
    torch.testing.assert_close(
        view(clip(OTHER[0])), rebuilt(model, OTHER[0], "videomae")(clip(OTHER[0])), rtol=0, atol=1e-12
    )
    learned = small("class token")
    with pytest.raises(ValueError, match="its positions are learned; .* allow_resize=True"):
        learned.for_clips(OTHER[0])
    assert learned.for_clips((8, 32, 48)) is learned


def test_modules_that_cannot_be_moved_are_named() -> None:
    class Own(TokenMixer):
        pass

    with pytest.raises(ValueError, match="Own belongs to the clips that it was built for"):
        view_on(Own(TokenGrid(1, 2, 3), Axis.JOINT), TokenGrid(2, 2, 3))
    model = small("vjepa2")
    wrapper = nn.Module()
    wrapper.block = model.blocks[1]
    model.blocks[1] = wrapper
    with pytest.raises(ValueError, match="Module holds modules that belong to the clips they were built for"):
        model.for_clips(OTHER[0])


# ---- the cache of views


def test_the_last_few_sizes_are_kept_and_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, planned = small("vjepa2", **with_operator()), []
    plan = AttentionOperator.planned_for
    monkeypatch.setattr(
        AttentionOperator, "planned_for", lambda self, site: planned.append(site.q_grid) or plan(self, site)
    )
    sizes: list[Size] = [(2 * t, 32, 48) for t in (1, 2, 3, 5, 6)]
    with torch.no_grad():
        for size in (sizes[0], sizes[0], model.clip_size, *sizes):
            model(clip(size, torch.float32, 1))
        assert len(planned) == len(sizes) * len(model.blocks)
        assert len(model._views) == ViewCache().most == 4
        model(clip(sizes[1], torch.float32, 1))
        assert len(planned) == len(sizes) * len(model.blocks)
        model(clip(sizes[0], torch.float32, 1))  # the oldest, which was dropped
    assert len(planned) == (len(sizes) + 1) * len(model.blocks)


def test_a_tables_of_rotations_is_shared_by_the_blocks_of_a_view() -> None:
    view = small("vjepa2").for_clips(OTHER[0])
    assert len({id(block.mixers["joint"].rotate) for block in view.blocks}) == 1


def test_a_view_is_a_whole_model_for_its_size() -> None:
    model = small("vjepa2_1", **with_operator())
    view = model.for_clips(OTHER[0])
    assert view.clip_size == OTHER[0] and view.grid == TokenGrid(2, 3, 5)
    assert list(view.state_dict()) == list(model.state_dict())
    for (name, one), (other, two) in zip(model.named_parameters(), view.named_parameters(), strict=True):
        assert name == other and one is two
    placed = [module for module in view.modules() if isinstance(module, GridModule) and hasattr(module, "grid")]
    grids = {module.grid for module in placed} | {m.operator.site.q_grid for m in placed if isinstance(m, TokenMixer)}
    assert grids == {view.grid} and len(placed) == 1 + 2 * len(view.blocks)
    torch.testing.assert_close(view(clip((8, 32, 48), torch.float32)), model(clip((8, 32, 48), torch.float32)))
    with torch.no_grad():
        model.head.weight.zero_()  # type: ignore[union-attr]
        assert torch.equal(view(clip(OTHER[0], torch.float32)), model.head.bias.expand(2, -1))  # type: ignore[union-attr]


def test_multiply_accumulates_of_another_size_are_those_of_a_model_for_it() -> None:
    with torch.device("meta"):
        model, other = (VideoViT(**arguments_of("vjepa2", clip_size=size, **with_operator())) for size in
                        ((8, 32, 48), (8, 96, 160)))  # fmt: skip
    assert profile(model, (8, 96, 160)).to_dict() == profile(other, (8, 96, 160)).to_dict()


# ---- what is done to models


def test_state_dicts_and_copies_know_nothing_of_views() -> None:
    model = small("vjepa2", operators={Axis.JOINT: FibonacciAttention})
    keys, modules = list(model.state_dict()), len(list(model.modules()))
    model(clip(OTHER[0], torch.float32))
    assert list(model.state_dict()) == keys and len(list(model.modules())) == modules and len(model._views) == 1
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len(other._views) == 0
        torch.testing.assert_close(
            other(clip(OTHER[0], torch.float32)), model(clip(OTHER[0], torch.float32)), rtol=0, atol=0
        )
        randomize(other, seed=9)
        assert not torch.equal(other(clip(OTHER[0], torch.float32)), model(clip(OTHER[0], torch.float32)))
    shallow = copy.copy(model)
    shallow.head = nn.Linear(48, 2)
    assert shallow(clip(OTHER[0], torch.float32)).shape == (2, 2)


def test_averaged_weights_and_loaded_ones_are_used_at_every_size() -> None:
    model = small("vjepa2", **with_operator()).double()
    model(clip(OTHER[0]))
    averaged = AveragedModel(model)
    averaged(clip(OTHER[0]))
    randomize(model, seed=4)
    averaged.update_parameters(model)
    averaged.update_parameters(model)
    torch.testing.assert_close(
        averaged(clip(OTHER[0])), rebuilt(averaged.module, OTHER[0], "vjepa2", **with_operator())(clip(OTHER[0])),
        rtol=0, atol=1e-12,
    )  # fmt: skip
    for assign in (False, True):
        state = small("vjepa2").double().state_dict()
        model.load_state_dict({name: value + 0.01 * (1 + assign) for name, value in state.items()}, assign=assign)
        expected = rebuilt(model, OTHER[0], "vjepa2", **with_operator())(clip(OTHER[0]))
        torch.testing.assert_close(model(clip(OTHER[0])), expected, rtol=0, atol=1e-12)


def test_types_and_devices_are_followed() -> None:
    model = small("vjepa2", **with_operator())
    model(clip(OTHER[0], torch.float32))
    model.double()
    expected = rebuilt(model, OTHER[0], "vjepa2", **with_operator())(clip(OTHER[0]))
    torch.testing.assert_close(model(clip(OTHER[0])), expected, rtol=0, atol=1e-12)
    moved = nn.ModuleList([model]).to("meta")[0]
    assert moved(clip(OTHER[0]).to("meta")).is_meta


def test_exchanged_modules_and_modes_are_followed() -> None:
    model = small("vjepa2", drop_path_rate=0.5).double()
    dense = model(clip(OTHER[0]))
    replace_attention(model, joint="fibonacci", verbose=False)
    expected = rebuilt(model, OTHER[0], "vjepa2", operators={Axis.JOINT: FibonacciAttention})(clip(OTHER[0]))
    torch.testing.assert_close(model(clip(OTHER[0])), expected, rtol=0, atol=1e-12)
    view = model.for_clips(OTHER[0])
    for reverted in (view, model):
        revert_attention(reverted, verbose=False)
        torch.testing.assert_close(reverted(clip(OTHER[0])), dense, rtol=0, atol=1e-12)
    sparse = small("vjepa2", operators={Axis.JOINT: FibonacciAttention}).double()
    expected = sparse(clip(OTHER[0]))
    replace_attention(sparse, joint="dense", verbose=False)
    view = sparse.for_clips(OTHER[0])
    revert_attention(view, verbose=False)
    torch.testing.assert_close(view(clip(OTHER[0])), expected, rtol=0, atol=1e-12)
    model.train()
    assert not torch.equal(model(clip(OTHER[0])), dense)
    model.eval()
    assert torch.equal(model(clip(OTHER[0])), dense)
    model.blocks[2] = nn.Identity()
    with pytest.raises(TypeError):
        model(clip(OTHER[0]))


def test_hooks_of_the_model_see_clips_of_every_size() -> None:
    model, seen = small("vjepa2", **with_operator()), []
    model(clip(OTHER[0], torch.float32))
    for module in (model.blocks[1], model.blocks[1].mixers["joint"], model.blocks[1].mixers["joint"].operator):
        module.register_forward_hook(lambda module, args, out: seen.append(type(module).__name__))
    model(clip(OTHER[0], torch.float32))
    assert seen == ["FibonacciAttention", "MultiheadAttention", "TransformerBlock"]


def test_an_exported_view_gives_the_same_with_the_same_keys() -> None:
    model = small("vjepa2", **with_operator(), depth=1)
    exported = torch.export.export(model.for_clips(OTHER[0]), (clip(OTHER[0], torch.float32),))
    found = exported.module()(clip(OTHER[0], torch.float32))
    torch.testing.assert_close(found, model(clip(OTHER[0], torch.float32)), rtol=1e-5, atol=1e-5)
    assert set(exported.state_dict) == set(model.state_dict())


@pytest.mark.slow
def test_compiled_models_give_the_same_at_every_size() -> None:
    model = small("vjepa2", **with_operator(), depth=1)
    sizes = (model.clip_size, *OTHER, model.clip_size)
    expected = [model(clip(size, torch.float32)) for size in sizes]
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager")
    for size, logits in zip(sizes, expected, strict=True):
        torch.testing.assert_close(compiled(clip(size, torch.float32)), logits, rtol=1e-5, atol=1e-5)
    for at in (0, 1):
        whole = torch.compile(model.for_clips(sizes[at]), backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(whole(clip(sizes[at], torch.float32)), expected[at], rtol=1e-5, atol=1e-5)


def test_processes_that_train_together_wait_for_no_gradient_of_another_size() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = small("vjepa2_1", **with_operator()).train()
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
        for size in (model.clip_size, *OTHER):
            for trained in (model, wrapped):
                trained.zero_grad()
                trained(clip(size, torch.float32)).square().sum().backward()
            for (name, one), two in zip(model.named_parameters(), wrapped.parameters(), strict=True):
                assert (one.grad is None and two.grad is None) or torch.equal(one.grad, two.grad), name  # type: ignore[arg-type]
    finally:
        dist.destroy_process_group()


def test_segments_of_clips_of_another_size_are_encoded_apart() -> None:
    model, built = (
        small("vjepa2", num_segments=2, clip_size=size).double().eval() for size in ((8, 32, 48), (12, 48, 32))
    )
    built.load_state_dict(model.state_dict())
    clip = torch.randn(2, 3, 12, 48, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(clip), built(clip), rtol=0, atol=1e-12)
    torch.testing.assert_close(model.for_clips((12, 48, 32))(clip), built(clip), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="num_segments expects 1, or a divisor of the 11 frames"):
        model.for_clips((11, 48, 32))
