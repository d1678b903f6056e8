"""tools/convert_checkpoint.py, from file to file."""

from pathlib import Path

import pytest
import torch

from tests.models.mvit.small_mvits import SQUARE, small_mvit
from tests.models.mvit.test_mvit_weights import published_cfg
from tests.models.small_models import assert_same, released, save, small_model
from videoattn.cli.convert import main
from videoattn.cli.run_tool import run_tool
from videoattn.models.weights.files import read_weight_file
from videoattn.models.weights.load import load_weights, mvit_from_ours, mvit_to_ours

ROOT = Path(__file__).parents[2]


def test_a_timesformer_goes_to_transformers_and_back(tmp_path: Path) -> None:
    source = small_model()
    theirs, hf, back = save(released(source), tmp_path / "a.pyth"), tmp_path / "b.safetensors", tmp_path / "c.pyth"
    size = ["--clip-size", "4", "16", "24"]
    assert run_tool(main, [str(theirs), str(hf), "--to", "huggingface", "--num-heads", "3", *size]) == 0
    assert "timesformer.embeddings.cls_token" in read_weight_file(hf).tensors
    assert run_tool(main, [str(hf), str(back), "--to", "timesformer"]) == 0  # the file notes heads and clip size
    assert_same(read_weight_file(back).tensors, released(source))


def test_slowfasts_mvit_goes_to_torchvision_and_to_ours(tmp_path: Path) -> None:
    source = small_mvit(clip_size=SQUARE)
    content = {"model_state": mvit_from_ours(source.state_dict(), "slowfast"), "cfg": published_cfg()}
    path = save(content, tmp_path / "a.pyth")
    assert run_tool(main, [str(path), str(tmp_path / "b.pth"), "--to", "torchvision"]) == 0
    tensors = torch.load(tmp_path / "b.pth", weights_only=True)["model_state"]
    assert_same(mvit_to_ours(tensors, "torchvision"), source.state_dict())
    assert run_tool(main, [str(path), str(tmp_path / "c.safetensors"), "--to", "videoattn"]) == 0
    target = small_mvit(seed=3, clip_size=SQUARE)
    load_weights(target, tmp_path / "c.safetensors")
    assert_same(target.state_dict(), source.state_dict())


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("pytorchvideo", "pytorchvideo names the tensors of an MViT, and these are of a TimeSformer or an image ViT"),
        ("vit", "only a space-only model has the form of an image ViT"),
    ],
)
def test_what_a_project_cannot_hold_is_refused_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str, message: str
) -> None:
    path = save(released(small_model()), tmp_path / "a.pyth")
    out = tmp_path / "b.pyth"
    arguments = [str(path), str(out), "--to", to, "--num-heads", "3", "--clip-size", "4", "16", "24"]
    assert run_tool(main, arguments) == 2 and not out.exists()
    assert message in capsys.readouterr().err


def test_an_existing_file_is_kept_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(mvit_from_ours(small_mvit(clip_size=SQUARE).state_dict(), "slowfast"), tmp_path / "a.pyth")
    assert run_tool(main, [str(path), str(path), "--to", "slowfast"]) == 2
    assert "add --overwrite to replace it" in capsys.readouterr().err


def test_attention_that_the_other_format_cannot_say_is_not_dropped_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = ROOT / "model_zoo/motion_timesformer_fibonacci.safetensors", tmp_path / "b.safetensors"
    assert run_tool(main, [str(path), str(out), "--to", "huggingface"]) == 2 and not out.exists()
    assert "can't describe that a model attends by ATTENTION.TIME fibonacci" in capsys.readouterr().err
    assert run_tool(main, [str(path), str(out), "--to", "huggingface", "--as-dense"]) == 0 and out.exists()
