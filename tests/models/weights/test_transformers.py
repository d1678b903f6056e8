"""Equality with the TimeSformer of transformers, converted strictly both ways."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.small_models import ATTENTION_TYPES, CLIP_SIZE, random_clip, randomize, small_model
from videoattn.compat import import_torchvision
from videoattn.models.weights.load import from_checkpoint, from_ours, save_weights, to_ours

pytest.importorskip("transformers", reason="transformers is not installed")


def their_model(attention_type: str) -> nn.Module:
    """Their model takes any height when its positions number h·w and `image_size` is the width."""
    import_torchvision()
    from transformers import TimesformerConfig, TimesformerForVideoClassification

    config = TimesformerConfig(
        image_size=CLIP_SIZE[2], patch_size=8, num_frames=CLIP_SIZE[0], hidden_size=24, num_hidden_layers=2,
        num_attention_heads=3, intermediate_size=96, attention_type=attention_type, num_labels=5,
    )  # fmt: skip
    model = TimesformerForVideoClassification(config)
    model.timesformer.embeddings.position_embeddings = nn.Parameter(torch.zeros(1, 1 + 2 * 3, 24))
    return randomize(model, seed=7)


def their_logits(model: Any, clip: Tensor) -> Tensor:
    """Logits; where frames are apart theirs are one per frame, so the class tokens are averaged here, as published."""
    pixels = clip.transpose(1, 2)
    if model.config.attention_type != "space_only":
        return model(pixels).logits
    tokens = model.timesformer(pixels, output_hidden_states=True).hidden_states[-1]
    cls_token = tokens[:, 0].unflatten(0, (clip.shape[0], -1)).mean(dim=1)
    return model.classifier(model.timesformer.layernorm(cls_token))


@pytest.mark.parametrize("attention_type", ATTENTION_TYPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_their_weights_give_their_logits_and_input_gradients(
    attention_type: str, dtype: torch.dtype, tolerance: float
) -> None:
    theirs, ours = their_model(attention_type).to(dtype), small_model(attention_type).to(dtype)
    ours.load_state_dict(to_ours(theirs.state_dict(), "huggingface", num_heads=3))
    clips = [random_clip().to(dtype).requires_grad_() for _ in range(2)]
    logits = [ours(clips[0]), their_logits(theirs, clips[1])]
    assert logits[0].std() > 0.1
    torch.testing.assert_close(logits[0], logits[1], rtol=tolerance, atol=tolerance)
    for output in logits:
        nn.functional.cross_entropy(output, torch.tensor([1, 4])).backward()
    torch.testing.assert_close(clips[0].grad, clips[1].grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("attention_type", ATTENTION_TYPES)
def test_our_weights_give_our_logits_in_their_model(attention_type: str) -> None:
    theirs, ours = their_model(attention_type), small_model(attention_type)
    theirs.load_state_dict(from_ours(ours.state_dict(), "huggingface", num_heads=3))
    clip = random_clip()
    with torch.no_grad():
        torch.testing.assert_close(their_logits(theirs, clip), ours(clip), rtol=1e-5, atol=1e-5)


def test_a_file_written_for_them_names_its_geometry_in_their_config(tmp_path: Any) -> None:
    theirs = their_model("divided_space_time")
    theirs.config.image_size = list(CLIP_SIZE[1:])
    theirs.save_pretrained(tmp_path)
    clip = random_clip()
    theirs.config.image_size = CLIP_SIZE[2]
    ours = from_checkpoint(tmp_path / "model.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(ours(clip), theirs(clip.transpose(1, 2)).logits)


def test_their_loader_accepts_our_file(tmp_path: Any) -> None:
    from safetensors.torch import load_file

    theirs, ours = their_model("divided_space_time"), small_model()
    save_weights(ours.state_dict(), tmp_path / "model.safetensors", "huggingface", num_heads=3)
    theirs.load_state_dict(load_file(tmp_path / "model.safetensors"))
    clip = random_clip()
    with torch.no_grad():
        torch.testing.assert_close(theirs(clip.transpose(1, 2)).logits, ours(clip), rtol=1e-5, atol=1e-5)
