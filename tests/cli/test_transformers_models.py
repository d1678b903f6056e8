"""Whole runs of train, test and profile with video classifiers of transformers, on a few clips of Motion."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.transformers_folders import AXES, CROP, write_folders
from videoattn.cli import profile as profile_program
from videoattn.cli import test as test_program
from videoattn.cli import train as train_program
from videoattn.cli.run_tool import run_tool
from videoattn.data.motion.render import Settings, make_motion
from videoattn.models.hub import PREFIX


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def undisturbed() -> Any:
    """Logging and determinism as they were; a run sets both up for its process."""
    package = logging.getLogger("videoattn")
    before = package.propagate, package.level, torch.are_deterministic_algorithms_enabled()
    yield
    for handler in list(package.handlers):
        package.removeHandler(handler)
        handler.close()
    package.propagate, package.level = before[:2]
    torch.use_deterministic_algorithms(before[2])


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("motion") / "data"
    make_motion(folder, Settings("short", 16, 8, 32, 32, 18, 0), num_workers=1)
    return folder


def arguments(model: Path, clips: Path, out: Path, *more: Any) -> list[str]:
    pairs = [
        "MODEL.MODEL_NAME", f"{PREFIX}{model}", *CROP, "DATA.PATH_TO_DATA_DIR", clips, "DATA.CLASS_NAMES",
        clips / "class_names.txt", "DATA.TRAIN_JITTER_SCALES", [32, 32], "SOLVER.MAX_EPOCH", 1,
        "SOLVER.WARMUP_EPOCHS", 0, "TRAIN.BATCH_SIZE", 8, "DATA_LOADER.NUM_WORKERS", 0, "DEVICE", "cpu",
        "OUTPUT_DIR", out, *more,
    ]  # fmt: skip
    return ["--cfg", "Motion/divided.yaml", *map(str, pairs)]


@pytest.mark.parametrize("kind", ["videomae", pytest.param("timesformer", marks=pytest.mark.slow), "vjepa2"])
def test_it_is_trained_evaluated_and_profiled(
    kind: str, folders: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(folders / kind, clips, tmp_path / "run", f"ATTENTION.{AXES[kind][0]}.NAME", "fibonacci")
    assert run_tool(train_program.main, given) == 0
    log = (tmp_path / "run" / "run.log").read_text()
    assert f"{folders / kind} (huggingface): " in log and "0 initialised" in log
    assert run_tool(test_program.main, given) == 0
    results = json.loads((tmp_path / "run" / "test" / "results.json").read_text())
    assert results["checkpoint"]["source"].endswith("checkpoint_best.pyth") and results["departures"] == []
    capsys.readouterr()
    assert run_tool(profile_program.main, given) == 0
    assert "videoattn::offset_attention" in capsys.readouterr().out


def test_a_folder_by_itself_is_evaluated_with_its_own_weights(folders: Path, clips: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "videomae", tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))
    given = arguments(tmp_path / "m", clips, tmp_path / "run")
    assert run_tool(test_program.main, given) == 0
    results = json.loads((tmp_path / "run" / "test" / "results.json").read_text())
    assert results["checkpoint"]["source"] == str(tmp_path / "m") and len(results["checkpoint"]["sha256"]) == 64
    assert results["departures"] == [
        {"key": "DATA.MEAN", "checkpoint": "[0.5, 0.5, 0.5]", "here": "[0.45, 0.45, 0.45]"}
    ]


def test_a_folder_of_theirs_starts_our_own_model_too(folders: Path, clips: Path, tmp_path: Path) -> None:
    given = arguments(folders / "videomae", clips, tmp_path / "run")
    given[given.index(f"{PREFIX}{folders / 'videomae'}")] = "videomae_small"
    sizes = {"PATCH_SIZE": 8, "EMBED_DIM": 24, "DEPTH": 2, "NUM_HEADS": 3, "MLP_DIM": 96, "NORM_EPS": 1e-12}
    given += [str(x) for name, value in sizes.items() for x in (f"VIDEO_VIT.{name}", value)]
    given += ["VIDEO_VIT.HEAD_EPS", "1e-5"]
    own = ["TRAIN.CHECKPOINT_FILE_PATH", str(folders / "videomae")]
    assert run_tool(train_program.main, [*given, *own]) == 0
    log = (tmp_path / "run" / "run.log").read_text()
    assert f"{folders / 'videomae'} (huggingface): 32 tensors loaded" in log and "VIDEO_VIT.NORM_EPS" not in log
    assert run_tool(train_program.main, [*given, *own, "TRAIN.CHECKPOINT_EPOCH_RESET", "False"]) == 2
    assert run_tool(test_program.main, [*given, "TEST.CHECKPOINT_FILE_PATH", str(folders / "videomae")]) == 0


def test_a_folder_without_weights_trains_from_random_ones_and_says_so(
    folders: Path, clips: Path, tmp_path: Path
) -> None:
    shutil.copytree(folders / "videomae", tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    assert run_tool(train_program.main, arguments(tmp_path / "m", clips, tmp_path / "run")) == 0
    assert "holds no weights, so training starts from random ones" in (tmp_path / "run" / "run.log").read_text()
    assert run_tool(train_program.main, arguments(tmp_path / "m", clips, tmp_path / "b", "TRAIN.FINETUNE", True)) == 2
