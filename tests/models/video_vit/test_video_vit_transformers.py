"""Equality with the VideoMAE and V-JEPA 2 of transformers, converted strictly both ways."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.small_models import assert_same, randomize, save
from videoattn.compat import import_torchvision
from videoattn.models.video_vit.model import VideoViT
from videoattn.models.video_vit.names import from_ours, to_ours
from videoattn.models.weights.load import CheckpointError, from_checkpoint, load_weights, save_weights

pytest.importorskip("transformers", reason="transformers is not installed")

SIZES: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
OURS: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}


def videomae() -> tuple[nn.Module, VideoViT, Tensor]:
    """Their model, with the publisher's eps, ours, and a clip whose t, h and w all differ."""
    import_torchvision()
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    config = VideoMAEConfig(
        **SIZES, image_size=(32, 48), num_frames=8, intermediate_size=192, num_labels=5, layer_norm_eps=1e-6
    )
    theirs = VideoMAEForVideoClassification(config)
    theirs.fc_norm.eps = 1e-6
    ours = VideoViT(**OURS, clip_size=(8, 32, 48), bias="qv")
    return randomize(theirs), ours.eval(), torch.randn(2, 3, 8, 32, 48, generator=torch.Generator().manual_seed(1))


def vjepa2() -> tuple[nn.Module, VideoViT, Tensor]:
    """The same of V-JEPA 2; theirs has the rows of a square whatever the clip, and the encoder's eps in the probe."""
    import_torchvision()
    from transformers import VJEPA2Config, VJEPA2ForVideoClassification

    config = VJEPA2Config(
        **SIZES, crop_size=48, frames_per_clip=8, mlp_ratio=4.0, num_labels=5, num_pooler_layers=3,
        pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1,
    )  # fmt: skip
    theirs = VJEPA2ForVideoClassification(config)
    for name, module in theirs.named_modules():
        if isinstance(module, nn.LayerNorm) and name.startswith("pooler."):
            module.eps = 1e-5
    ours = VideoViT(**OURS, clip_size=(8, 48, 48), positions="rope_tiled", head="attentive", probe_heads=3)
    return randomize(theirs), ours.eval(), torch.randn(2, 3, 8, 48, 48, generator=torch.Generator().manual_seed(1))


def their_logits(theirs: Any, clip: Tensor) -> Tensor:
    logits: Tensor = theirs(clip.transpose(1, 2)).logits
    return logits


@pytest.mark.parametrize("pair", [videomae, vjepa2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_their_weights_give_their_logits_and_input_gradients(pair: Any, dtype: torch.dtype, tolerance: float) -> None:
    theirs, ours, clip = pair()
    theirs, ours = theirs.to(dtype), ours.to(dtype)
    dropped: list[str] = []
    ours.load_state_dict(to_ours(theirs.state_dict(), "huggingface", 3, dropped))
    assert all("predictor." in name for name in dropped)
    clips = [clip.to(dtype).requires_grad_() for _ in range(2)]
    logits = [ours(clips[0]), their_logits(theirs, clips[1])]
    assert logits[0].std() > 0.1
    scale = float(logits[1].detach().abs().max())
    torch.testing.assert_close(logits[0], logits[1], rtol=tolerance, atol=tolerance * scale)
    for output in logits:
        nn.functional.cross_entropy(output, torch.tensor([1, 4])).backward()
    scale = float(clips[1].grad.abs().max())  # type: ignore[union-attr]
    torch.testing.assert_close(clips[0].grad, clips[1].grad, rtol=10 * tolerance, atol=10 * tolerance * scale)


@pytest.mark.parametrize("pair", [videomae, vjepa2])
def test_our_weights_come_back_through_their_names(pair: Any, tmp_path: Path) -> None:
    theirs, ours, clip = pair()
    randomize(ours, seed=5)
    written = from_ours(ours.state_dict(), "huggingface", 3)
    missing, unexpected = theirs.load_state_dict(written, strict=False)
    assert not unexpected and all("predictor." in name for name in missing)
    torch.testing.assert_close(their_logits(theirs, clip), ours(clip), rtol=1e-4, atol=1e-4)
    save_weights(ours.state_dict(), tmp_path / "a.safetensors", "huggingface", num_heads=3)
    built = from_checkpoint(
        tmp_path / "a.safetensors", clip_size=ours.clip_size, **({"probe_heads": 3} if pair is vjepa2 else {})
    )
    assert_same(built.state_dict(), ours.state_dict())


def test_biases_of_older_files_have_their_place(tmp_path: Path) -> None:
    theirs, ours, _ = videomae()
    older = {
        re.sub(r"\.query\.bias$", ".q_bias", re.sub(r"\.value\.bias$", ".v_bias", name)): value
        for name, value in theirs.state_dict().items()
    }
    assert any(name.endswith(".attention.q_bias") for name in older)
    load_weights(ours, save(older, tmp_path / "older.bin"))
    expected = to_ours(theirs.state_dict(), "huggingface", 3, [])
    assert_same(ours.state_dict(), {name: expected[name] for name in ours.state_dict()})


def test_a_part_of_a_projection_that_is_missing_is_named(tmp_path: Path) -> None:
    theirs, ours, _ = vjepa2()
    state = theirs.state_dict()
    del state["vjepa2.encoder.layer.1.attention.key.weight"]
    with pytest.raises(CheckpointError, match=r"a.bin: there is no vjepa2.encoder.layer.1.attention.key.weight among"):
        load_weights(ours, save(state, tmp_path / "a.bin"))


def test_a_videomae_without_biases_is_not_taken_for_another_model(tmp_path: Path) -> None:
    theirs, _, _ = videomae()
    state = {name: value for name, value in theirs.state_dict().items() if not re.search(r"(query|value)\.bias$", name)}
    with pytest.raises(CheckpointError, match="there is no videomae.encoder.layer.0.attention.attention.query.bias"):
        from_checkpoint(save(state, tmp_path / "a.bin"), clip_size=(8, 32, 48), num_heads=3)


def test_an_encoder_by_itself_is_recognised(tmp_path: Path) -> None:
    theirs, ours, clip = vjepa2()
    path = save(theirs.vjepa2.state_dict(), tmp_path / "a.bin")  # type: ignore[union-attr]
    encoder = from_checkpoint(path, clip_size=ours.clip_size, num_heads=3)
    expected = theirs.vjepa2(clip.transpose(1, 2), skip_predictor=True).last_hidden_state  # type: ignore[operator]
    torch.testing.assert_close(encoder.forward_tokens(clip), expected, rtol=1e-4, atol=1e-4)  # type: ignore[operator]
