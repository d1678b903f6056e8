"""Every backbone is built from a file for any clip size that its patches divide; other sizes are refused by name."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.mvit.small_mvits import V1, V2, small_mvit
from tests.models.small_models import random_clip, randomize, released, save, small_model
from tests.models.video_vit.test_video_vit import KINDS, SMALL, small
from videoattn.grid import Axis, TokenGrid
from videoattn.layers.pooled_attention import resize_table
from videoattn.layers.position import resize_grid, resize_space, resize_time
from videoattn.models.mvit.names import mvit_from_ours
from videoattn.models.video_vit.model import VideoViT
from videoattn.models.video_vit.names import from_ours
from videoattn.models.weights.load import CheckpointError, from_checkpoint, load_weights, save_weights
from videoattn.operators import OPERATORS

Size = tuple[int, int, int]
Published = tuple[nn.Module, dict[str, Tensor], dict[str, Any]]


def timesformer(attention_type: str) -> Published:
    source = small_model(attention_type, clip_size=(4, 24, 24))
    return source, released(source), {"num_heads": 3}


def mvit(kind: str) -> Published:
    # pooled as published models are
    shape = replace(V1 if kind == "v1" else V2, pool_kv_stride_adaptive=(1, 8, 8))
    source = small_mvit(kind, clip_size=(6, 64, 64), shape=shape)
    return source, mvit_from_ours(source.state_dict(), "slowfast"), {}


def video_vit(kind: str, family: str, **arguments: Any) -> Published:
    source = small(kind, clip_size=(8, 32, 48))
    return source, from_ours(source.state_dict(), family, num_heads=3), {"num_heads": 3, **arguments}


MODELS: dict[str, Callable[[], Published]] = {
    "TimeSformer, divided": lambda: timesformer("divided_space_time"),
    "TimeSformer, joint": lambda: timesformer("joint_space_time"),
    "TimeSformer, space-only": lambda: timesformer("space_only"),
    "MViT v1": lambda: mvit("v1"),
    "MViT v2": lambda: mvit("v2"),
    "VideoMAE": lambda: video_vit("videomae", "videomae"),
    "V-JEPA 2": lambda: video_vit("vjepa2", "vjepa2", probe_heads=3),
    "V-JEPA 2.1": lambda: video_vit("vjepa2_1", "vjepa2", probe_heads=3, levels=(0, 2)),
}
PATCHES = {"TimeSformer": (1, 8, 8), "MViT": (2, 4, 4), "VideoMAE": (2, 16, 16), "V-JEPA": (2, 16, 16)}


def patch_of(name: str) -> Size:
    return next(patch for start, patch in PATCHES.items() if name.startswith(start))


def sizes_of(name: str) -> list[Size]:
    """Return sizes with fewer, as many and more patches along each axis, which all differ."""
    t, h, w = patch_of(name)
    grids = [(2, 3, 5), (5, 2, 3), (3, 7, 2)] if name[0] != "M" else [(2, 12, 20), (5, 9, 13), (3, 20, 16)]
    return [(a * t, b * h, c * w) for a, b, c in grids]


def expected_value(name: str, value: Tensor, target: Tensor, source: Any, model: Any) -> Tensor:
    """Return a tensor of the source as the model has it, positions resized."""
    old, new = source.grid, model.grid
    if name == "time_embed" or name == "pos_embed_temporal":
        return resize_time(value, target.shape[1])
    if name == "pos_embed_spatial":
        return resize_space(value, (old.h, old.w), (new.h, new.w), prefix=0)
    if name == "pos_embed":
        return resize_space(value, (old.h, old.w), (new.h, new.w))
    return resize_table(value, target.shape[0]) if ".relative.tables." in name else value


@pytest.mark.parametrize("name", MODELS)
def test_a_file_makes_a_model_for_any_clip_that_patches_divide(name: str, tmp_path: Path) -> None:
    source, tensors, arguments = MODELS[name]()
    path = save({"model_state": tensors}, tmp_path / "a.pyth")
    state = source.state_dict()
    for size in sizes_of(name):
        model: Any = from_checkpoint(path, clip_size=size, **arguments)
        assert model.clip_size == size
        for key, value in model.state_dict().items():
            assert torch.equal(value, expected_value(key, state[key], value, source, model)), key
        assert model(random_clip(1, size)).isfinite().all()
        again = type(model)(**small_arguments(source, model))
        load_weights(again, path, allow_resize=True, allow_new_head=True)
        torch.testing.assert_close(again.eval()(random_clip(1, size)), model(random_clip(1, size)), rtol=0, atol=0)


def small_arguments(source: Any, model: Any) -> dict[str, Any]:
    """Return the arguments that make `model`, of the tests' small models."""
    if isinstance(model, VideoViT):
        kind = (
            "vjepa2" if model.positions["positions"] == "rope_tiled" else "vjepa2_1" if model.modality else "videomae"
        )
        return {**SMALL, **KINDS[kind], "clip_size": model.clip_size}
    if hasattr(model, "shape"):
        arguments = {"shape": source.shape, "clip_size": model.clip_size, "num_classes": 5}
        if model.pos_embed_spatial is None:
            arguments |= {"positions": "none", "rel_pos_spatial": True, "rel_pos_temporal": True}
            arguments |= {"residual_pooling": True}
        return arguments
    return {
        "clip_size": model.clip_size, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5,
        "attention_type": model.attention_type,
    }  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_other_clip_sizes_are_refused_with_the_patch_and_the_axis(name: str, tmp_path: Path) -> None:
    _, tensors, arguments = MODELS[name]()
    path = save({"model_state": tensors}, tmp_path / "a.pyth")
    patch, good = patch_of(name), sizes_of(name)[0]
    for axis, letter in enumerate("THW"):
        if patch[axis] == 1:
            continue
        wrong = (*good[:axis], good[axis] + 1, *good[axis + 1 :])
        message = (
            f"a.pyth: patches of {' x '.join(map(str, patch))} must divide the clip, got T x H x W = "
            f"{' x '.join(map(str, wrong))}: {letter} expects a multiple of {patch[axis]}"
        )
        with pytest.raises(CheckpointError, match=re.escape(message) + "$"):
            from_checkpoint(path, clip_size=wrong, **arguments)
    for wrong in ((0, *good[1:]), good[:2], (float(good[0]), *good[1:])):
        with pytest.raises(CheckpointError, match=r"clip_size expects \(T, H, W\), three whole numbers of at least 1"):
            from_checkpoint(path, clip_size=wrong, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["timesformer", "mvit"])
