"""Tokens of every model that can be probed, and the features that its head sees."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.models.mvit.small_mvits import CLIP_SIZE as MVIT_CLIP
from tests.models.mvit.small_mvits import small_mvit
from tests.models.small_models import ATTENTION_TYPES, CLIP_SIZE, random_clip, randomize, small_model
from videoattn.models.video_vit.model import VideoViT

PROBE = {"probe_depth": 1, "probe_heads": 4}


@pytest.mark.parametrize("attention_type", ATTENTION_TYPES)
def test_tokens_of_a_timesformer_are_its_class_token_and_all_patches(attention_type: str) -> None:
    model, clip = small_model(attention_type), random_clip()
    tokens = model.forward_tokens(clip)
    assert tokens.shape == (2, 1 + model.grid.t * model.grid.h * model.grid.w, 24)
    torch.testing.assert_close(tokens[:, 0], model.forward_features(clip))
    assert (tokens.std(dim=(0, 2)) > 0.01).all()


@pytest.mark.parametrize("attention_type", ["space_only"])
def test_patches_of_separate_frames_come_frame_after_frame(attention_type: str) -> None:
    model, clip = small_model(attention_type), random_clip()
    other = clip.clone()
    other[:, :, 2] = 0.0
    differ = (model.forward_tokens(clip) != model.forward_tokens(other)).any(dim=2).any(dim=0)
    per_frame = model.grid.h * model.grid.w
    assert differ[1:].unflatten(0, (-1, per_frame)).all(dim=1).tolist() == [False, False, True, False]
    assert differ[0]


@pytest.mark.parametrize("kind", ["v1", "v2", "no class token"])
def test_tokens_of_an_mvit_are_those_of_its_last_grid_after_the_class_token(kind: str) -> None:
    model, clip = small_mvit(kind), random_clip(clip_size=MVIT_CLIP)
    grid = model.blocks[-1].plan.grid_out
    tokens = model.forward_tokens(clip)
    assert tokens.shape == (2, grid.prefix + grid.t * grid.h * grid.w, model.norm.normalized_shape[0])
    pooled = tokens.mean(dim=1) if kind == "no class token" else tokens[:, 0]
    torch.testing.assert_close(pooled, model.forward_features(clip))


def test_the_head_mean_tokens_averages_normalised_tokens() -> None:
    sizes: dict[str, Any] = {"clip_size": (4, 16, 24), "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    model = VideoViT(**sizes, num_classes=5, positions="rope_tiled", head="mean_tokens")
    randomize(model)
    clip = random_clip()
    torch.testing.assert_close(model.forward_features(clip), model.forward_tokens(clip).mean(dim=1))


@pytest.mark.parametrize("build", [small_model, small_mvit])
def test_an_attentive_probe_pools_all_tokens(build: Any) -> None:
    model, clip = build(**PROBE), random_clip(clip_size=CLIP_SIZE if build is small_model else MVIT_CLIP)
    tokens = model.forward_tokens(clip)
    torch.testing.assert_close(model.forward_features(clip), model.pooler(tokens))
    torch.testing.assert_close(model(clip), model.head(model.pooler(tokens)))
    assert tokens.shape[2] == model.pooler.query.shape[2]
    model.zero_grad()
    model.eval()(clip).sum().backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in model.pooler.parameters() if p.dim() > 1)
    plain = build()
    assert plain.pooler is None and not [name for name, _ in plain.named_parameters() if "pooler" in name]


def test_probes_start_with_small_queries_and_the_models_own_weights() -> None:
    for build in (small_model, small_mvit):
        model: Any = build(**PROBE)
        model.reset_parameters()
        assert 0 < model.pooler.query.std() < 0.1
        linears = [module for module in model.pooler.modules() if isinstance(module, nn.Linear)]
        assert len(linears) == 8 and all(module.weight.std() < 0.05 and not module.bias.any() for module in linears)
