from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.small_models import changed, image_vit, random_clip, randomize, released, save, small_model
from videoattn.layers.attention import reorder_qkv_rows
from videoattn.layers.position import resize_space
from videoattn.models import TimeSformer
from videoattn.models.weights import load as module
from videoattn.models.weights.load import (
    CheckpointError,
    load_imagenet_vit,
    to_ours,
)


def test_an_image_vit_starts_a_divided_model_as_published(tmp_path: Path) -> None:
    vit = image_vit()
    target = small_model(seed=5)
    head = target.head.weight.clone()
    report = load_imagenet_vit(target, save({"model": vit}, tmp_path / "vit.pth"))
    state = target.state_dict()
    for block in range(2):
        rows = reorder_qkv_rows(vit[f"blocks.{block}.attn.qkv.weight"], 3)
        for axis in ("space", "time"):
            assert torch.equal(state[f"blocks.{block}.mixers.{axis}.qkv.weight"], rows)
            assert torch.equal(state[f"blocks.{block}.mixers.{axis}.norm.bias"], vit[f"blocks.{block}.norm1.bias"])
        assert not state[f"blocks.{block}.temporal_fc.weight"].any()
        assert not state[f"blocks.{block}.temporal_fc.bias"].any()
    assert not state["time_embed"].any()
    assert torch.equal(target.head.weight, head)
    assert torch.equal(state["pos_embed"], resize_space(vit["pos_embed"], (3, 3), (2, 3)))
    assert report.family == "vit"
    assert report.dropped == ["head.weight", "head.bias"]
    assert "time_embed" in report.initialised and "head.bias" in report.initialised
    assert len(report.initialised) == 2 * (6 + 2) + 1 + 2
    assert len(report.initialised) + len(report.loaded) + len(report.resized) == len(state)
    assert "blocks.*.mixers.time.qkv.weight (2)" in str(report)


def test_an_image_vit_starts_joint_and_space_only_models(tmp_path: Path) -> None:
    vit = image_vit()
    path = save(vit, tmp_path / "vit.pth")
    rows = reorder_qkv_rows(vit["blocks.1.attn.qkv.weight"], 3)
    joint, space = small_model("joint_space_time", 5), small_model("space_only", 5)
    report = load_imagenet_vit(joint, path)
    assert report.initialised == ["time_embed", "head.weight", "head.bias"]
    assert torch.equal(joint.state_dict()["blocks.1.mixers.joint.qkv.weight"], rows)
    assert load_imagenet_vit(space, path).initialised == ["head.weight", "head.bias"]
    assert torch.equal(space.state_dict()["blocks.1.mixers.space.qkv.weight"], rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.0.ls1.gamma": torch.ones(24)}, r"blocks.0.ls1.gamma; ViTs with layer scale, .* are other models"),
        ({"dist_token": torch.ones(1, 1, 24)}, "dist_token; ViTs with layer scale, distillation"),
        ({"cls_token": None}, "no cls_token"),
        ({"blocks.0.attn.qkv.bias": None}, "1 missing: blocks.0.mixers.space.qkv.bias"),
    ],
)
def test_vits_of_other_builds_are_refused(tmp_path: Path, changes: dict[str, Tensor | None], message: str) -> None:
    path = save(changed(image_vit(), **changes), tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match=message):
        load_imagenet_vit(small_model("space_only"), path)


def test_a_video_model_is_no_image_vit(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected an image ViT, got a timesformer video model"):
        load_imagenet_vit(small_model(), save(released(small_model()), tmp_path / "a.pyth"))


def test_timm_is_asked_for_the_named_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def create_model(name: str, **options: Any) -> nn.Module:
        asked.update(options, name=name)
        holder = nn.Module()
        holder.state_dict = lambda: {k: v for k, v in image_vit().items() if "head" not in k}  # type: ignore[assignment]
        return holder

    monkeypatch.setattr(module, "import_timm", lambda: SimpleNamespace(create_model=create_model))
    report = load_imagenet_vit(small_model(), "timm:vit_small")
    assert asked == {"name": "vit_small", "pretrained": True, "num_classes": 0}
    assert report.source == "timm:vit_small" and report.dropped == []


def test_a_failing_network_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(*args: Any, **options: Any) -> nn.Module:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(module, "import_timm", lambda: SimpleNamespace(create_model=create_model))
    with pytest.raises(CheckpointError, match=r"timm:vit_small \(no route to host\).* path of the .safetensors"):
        load_imagenet_vit(small_model(), "timm:vit_small")


def test_timms_vit_gives_the_logits_that_our_space_only_model_gives() -> None:
    vit = module.import_timm().create_model("vit_tiny_patch16_224", num_classes=5, img_size=(32, 48))
    randomize(vit)
    ours = TimeSformer((1, 32, 48), embed_dim=192, num_heads=3, num_classes=5, attention_type="space_only").eval()
    ours.load_state_dict(to_ours(vit.state_dict(), "vit", num_heads=3))
    clip = random_clip(2, (1, 32, 48))
    with torch.no_grad():
        torch.testing.assert_close(ours(clip), vit(clip[:, :, 0]), rtol=1e-5, atol=1e-5)
