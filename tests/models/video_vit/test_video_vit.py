"""Video ViTs equal their authors' code on grids whose t, h and w all differ, and take every operator."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.small_models import randomize
from tests.shared_files import GOLDEN, needs_golden
from videoattn.config import load_config
from videoattn.grid import Axis, TokenGrid
from videoattn.layers.position import ComputedTable, sincos_table
from videoattn.layers.rotary import RotaryPositions
from videoattn.layers.skip import SkipSettings
from videoattn.models import build_model
from videoattn.models.video_vit.model import VideoViT
from videoattn.models.weights.load import load_weights
from videoattn.operators import OPERATORS
from videoattn.profiling.profile import profile

SMALL: dict[str, Any] = {
    "clip_size": (8, 32, 48), "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 5, "probe_heads": 3,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "videomae": {"bias": "qv"},
    "vjepa2": {"positions": "rope_tiled", "head": "attentive"},
    "vjepa2_1": {
        "positions": "rope_interleaved", "rotary_base": 16, "modality": True, "head": "attentive", "levels": (0, 2),
    },
    "class token": {"positions": "learned", "class_token": True, "head": "class_token"},
}  # fmt: skip


def small(kind: str, **changes: Any) -> VideoViT:
    model = VideoViT(**{**SMALL, **KINDS[kind], **changes})
    randomize(model)
    return model


def clip_of(model: VideoViT, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    parameter = next(model.parameters())
    return torch.randn(batch, 3, *model.clip_size, generator=generator).to(parameter.dtype)


def golden(name: str) -> dict[str, Any]:
    values: dict[str, Any] = torch.load(GOLDEN / f"{name}_values.pt", weights_only=True)
    return values


def built(values: dict[str, Any], **arguments: Any) -> VideoViT:
    ctor = values["ctor"]
    names = {"tubelet": "tubelet", "patch": "patch_size", "clip_size": "clip_size", "embed_dim": "embed_dim",
             "depth": "depth", "num_heads": "num_heads"}  # fmt: skip
    sizes = {ours: ctor[theirs] for theirs, ours in names.items()}
    return VideoViT(**sizes, num_classes=max(ctor["num_classes"], 1), **arguments).double().eval()


@needs_golden
def test_videomae_gives_the_logits_of_its_authors_code() -> None:
    values = golden("videomae_8x32x48")
    model = built(values, **KINDS["videomae"])
    report = load_weights(model, GOLDEN / "videomae_8x32x48.pth")
    assert report.family == "videomae" and not report.dropped and not report.initialised
    torch.testing.assert_close(model(values["x"]), values["y"], rtol=0, atol=1e-10)


@needs_golden
def test_vjepa2_gives_the_features_and_logits_of_its_authors_code() -> None:
    values = golden("vjepa2_8x48x80")
    model = built(values, **KINDS["vjepa2"], probe_heads=3)
    report = load_weights(model, GOLDEN / "vjepa2_8x48x80_encoder.pt", probe=GOLDEN / "vjepa2_8x48x80_probe.pt")
    assert report.family == "vjepa2" and not report.dropped and not report.initialised
    torch.testing.assert_close(model.forward_tokens(values["x"]), values["features"], rtol=0, atol=1e-10)
    torch.testing.assert_close(model(values["x"]), values["y"], rtol=0, atol=1e-10)


@needs_golden
def test_vjepa2_1_gives_the_features_of_its_authors_code_after_every_level() -> None:
    values = golden("vjepa2_1_8x48x80")
    model = built(values, **KINDS["vjepa2_1"] | {"levels": (2, 5, 8, 11), "head": "none"})
    load_weights(model, GOLDEN / "vjepa2_1_8x48x80_encoder.pt")
    for found, expected in zip(model.forward_levels(values["x"]), values["hierarchical"], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(model.forward_tokens(values["x"]), values["features"], rtol=0, atol=1e-10)
    other = built(values, **KINDS["vjepa2_1"] | {"levels": (2, 5, 8, 11), "head": "none", "positions": "rope_tiled"})
    other.load_state_dict(model.state_dict())
    assert (other.forward_tokens(values["x"]) - values["features"]).abs().max() > 1e-3


# ---- positions


def rotated_by_definition(x: Tensor, grid: TokenGrid, pairing: str, base: int | None) -> Tensor:
    """One token, one pair of channels at a time."""
    out, d = x.clone(), x.shape[-1]
    size = 2 * ((d // 3) // 2)
    token = grid.prefix
    for t in range(grid.t):
        for h in range(grid.h):
            for w in range(grid.w):
                for axis, (place, length) in enumerate(((t, grid.t), (h, grid.h), (w, grid.w))):
                    scale = (base - 1) / max(length - 1, 1) if base and axis else 1
                    for f in range(size // 2):
                        first, second = axis * size + 2 * f, axis * size + 2 * f + 1
                        tiled = (2 * f % (size // 2), (2 * f + 1) % (size // 2))
                        numbers = (f, f) if pairing == "interleaved" else tiled
                        a, b = (place * scale / 10000 ** (number / (size / 2)) for number in numbers)
                        x0, x1 = x[..., token, first], x[..., token, second]
                        out[..., token, first] = x0 * math.cos(a) - x1 * math.sin(a)
                        out[..., token, second] = x1 * math.cos(b) + x0 * math.sin(b)
                token += 1
    return out


@pytest.mark.parametrize("head_dim", [16, 26, 64, 80])
@pytest.mark.parametrize(("pairing", "base"), [("interleaved", None), ("tiled", None), ("interleaved", 16)])
def test_rotation_is_that_of_the_definition(head_dim: int, pairing: Any, base: int | None) -> None:
    grid = TokenGrid(2, 3, 4, prefix=1)
    x = torch.randn(2, grid.tokens, head_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotate = RotaryPositions(grid, head_dim, pairing, base).double()
    expected = rotated_by_definition(x, grid, pairing, base)
    odd = torch.empty(2, grid.tokens, head_dim + 1, dtype=torch.float64)[..., 1:].copy_(x)
    for given in (x, odd):  # which is not read as complex numbers
        torch.testing.assert_close(rotate(given), expected, rtol=0, atol=1e-12)
        assert torch.equal(rotate(given)[:, 0], x[:, 0])
    assert rotate(x.bfloat16()).dtype == torch.bfloat16
    gradients = []
    for given in (x, odd):
        leaf = given.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        view = leaf if given is x else torch.nn.functional.pad(leaf, (1, 0))[..., 1:]
        gradients += torch.autograd.grad(rotate(view).sin().sum(), leaf)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_products_depend_on_differences_of_positions_only_where_pairs_interleave() -> None:
    q, k = torch.randn(2, 1, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).expand(2, 8, 18)
    for pairing, holds in (("interleaved", True), ("tiled", False)):
        rotate = RotaryPositions(TokenGrid(8, 1, 1), 18, pairing).double()  # type: ignore[arg-type]
        products = rotate(q) @ rotate(k).T
        assert torch.allclose(products[2, 5], products[3, 6], rtol=0, atol=1e-12) == holds


def test_odd_and_short_heads_are_refused() -> None:
    for head_dim in (4, 21):
        with pytest.raises(ValueError, match=f"even head dimension of at least 6, got {head_dim}"):
            RotaryPositions(TokenGrid(1, 2, 3), head_dim)


def test_a_computed_table_loses_nothing_through_other_types_and_is_not_saved() -> None:
    table = ComputedTable(sincos_table, 6, 8)
    exact = sincos_table(6, 8)
    assert table.state_dict() == {} and table().dtype == torch.float32
    assert torch.equal(table.bfloat16().double()(), exact.double()) and torch.equal(table.float()(), exact)
    assert exact[0, 5, 3] == pytest.approx(math.cos(5 / 10000 ** (2 / 8)), abs=1e-7)
    with torch.device("meta"):
        assert ComputedTable(sincos_table, 6, 8)().is_meta


# ---- models


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_fills_its_slot(kind: str, operator: str) -> None:
    model = small(kind, operators={Axis.JOINT: OPERATORS[operator]}).train()
    model(clip_of(model)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name  # or processes would wait for each other
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    untrained = {name.partition(".")[0] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert untrained == ({"patch_embed_image", "image_embed", "norms"} if kind == "vjepa2_1" else set())
    operators = {type(block.mixers["joint"].operator) for block in model.blocks}
    assert operators == {OPERATORS[operator]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("phi", ["leff", "identity", "weights"])
def test_blocks_skip_attention_across_levels(kind: str, phi: Any) -> None:
    model = small(kind, skip={Axis.JOINT: SkipSettings((1, 2), phi)})
    assert model(clip_of(model)).isfinite().all()
    with_weights = small(kind, skip={Axis.JOINT: SkipSettings((1,), phi)}, act_checkpoint=True).train()
    with_weights(clip_of(with_weights)).sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_alone_gives_what_it_gives_in_a_batch(kind: str) -> None:
    model = small(kind).double()
    clips = clip_of(model, 3)
    torch.testing.assert_close(model(clips)[1:2], model(clips[1:2]), rtol=0, atol=1e-12)
    tokens = model.forward_tokens(clips)
    assert tokens.shape == (3, model.grid.tokens, 48)
    torch.testing.assert_close(model.forward_features(clips), model.pool(tokens), rtol=0, atol=1e-12)


def test_a_probe_sees_the_tokens_of_several_segments_together() -> None:
    model = small("vjepa2")
    tokens = model.forward_tokens(clip_of(model, 2))
    assert model.pool(tokens.flatten(0, 1)[None]).shape == (1, 48)


def test_one_frame_is_an_image_where_the_model_has_modalities() -> None:
    image, video = small("vjepa2_1", clip_size=(1, 32, 48)), small("vjepa2_1", clip_size=(2, 32, 48))
    assert image.state_dict().keys() == video.state_dict().keys()
    assert image.grid.tokens == 6 == video.grid.tokens
    image(clip_of(image)).sum().backward()
    assert image.patch_embed.proj.weight.grad is None and image.video_embed.grad is None  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="patches of 2 x 16 x 16 must divide the clip, got T x H x W = 1 x 32 x 48"):
        small("vjepa2", clip_size=(1, 32, 48))


def test_an_encoder_without_a_head_gives_tokens_and_says_how_to_have_logits() -> None:
    model = small("vjepa2", head="none")
    assert model.forward_tokens(clip_of(model)).shape == (2, 24, 48)
    with pytest.raises(ValueError, match="an encoder without a head: call forward_tokens, or load a probe"):
        model(clip_of(model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": (2, 1)}, r"levels expects rising blocks that end in 2, got \[2, 1\]"),
        ({"levels": (0, 1)}, r"levels expects rising blocks that end in 2, got \[0, 1\]"),
        ({"positions": "rope"}, "positions expects one of sincos_1d, learned, rope_tiled, .*, got 'rope'"),
        ({"head": "max"}, "head expects one of mean, mean_tokens, class_token, attentive, none, got 'max'"),
        ({"clip_size": (8, 30, 48)}, "must divide the clip, got T x H x W = 8 x 30 x 48"),
        ({"head": "attentive", "probe_heads": 7}, "a probe's width must be a multiple of its heads, got 48 and 7"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoViT(**{**SMALL, **changes})


def test_multiply_accumulates_are_those_of_the_formula() -> None:
    with torch.device("meta"):
        model: nn.Module = VideoViT(clip_size=(16, 224, 224), embed_dim=384, num_heads=6, bias="qv", num_classes=400)
    tokens, width = 8 * 14 * 14, 384
    blocks = 12 * (12 * width**2 * tokens + 2 * width * tokens**2)
    embedding, head = tokens * width * 3 * 2 * 16 * 16, 400 * width
    assert profile(model, (16, 224, 224)).macs_executed == blocks + embedding + head


@pytest.mark.parametrize("kind", ["videomae", "vjepa2", "vjepa2_1"])
def test_segments_are_encoded_apart_and_pooled_together(kind: str) -> None:
    one = small(kind, clip_size=(4, 32, 48)).double().eval()
    model = small(kind, clip_size=(12, 32, 48), num_segments=3).double().eval()
    model.load_state_dict(one.state_dict())
    clip = clip_of(model)
    apart = [one.forward_levels(segment) for segment in clip.split(4, dim=2)]
    for level, tokens in enumerate(model.forward_levels(clip)):
        torch.testing.assert_close(tokens, torch.cat([outputs[level] for outputs in apart], dim=1), rtol=0, atol=1e-12)
    together = one.pool(torch.cat([one.forward_tokens(segment) for segment in clip.split(4, dim=2)], dim=1))
    torch.testing.assert_close(model.forward_features(clip), together, rtol=0, atol=1e-12)
    torch.testing.assert_close(model(clip), one.head(together), rtol=0, atol=1e-12)
    swapped = torch.cat([clip[:, :, 4:8], clip[:, :, :4], clip[:, :, 8:]], dim=2)
    torch.testing.assert_close(model(swapped), model(clip), rtol=0, atol=1e-12)  # heads have no positions
    assert (model(clip.flip(2)) - model(clip)).abs().max() > 1e-4


@pytest.mark.parametrize("num_segments", [1, 2])
def test_a_probe_sees_the_normalised_tokens_of_all_its_levels_in_a_row(num_segments: int) -> None:
    model = small("vjepa2", probe_levels=(0, 2), num_segments=num_segments).double().eval()
    plain = small("vjepa2", clip_size=(8 // num_segments, 32, 48), levels=(0, 1, 2)).double().eval()
    state = model.state_dict()
    norms = {f"norms.{level}.{name}": state[f"norms.0.{name}"] for level in range(3) for name in ("weight", "bias")}
    plain.load_state_dict({**state, **norms})
    clip = clip_of(model)
    segments = [plain.forward_levels(segment) for segment in clip.split(8 // num_segments, dim=2)]
    seen = torch.cat([outputs[level] for outputs in segments for level in (0, 2)], dim=1)
    torch.testing.assert_close(model.forward_head_tokens(clip), seen, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.forward_features(clip), plain.pool(seen), rtol=0, atol=1e-12)
    last = torch.cat([outputs[2] for outputs in segments], dim=1)
    torch.testing.assert_close(model.forward_tokens(clip), last, rtol=0, atol=1e-12)
    sum_of_features = model.forward_features(clip).sum()
    sum_of_features.backward()
    assert model.blocks[0].mlp.fc1.weight.grad.abs().max() > 0 and model.norms[0].weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("videomae", {"num_segments": 3}, "num_segments expects 1, or a divisor of the 8 frames .*, got 3"),
        ("videomae", {"num_segments": 0}, "num_segments expects 1, .*, got 0"),
        ("videomae", {"num_segments": 8}, "patches of 2 x 16 x 16 must divide the clip, got T x H x W = 1 x 32 x 48"),
        ("class token", {"num_segments": 2}, "num_segments expects 1 beside a class token, got 2"),
        (
            "videomae",
            {"probe_levels": (0, 2)},
            "probe_levels expects the head attentive and one norm, got the head mean",
        ),
        ("vjepa2_1", {"probe_levels": (0, 2)}, "got the head attentive and 2 norms"),
        ("vjepa2", {"probe_levels": (2, 0)}, r"probe_levels expects rising blocks below 3, got \[2, 0\]"),
        ("vjepa2", {"probe_levels": (1, 3)}, r"expects rising blocks below 3, got \[1, 3\]"),
    ],
)
def test_segments_and_levels_that_cannot_be_are_refused(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(kind, **changes)


def test_segments_and_levels_come_from_the_settings() -> None:
    pairs = ["MODEL.MODEL_NAME", "vjepa2_large", "DATA.NUM_FRAMES", 128, "DATA.NUM_SEGMENTS", 4, "DATA.SAMPLING",
             "by_index", "DATA.TRAIN_CROP_SIZE", 256, "DATA.TEST_CROP_SIZE", 256]  # fmt: skip
    with torch.device("meta"):
        model: Any = build_model(load_config(None, [*pairs, "VIDEO_VIT.PROBE_LEVELS", [17, 19, 21, 23]]))
    assert (model.num_segments, model.clip_size, model.probe_levels) == (4, (128, 256, 256), (17, 19, 21, 23))
    assert model.grid == TokenGrid(16, 16, 16)
    with torch.device("meta"):
        encoder: Any = build_model(load_config(None, [*pairs, "VIDEO_VIT.HEAD", "none"]))
    assert encoder.head is None and encoder.forward_tokens(torch.empty(1, 3, 128, 256, 256, device="meta")).shape == (
        1, 4 * 4096, 1024,
    )  # fmt: skip
    with pytest.raises(ValueError, match="PROBE_LEVELS expects VIDEO_VIT.HEAD attentive, got none"):
        build_model(load_config(None, [*pairs, "VIDEO_VIT.HEAD", "none", "VIDEO_VIT.PROBE_LEVELS", [17, 23]]))
