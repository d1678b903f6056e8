"""Files of VideoMAE and VideoMAE v2: names from the authors' class, the containers around them, heads and patches."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.small_models import assert_same, save
from tests.models.video_vit.test_video_vit import clip_of, small
from videoattn.models import MODELS
from videoattn.models.video_vit.names import from_ours, to_ours
from videoattn.models.weights.load import CheckpointError, from_checkpoint, load_weights

# width, depth, heads, hidden width, patch and classes of VideoMAE v2's `models/modeling_finetune.py`; the distilled
# files are its vit_small and vit_base, trained on K710
V2 = {
    "small": (384, 12, 6, 1536, 16, 710),
    "base": (768, 12, 12, 3072, 16, 710),
    "giant": (1408, 40, 16, 6144, 14, 710),
}


def v2_shapes(size: str, depth: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the state dict of the authors' VisionTransformer, in its order."""
    width, _, _, hidden, patch, classes = V2[size]
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (width, 3, 2, patch, patch), "patch_embed.proj.bias": (width,),
    }  # fmt: skip
    for block in range(depth):
        shapes |= {
            f"blocks.{block}.{name}": shape
            for name, shape in (
                ("norm1.weight", (width,)), ("norm1.bias", (width,)), ("attn.q_bias", (width,)),
                ("attn.v_bias", (width,)), ("attn.qkv.weight", (3 * width, width)),
                ("attn.proj.weight", (width, width)), ("attn.proj.bias", (width,)),
                ("norm2.weight", (width,)), ("norm2.bias", (width,)),
                ("mlp.fc1.weight", (hidden, width)), ("mlp.fc1.bias", (hidden,)), ("mlp.fc2.weight", (width, hidden)),
                ("mlp.fc2.bias", (width,)),
            )
        }  # fmt: skip
    return shapes | {
        "fc_norm.weight": (width,), "fc_norm.bias": (width,), "head.weight": (classes, width), "head.bias": (classes,),
    }  # fmt: skip


def v2_state(size: str, depth: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in v2_shapes(size, depth).items()}


@pytest.mark.parametrize("size", ["small", "base", pytest.param("giant", marks=pytest.mark.slow)])
def test_a_distilled_file_of_v2_is_read_strictly_with_the_heads_and_patches_of_its_authors(
    size: str, tmp_path: Path
) -> None:
    state = v2_state(size, depth=1)
    path = save({"module": state}, tmp_path / f"vit_{size[0]}_k710_dl_from_giant.pth")
    width, _, heads, hidden, patch, classes = V2[size]
    model: Any = from_checkpoint(path, clip_size=(4, 2 * patch, 3 * patch))
    shown = model.arguments
    assert (shown["num_heads"], shown["patch_size"], shown["mlp_dim"]) == (heads, patch, hidden)
    assert (shown["embed_dim"], shown["num_classes"], shown["positions"], shown["head"]) == (
        width, classes, "sincos_1d", "mean",
    )  # fmt: skip
    report = load_weights(model, path)
    assert report.family == "videomae" and len(report.loaded) == len(state) == len(model.state_dict())
    assert not (report.dropped or report.initialised)
    assert_same(dict(sorted(from_ours(model.state_dict(), "videomae", heads).items())), dict(sorted(state.items())))


@pytest.mark.parametrize("size", ["small", "base"])
def test_named_sizes_have_the_tensors_of_the_distilled_files(size: str) -> None:
    with torch.device("meta"):
        model = MODELS[f"videomae_{size}"](num_classes=710)
        shapes = {name: torch.empty(shape) for name, shape in v2_shapes(size, depth=12).items()}
    ours = {name: value.shape for name, value in model.state_dict().items()}
    theirs = to_ours(shapes, "videomae", V2[size][2], [])
    assert {name: value.shape for name, value in theirs.items()} == ours


def test_cosine_attention_of_v2_is_refused(tmp_path: Path) -> None:
    state = v2_state("small", depth=1) | {"blocks.0.attn.scale": torch.ones(6, 1, 1)}
    with pytest.raises(CheckpointError, match="1 tensors have no place in a video ViT: blocks.0.attn.scale"):
        from_checkpoint(save({"module": state}, tmp_path / "a.pth"), clip_size=(4, 32, 48))


CONTAINERS = ("bare", "model", "module", "module and model_ema", "prefix")


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_model(container: str, tmp_path: Path) -> None:
    source = small("videomae")
    state = from_ours(source.state_dict(), "videomae", 3)
    others = {name: value + 1 for name, value in state.items()}
    args = argparse.Namespace(model="vit_small_patch16_224")
    content = {
        "bare": state,
        "model": {"model": state, "optimizer": {"state": {}}, "epoch": 99, "scaler": {}, "args": args},
        "module": {"module": state, "buffer_names": [], "optimizer": None, "lr_scheduler": None, "args": args},
        "module and model_ema": {"module": others, "model_ema": state, "global_steps": 3},
        "prefix": {"model": {f"backbone.{name}": value for name, value in state.items()}},
    }[container]
    path = save(content, tmp_path / "a.pth")
    model = from_checkpoint(path, clip_size=source.clip_size, num_heads=3)
    clip = clip_of(source)
    assert torch.equal(model(clip), source(clip))
    if container == "module and model_ema":
        last = from_checkpoint(path, clip_size=source.clip_size, num_heads=3, ema=False)
        assert not torch.equal(last(clip), source(clip))


@pytest.mark.parametrize("with_decoder", [True, False])
def test_a_pretrained_file_is_an_encoder_with_its_norm(with_decoder: bool, tmp_path: Path) -> None:
    source = small("videomae", head="none")
    state = {f"encoder.{name}": value for name, value in from_ours(source.state_dict(), "videomae", 3).items()}
    if with_decoder:
        state |= {"encoder_to_decoder.weight": torch.zeros(24, 48), "mask_token": torch.zeros(1, 1, 24)}
        state |= {"decoder.blocks.0.attn.qkv.weight": torch.zeros(72, 24)}
    path = save({"model": state}, tmp_path / "pretrained.pth")
    model: Any = from_checkpoint(path, clip_size=source.clip_size, num_heads=3)
    clip = clip_of(source)
    assert torch.equal(model.forward_tokens(clip), source.forward_tokens(clip))
    fresh = small("videomae")
    report = load_weights(fresh, path, allow_new_head=True)
    expected = {"encoder.norm.weight", "encoder.norm.bias"}
    expected |= {name for name in state if not name.startswith("encoder.")}
    assert set(report.dropped) == expected
