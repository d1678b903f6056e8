"""A backbone that the package has never seen trains, evaluates, is profiled and loads by its spec alone."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tools import profile_net, test_net, train_net
from videoattn.cli.run_tool import run_tool
from videoattn.convert.replace import replace_attention, revert_attention
from videoattn.engine.checkpoint.files import load_checkpoint
from videoattn.grid import Axis, TokenGrid
from videoattn.layers.attention import MultiheadAttention
from videoattn.models import MODELS, ModelSpec, TimeSformer
from videoattn.models.settings import refuse_attention_settings
from videoattn.models.weights.adapter import WeightAdapter
from videoattn.models.weights.load import CheckpointError, from_checkpoint, load_weights, save_weights
from videoattn.operators.dense import DenseAttention

NAME = "toy/strips"


class Strips(nn.Module):
    """Strips of frames, two stages of linear layers, and a classifier; no part is named as in another model."""

    def __init__(self, clip_size: tuple[int, int, int], num_classes: int, width: int) -> None:
        super().__init__()
        self.clip_size = clip_size
        self.stem = nn.Conv3d(3, width, (1, 8, clip_size[2]), (1, 8, 1))
        self.place = nn.Parameter(torch.zeros(clip_size[1] // 8, width))
        self.stages = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.stem(clip).flatten(2).transpose(1, 2).unflatten(1, (clip.shape[2], -1)).mean(dim=1) + self.place
        for stage in self.stages:
            x = x + stage(x).relu()
        logits: Tensor = self.classifier(x.mean(dim=1))
        return logits


def layer_of(model: Strips, name: str) -> int:
    part, _, rest = name.partition(".")
    return {"classifier": 0, "stages": 2 - int(rest[:1] or 0) if part == "stages" else 0}.get(part, 3)


def no_arguments(cfg: Any) -> dict[str, Any]:
    refuse_attention_settings(cfg)
    return {}


STRIPS = ModelSpec(
    model=Strips,
    size={"width": 6},
    clip_size=(3, 16, 16),
    arguments=no_arguments,
    aggregate="probabilities",
    no_weight_decay=lambda settings, name: name == "place",
    layer_of=layer_of,
    adapter=WeightAdapter(held="a model of strips"),
)
DATA = ["DATA.NUM_FRAMES", "3", "DATA.TRAIN_CROP_SIZE", "16", "DATA.TEST_CROP_SIZE", "16", "DATA.SAMPLING_RATE", "1"]


@pytest.fixture
def strips(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register the backbone; logging and determinism, which a run sets up, are as before afterwards."""
    monkeypatch.setitem(MODELS, NAME, STRIPS)
    package = logging.getLogger("videoattn")
    before = package.propagate, package.level, list(package.handlers), torch.are_deterministic_algorithms_enabled()
    yield
    package.propagate, package.level, package.handlers = before[:3]
    torch.use_deterministic_algorithms(before[3])


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Settings of a run on four videos of three small frames."""
    for number in range(4):
        (tmp_path / f"v{number}").mkdir()
        for frame in range(3):
            image = Image.new("RGB", (20, 18), (60 * number, 60 * frame, 100))
            image.save(tmp_path / f"v{number}" / f"{frame}.png")
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.csv").write_text("".join(f"v{number} {number % 2}\n" for number in range(4)))
    return [
        "MODEL.MODEL_NAME", NAME, "MODEL.NUM_CLASSES", "2", *DATA, "DATA.TRAIN_JITTER_SCALES", "[18, 20]",
        "DATA.PATH_TO_DATA_DIR", str(tmp_path), "OUTPUT_DIR", str(tmp_path / "run"), "DATA_LOADER.NUM_WORKERS", "0",
        "TRAIN.BATCH_SIZE", "2", "SOLVER.MAX_EPOCH", "2", "SOLVER.BASE_LR", "0.1", "SOLVER.WEIGHT_DECAY", "0.1",
        "SOLVER.LAYER_DECAY", "0.5", "DEVICE", "cpu",
    ]  # fmt: skip


@pytest.mark.usefixtures("strips")
def test_it_trains_by_its_rules_and_is_evaluated_by_its_aggregate(tmp_path: Path, arguments: list[str]) -> None:
    assert run_tool(train_net.main, arguments) == 0
    last = tmp_path / "run/checkpoints/checkpoint_epoch_00002.pyth"
    groups = load_checkpoint(last)["optimizer_state"]["param_groups"]
    scales = {(group["weight_decay"], group["lr_scale"]): len(group["params"]) for group in groups}
    assert scales == {(0.1, 0.125): 2, (0.0, 0.125): 1, (0.1, 0.25): 2, (0.1, 0.5): 2, (0.1, 1.0): 2}

    assert run_tool(test_net.main, ["--weights", str(last)]) == 0
    results = json.loads((tmp_path / "run/test/results.json").read_text())
    assert results["model"] == NAME and results["protocol"]["aggregate"] == "probabilities"
    assert results["counts"]["evaluated"] == 4 and results["departures"] == []
    assert results["checkpoint"]["family"] == "videoattn" and results["checkpoint"]["loaded"] == 9

    model = from_checkpoint(last)
    assert isinstance(model, Strips) and not model.training
    saved = load_checkpoint(last)["model_state"]
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


@pytest.mark.usefixtures("strips")
def test_it_is_profiled_for_clips_of_its_own_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(profile_net.main, ["--model", NAME, "--json", str(tmp_path / "cost.json")]) == 0
    assert "clip 3 x 3 x 16 x 16" in capsys.readouterr().out
    costs = json.loads((tmp_path / "cost.json").read_text())["profile"]
    strips = 3 * 2  # frames, and strips of each
    assert costs["macs_executed"] == strips * 3 * 8 * 16 * 6 + 2 * (2 * 6 * 6) + 6 * 400


@pytest.mark.usefixtures("strips")
def test_its_weights_load_strictly(tmp_path: Path) -> None:
    source, target = STRIPS.build(num_classes=2), STRIPS.build(num_classes=2)
    save_weights(source.state_dict(), tmp_path / "a.safetensors")
    assert len(load_weights(target, tmp_path / "a.safetensors").loaded) == 9
    assert torch.equal(target.get_parameter("stem.weight"), source.get_parameter("stem.weight"))
    state = source.state_dict()
    del state["place"]
    save_weights(state, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="b.safetensors: of the 9 tensors of the model, 1 missing: place"):
        load_weights(target, tmp_path / "b.safetensors")
    other = TimeSformer((2, 16, 16), 8, 12, 1, 2, 2)
    with pytest.raises(CheckpointError, match="expected a TimeSformer or an image ViT .* got classifier.bias"):
        load_weights(other, tmp_path / "a.safetensors")
    save_weights(other.state_dict(), tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="c.safetensors: of the 9 tensors of the model, 9 missing"):
        load_weights(target, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="expected a TimeSformer .* got classifier.bias"):
        from_checkpoint(tmp_path / "a.safetensors")


class Attending(nn.Module):
    """One joint attention slot under names that no other model has."""

    def __init__(self, clip_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.clip_size = clip_size
        self.rows = nn.Conv3d(3, 6, (1, 8, 8), (1, 8, 8))
        grid = TokenGrid(clip_size[0], clip_size[1] // 8, clip_size[2] // 8, prefix=0)
        self.sight = MultiheadAttention(6, 2, grid, Axis.JOINT, 0, DenseAttention)

    def forward(self, clip: Tensor) -> Tensor:
        update, _ = self.sight(self.rows(clip).flatten(2).transpose(1, 2))
        return update.mean(dim=(1, 2))


def test_its_attention_is_replaced_and_reverted_wherever_its_slots_are() -> None:
    model, clip = nn.Sequential(Attending((2, 16, 16))), torch.rand(1, 3, 2, 16, 16)
    before = model(clip)
    report = replace_attention(model, joint="focused_linear", verbose=False)
    assert [item.path for item in report.replacements] == ["0.sight"]
    assert not torch.allclose(model(clip), before, atol=1e-6)
    assert [item.after for item in revert_attention(model, verbose=False).replacements] == ["DenseAttention"]
    assert torch.equal(model(clip), before)
    two = nn.ModuleList([Attending((2, 16, 16)), Attending((2, 16, 16))])
    with pytest.raises(ValueError, match="contains several models, pass one of them: 0, 1"):
        replace_attention(two, joint="fibonacci", verbose=False)