def test_a_transposed_grid_is_another_grid_though_it_has_as_many_positions(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    source: Any = small_mvit() if kind == "mvit" else small_model()
    t, h, w = source.clip_size
    target: Any = (
        small_mvit(seed=5, clip_size=(t, w, h)) if kind == "mvit" else small_model(seed=5, clip_size=(t, w, h))
    )
    save_weights(source.state_dict(), path, num_heads=None if kind == "mvit" else 3, clip_size=source.clip_size)
    with pytest.raises(CheckpointError, match="for clips of another size"):
        load_weights(target, path)
    name = "pos_embed_spatial" if kind == "mvit" else "pos_embed"
    assert load_weights(target, path, allow_resize=True).resized == [name]
    old, new = (source.grid.h, source.grid.w), (source.grid.w, source.grid.h)
    resized = resize_space(source.state_dict()[name], old, new, prefix=int(kind != "mvit"))
    assert torch.equal(target.state_dict()[name], resized)


@pytest.mark.parametrize("axis", [Axis.JOINT, Axis.SPACE, Axis.TIME])
def test_parameters_of_operators_are_not_used_on_a_transposed_grid(axis: Axis, tmp_path: Path) -> None:
    operators = {"operators": {axis: OPERATORS["focused_linear"]}}
    kind, path = "joint_space_time" if axis is Axis.JOINT else "divided_space_time", tmp_path / "a.safetensors"
    source = small_model(kind, **operators)
    t, h, w = source.clip_size
    save_weights(source.state_dict(), path, num_heads=3, clip_size=(t, h, w))
    target = small_model(kind, seed=5, clip_size=(t, w, h), **operators)
    if axis is Axis.TIME:  # whose sequences are the same
        assert load_weights(target, path, allow_resize=True).resized == ["pos_embed"]
        return
    message = "operator.pos_space belong to a grid of 4 x 2 x 3 patches, and the model has 4 x 3 x 2"
    with pytest.raises(CheckpointError, match=message):
        load_weights(target, path, allow_resize=True)
    if axis is Axis.JOINT:
        video_vit, path = small("vjepa2", **operators), tmp_path / "b.safetensors"
        save_weights(video_vit.state_dict(), path, num_heads=3, clip_size=video_vit.clip_size)
        with pytest.raises(CheckpointError, match=message):
            load_weights(small("vjepa2", clip_size=(8, 48, 32), **operators), path)


# ---- video ViTs


def learned(clip_size: Size, class_token: bool, seed: int = 0) -> VideoViT:
    head = {"class_token": True, "head": "class_token"} if class_token else {"head": "mean"}
    model = VideoViT(**{**SMALL, "clip_size": clip_size, "positions": "learned", **head})
    randomize(model, seed)
    return model


@pytest.mark.parametrize("class_token", [False, True])
def test_learned_positions_are_resized_only_when_asked(class_token: bool, tmp_path: Path) -> None:
    source, path, held = learned((8, 32, 48), class_token), tmp_path / "a.safetensors", 24 + class_token
    save_weights(source.state_dict(), path, num_heads=3, clip_size=source.clip_size)
    for size in ((8, 48, 32), (4, 32, 48), (12, 80, 64)):
        target = learned(size, class_token, seed=5)
        with pytest.raises(CheckpointError, match=rf"allow_resize=True, or .* resizes pos_embed to .*{held} learned"):
            load_weights(target, path)
        report = load_weights(target, path, allow_resize=True)
        assert report.resized == ["pos_embed"]
        assert "resized, bicubic within frames, then linear along time" in str(report)
        resized = resize_grid(source.pos_embed, source.grid, target.grid)  # type: ignore[arg-type]
        assert torch.equal(target.pos_embed, resized)  # type: ignore[arg-type]
        assert target(random_clip(1, size)).isfinite().all()


def test_resizing_a_grid_is_exact_where_positions_change_along_one_axis_alone() -> None:
    old, new = TokenGrid(4, 3, 5, prefix=1), TokenGrid(2, 6, 4, prefix=1)
    prefix = torch.full((1, 1, 2), 7.0)
    time = torch.arange(4.0)[:, None, None, None].expand(4, 3, 5, 2)
    resized = resize_grid(torch.cat([prefix, time.reshape(1, -1, 2)], 1), old, new)
    assert torch.equal(resized[:, :1], prefix)
    frames = resized[0, 1:].view(2, 6, 4, 2)
    torch.testing.assert_close(frames, torch.tensor([0.5, 2.5])[:, None, None, None].expand_as(frames))
    columns = torch.randn(1, 1, 5, 2, generator=torch.Generator().manual_seed(0)).expand(4, 3, 5, 2)
    frames = resize_grid(torch.cat([prefix, columns.reshape(1, -1, 2)], 1), old, new)[0, 1:].view(2, 6, 4, 2)
    expected = resize_space(columns[:1, :1].reshape(1, 5, 2), (1, 5), (1, 4), prefix=0)[0].expand_as(frames)
    torch.testing.assert_close(frames, expected)
    with pytest.raises(ValueError, match="does not hold the 61 tokens"):
        resize_grid(torch.zeros(1, 60, 2), old, new)


def test_learned_positions_of_a_file_that_says_no_size_need_its_grid(tmp_path: Path) -> None:
    source = VideoViT(**{**SMALL, "clip_size": (8, 32, 48), "positions": "learned", "bias": "qv"})
    randomize(source)
    path = save({"model": from_ours(source.state_dict(), "videomae", num_heads=3)}, tmp_path / "a.pth")
    model: Any = from_checkpoint(path, clip_size=(8, 32, 48), num_heads=3)
    torch.testing.assert_close(model(random_clip(1, (8, 32, 48))), source(random_clip(1, (8, 32, 48))), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="24 learned positions .* the model 3 x 3 x 4 tokens, .* pass file_grid="):
        from_checkpoint(path, clip_size=(6, 48, 64), num_heads=3)
    with pytest.raises(CheckpointError, match="24 positions, which are no frames of 3 x 5 patches"):
        from_checkpoint(path, clip_size=(6, 48, 64), num_heads=3, file_grid=(3, 5))
    model = from_checkpoint(path, clip_size=(6, 48, 64), num_heads=3, file_grid=(2, 3))
    assert torch.equal(model.pos_embed, resize_grid(source.pos_embed, source.grid, model.grid))  # type: ignore[arg-type]


SAID = {
    "videomae": "sincos_1d positions of 2 x 4 x 3 tokens; the file is for clips of 8 x 32 x 48, and other clips have "
    "the numbers of flattened tokens, which mean other frames, rows and columns there: fine-tune",
    "vjepa2": "rope_tiled positions of .* have further frames, rows and columns, which are extrapolated",
    "vjepa2_1": "rope_interleaved positions of .* have rows and columns scaled to the range of 16 x 16, and further "
    "frames, which are extrapolated",
}  # fmt: skip


@pytest.mark.parametrize("kind", SAID)
def test_the_report_says_what_another_clip_size_means_for_positions(kind: str, tmp_path: Path) -> None:
    source, path = small(kind, clip_size=(8, 32, 48)), tmp_path / "a.safetensors"
    save_weights(source.state_dict(), path, num_heads=3, clip_size=(8, 32, 48))
    assert load_weights(small(kind, clip_size=(8, 32, 48)), path).notes == []
    report = load_weights(small(kind, clip_size=(4, 64, 48)), path)
    assert re.search(SAID[kind], str(report)) and not report.resized
