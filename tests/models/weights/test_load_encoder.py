"""The encoder of a file, without its head: all of it, or an error."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.mvit.small_mvits import small_mvit
from tests.models.small_models import assert_same, image_vit, random_clip, randomize, save, small_model
from videoattn.models.video_vit.model import VideoViT
from videoattn.models.weights.load import CheckpointError, load_encoder, save_weights

PROBE: dict[str, Any] = {"probe_depth": 1, "probe_heads": 4}
VIT: dict[str, Any] = {"clip_size": (4, 16, 24), "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


def video_vit(seed: int, **changes: Any) -> VideoViT:
    model = VideoViT(**{**VIT, "num_classes": 5, **changes})
    randomize(model, seed)
    return model


def probe_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in model.state_dict().items() if name.partition(".")[0] in ("head", "pooler")}


@pytest.mark.parametrize("source", [{}, {"probe_depth": 2, "probe_heads": 2}])
@pytest.mark.parametrize("target", [{}, PROBE])
@pytest.mark.parametrize("build", [small_model, small_mvit])
def test_an_encoder_is_filled_and_the_head_stays_as_it_was_whatever_the_file_has(
    build: Any, source: dict[str, Any], target: dict[str, Any], tmp_path: Path
) -> None:
    theirs, ours = build(seed=1, **source), build(seed=2, **target)
    before = probe_of(ours)
    save_weights(theirs.state_dict(), path := tmp_path / "w.pyth")
    report = load_encoder(ours, path)
    assert_same(probe_of(ours), before)
    assert set(report.initialised) == set(before) and set(report.dropped) == set(probe_of(theirs))
    encoder = {name: value for name, value in theirs.state_dict().items() if name not in probe_of(theirs)}
    assert_same(encoder, {name: value for name, value in ours.state_dict().items() if name not in before})


@pytest.mark.parametrize("family", ["vjepa2", "videoattn"])
@pytest.mark.parametrize("theirs", ["attentive", "none", "mean_tokens"])
@pytest.mark.parametrize("ours", ["attentive", "mean_tokens"])
def test_tokens_of_a_video_vit_are_those_of_the_file_under_any_probe(
    ours: str, theirs: str, family: str, tmp_path: Path
) -> None:
    positions = {"positions": "rope_tiled"}
    first = video_vit(1, head=theirs, **positions, **(PROBE if theirs == "attentive" else {}))
    second = video_vit(2, head=ours, **positions, **(PROBE if ours == "attentive" else {}))
    before = probe_of(second)
    save_weights(first.state_dict(), path := tmp_path / "w.pth", family, num_heads=3)
    load_encoder(second, path)
    assert_same(probe_of(second), before)
    torch.testing.assert_close(second.forward_tokens(random_clip()), first.forward_tokens(random_clip()))


def test_a_videomae_without_a_norm_of_tokens_gets_one_that_only_normalises(tmp_path: Path) -> None:
    first = video_vit(1, bias="qv")
    with torch.random.fork_rng():
        second = VideoViT(**VIT, num_classes=5, bias="qv", head="attentive", **PROBE).eval()
    save_weights(first.state_dict(), path := tmp_path / "w.pth", "videomae", num_heads=3)
    report = load_encoder(second, path)
    assert {"norms.0.weight", "norms.0.bias"} <= set(report.initialised)
    tokens = torch.nn.functional.layer_norm(first.forward_tokens(random_clip()), (24,), eps=1e-6)
    torch.testing.assert_close(second.forward_tokens(random_clip()), tokens)


def test_parts_of_an_encoder_that_the_file_lacks_are_named(tmp_path: Path) -> None:
    path = save(image_vit(), tmp_path / "vit.pth")
    model = small_model(clip_size=(4, 24, 24))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="expects a file that fills the whole encoder; .* blocks.*temporal_fc"):
        load_encoder(model, path)
    assert_same(before, dict(model.state_dict()))
