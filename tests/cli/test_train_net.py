"""Whole runs of tools/train_net.py, on folders of a few small frames."""

import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from PIL import Image

from tests.engine.damaged_checkpoints import DAMAGES
from videoattn.cli import train as train_net
from videoattn.cli.run_tool import USER_ERROR, run_tool
from videoattn.engine.checkpoint.files import BEST, list_checkpoints, load_checkpoint

ROOT = Path(__file__).parents[2]
SETTINGS = """
MODEL: {MODEL_NAME: timesformer_tiny, NUM_CLASSES: 2}
TIMESFORMER: {PATCH_SIZE: 16, DEPTH: 1, EMBED_DIM: 24, NUM_HEADS: 2}
DATA: {NUM_FRAMES: 2, SAMPLING_RATE: 1, TRAIN_JITTER_SCALES: [36, 40], TRAIN_CROP_SIZE: 32, TEST_CROP_SIZE: 32}
TRAIN: {BATCH_SIZE: 4}
SOLVER: {MAX_EPOCH: 2, BASE_LR: 0.01, OPTIMIZING_METHOD: adamw}
DATA_LOADER: {NUM_WORKERS: 0}
LOG_PERIOD: 1
DEVICE: cpu
"""


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight videos of three frames, four of either class, listed for training and validation."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(8):
        (folder / f"v{number}").mkdir()
        for frame in range(3):
            image = Image.new("RGB", (40, 36), (30 * number, 60 * frame, 100))
            image.save(folder / f"v{number}" / f"{frame:05d}.png")
    for split in ("train", "val"):
        write_list(folder / f"{split}.csv", [f"v{number}" for number in range(8)])
    return folder


@pytest.fixture
def data(frames: Path, tmp_path: Path) -> Path:
    shutil.copytree(frames, tmp_path / "data")
    return tmp_path / "data"


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


def write_list(file: Path, names: list[str], labels: list[int] | None = None) -> None:
    labels = [number % 2 for number in range(len(names))] if labels is None else labels
    file.write_text("".join(f"{name} {label}\n" for name, label in zip(names, labels, strict=True)))


def arguments(data: Path, *pairs: object) -> list[str]:
    settings = data.parent / "settings.yaml"
    settings.write_text(SETTINGS)
    own = ["--cfg", settings, "DATA.PATH_TO_DATA_DIR", data, "OUTPUT_DIR", data.parent / "run"]
    return [str(value) for value in (*own, *pairs)]


def run_log(data: Path) -> str:
    return (data.parent / "run" / "run.log").read_text()


def events(data: Path, name: str) -> list[Any]:
    lines = (data.parent / "run" / "log.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def checkpoints(data: Path) -> list[Path]:
    return [found.path for found in list_checkpoints(data.parent / "run" / "checkpoints")]


def test_failed_validation_videos_stand_beside_the_accuracy(data: Path) -> None:
    write_list(data / "val.csv", [f"{'v' if number < 2 else 'gone'}{number}" for number in range(8)])
    train_net.main(arguments(data, "SOLVER.MAX_EPOCH", 1))
    (epoch,) = events(data, "epoch")
    assert (epoch["val_videos"], epoch["val_evaluated"], epoch["val_failed"]) == (8, 2, 6)
    assert [Path(event["path"]).name for event in events(data, "failed_video")] == [f"gone{i}" for i in range(2, 8)]
    assert "2 of 8 validation videos evaluated, 6 failed" in run_log(data)
    assert re.search(r"best top-1 [\d.]+ % after epoch 1, of 2 of 8 videos; results in", run_log(data))


def test_a_run_of_which_no_validation_video_could_be_evaluated_has_no_best(data: Path) -> None:
    write_list(data / "val.csv", [f"gone{number}" for number in range(8)])
    train_net.main(arguments(data, "SOLVER.MAX_EPOCH", 1))
    assert f"WARNING: 8 of 8 videos of {data}/val.csv do not exist, e.g. {data}/gone0" in run_log(data)
    assert "no validation figure exists, since no validation video could be evaluated; results in" in run_log(data)
    assert [path.name for path in checkpoints(data)] == ["checkpoint_epoch_00001.pyth"]
    assert not (checkpoints(data)[0].parent / BEST).exists()


def test_a_damaged_newest_checkpoint_is_passed_over_and_the_run_ends_as_if_whole(data: Path) -> None:
    train_net.main(arguments(data, "TRAIN.EVAL_PERIOD", 2))
    newest = checkpoints(data)[-1]
    whole = load_checkpoint(newest)["model_state"]
    (newest.parent / BEST).unlink()
    DAMAGES["cut in half"](newest)
    train_net.main(arguments(data))
    assert f"WARNING: a bad checkpoint is not used: {newest} is damaged" in run_log(data)
    assert f"continuing from {checkpoints(data)[0]} (epoch 1, step 0)" in run_log(data)
    again = load_checkpoint(newest)["model_state"]
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_a_list_that_changed_is_refused_and_one_that_moved_is_not(data: Path, tmp_path: Path) -> None:
    train_net.main(arguments(data, "SOLVER.MAX_EPOCH", 1))
    write_list(data / "train.csv", [f"v{number}" for number in range(8)], [0, 1, 1, 1, 0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"train.csv has changed: video 3, 'v2', has label 1 instead of 0;"):
        train_net.main(arguments(data, "SOLVER.MAX_EPOCH", 1))
    write_list(data / "train.csv", [f"v{number}" for number in range(8)])
    data.rename(tmp_path / "moved")
    train_net.main(arguments(tmp_path / "moved", "SOLVER.MAX_EPOCH", 1))
    assert "all 1 epochs of SOLVER.MAX_EPOCH are done by" in run_log(data)


def test_a_diverged_run_names_the_command_that_continues_it_with_a_lower_rate(data: Path) -> None:
    rates = ["SOLVER.OPTIMIZING_METHOD", "sgd", "SOLVER.LR_POLICY", "constant", "SOLVER.BASE_LR", 1000]
    rates += ["SOLVER.WARMUP_EPOCHS", 1, "SOLVER.WARMUP_START_LR", 900, "SOLVER.MAX_EPOCH", 5]
    diverging = arguments(data, *rates, "TRAIN.CHECKPOINT_STEPS", 1, "TRAIN.EVAL_PERIOD", 5)
    assert run_tool(train_net.main, diverging) == USER_ERROR
    (last,) = checkpoints(data)[-1:]
    text = run_log(data).rstrip().split("error: ")[1]
    assert "at learning rate" in text and f"; continue from {last} with a lower rate by: " in text
    command = shlex.split(text.partition("with a lower rate by: ")[2])
    assert command[:2] == ["videoattn", "train"]
    assert command[2:] == [*diverging, "SOLVER.BASE_LR", "500", "SOLVER.WARMUP_START_LR", "450"]
    train_net.main([*command[2:-4], "SOLVER.BASE_LR", "0", "SOLVER.WARMUP_START_LR", "0"])
    assert f"continuing from {last}" in run_log(data) and checkpoints(data)[-1].name == "checkpoint_epoch_00005.pyth"


def test_a_lower_rate_continues_where_the_command_line_gives_it(data: Path) -> None:
    train_net.main(arguments(data, "TRAIN.EVAL_PERIOD", 2))
    checkpoints(data)[-1].unlink()
    (checkpoints(data)[0].parent / BEST).unlink()
    settings = data.parent / "settings.yaml"
    given = arguments(data)
    settings.write_text(SETTINGS.replace("BASE_LR: 0.01", "BASE_LR: 0.005"))
    with pytest.raises(ValueError, match=r"other settings \(SOLVER.BASE_LR 0.005, was 0.01\)"):
        train_net.main(given)
    train_net.main(arguments(data, "SOLVER.BASE_LR", 0.005))
    assert "WARNING: continuing with SOLVER.BASE_LR 0.005, was 0.01" in run_log(data)
    assert load_checkpoint(checkpoints(data)[-1])["cfg"].count("BASE_LR: 0.005") == 1
    rates = [event["lr"] for event in events(data, "train")]
    assert rates[-2:] == pytest.approx([rate / 2 for rate in rates[2:4]], rel=1e-3)


@pytest.mark.parametrize(
    "pairs, message",
    [
        (["MODEL.NUM_CLASSES", 1], "train.csv:2: label '1' of 'v1', expected a whole number from 0 to 0"),
        (["TRAIN.CHECKPOINT_FILE_PATH", "nowhere.pyth"], "TRAIN.CHECKPOINT_FILE_PATH nowhere.pyth: no such file"),
        (["TRAIN.CHECKPOINT_FILE_PATH", "zoo:nothing"], "nothing is no row of the model zoo"),
        (["TIMESFORMER.PRETRAINED_MODEL", "nowhere.pth"], "TIMESFORMER.PRETRAINED_MODEL nowhere.pth: no such file"),
        (
            ["MODEL.MODEL_NAME", "mvit_v2_s", "TIMESFORMER.PRETRAINED_MODEL", "nowhere.pth"],
            "TIMESFORMER.PRETRAINED_MODEL nowhere.pth: MODEL.MODEL_NAME mvit_v2_s starts from no image ViT",
        ),
        (["DATA.PATH_PREFIX", "/nowhere"], "8 of 8 videos of .*train.csv do not exist, e.g. /nowhere/v0; expected"),
        (["TRAIN.BATCH_SIZE", 16], "8 videos do not fill an optimizer step"),
    ],
    ids=["classes", "weights", "zoo", "pretrained", "other_section", "videos", "batch"],
)
def test_what_is_missing_or_does_not_fit_is_found_before_the_model_is_built_and_logged(
    data: Path, monkeypatch: pytest.MonkeyPatch, pairs: list[object], message: str
) -> None:
    monkeypatch.delattr(train_net, "build_model")
    assert run_tool(train_net.main, arguments(data, *pairs)) == USER_ERROR
    assert re.search(f"error: .*{message}", run_log(data))
    assert checkpoints(data) == []


def test_one_run_at_a_time_trains_in_a_folder_and_others_leave_its_log_alone(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from videoattn.engine.run_folder import lock_run_folder

    monkeypatch.setattr(train_net, "lock_run_folder", lambda folder: lock_run_folder(folder, wait_seconds=0))
    folder = data.parent / "run"
    folder.mkdir()
    with FileLock(folder / ".train.lock"):
        with pytest.raises(ValueError, match=f"another training run is writing to OUTPUT_DIR {folder}"):
            train_net.main(arguments(data))
        assert [path.name for path in folder.iterdir()] == [".train.lock"]
    train_net.main(arguments(data, "SOLVER.MAX_EPOCH", 1))
    train_net.main(arguments(data, "SOLVER.MAX_EPOCH", 1))


def test_a_named_checkpoint_continues_in_spite_of_what_differs(data: Path) -> None:
    train_net.main(arguments(data, "SOLVER.MAX_EPOCH", 1))
    first = checkpoints(data)[-1]
    longer = ["TRAIN.CHECKPOINT_FILE_PATH", first, "TRAIN.CHECKPOINT_EPOCH_RESET", False, "SOLVER.MAX_EPOCH", 2]
    with pytest.raises(ValueError, match=r"SOLVER.MAX_EPOCH 2, was 1\)"):
        train_net.main(arguments(data, "SOLVER.MAX_EPOCH", 2))
    train_net.main(arguments(data, *longer, "SOLVER.WEIGHT_DECAY", 0.5, "OUTPUT_DIR", data.parent / "longer"))
    text = (data.parent / "longer" / "run.log").read_text()
    assert "SOLVER.MAX_EPOCH 2, was 1" in text and "SOLVER.WEIGHT_DECAY 0.5, was 0.0001" in text
    last = load_checkpoint(list_checkpoints(data.parent / "longer" / "checkpoints")[-1].path)
    assert last["epoch"] == 2
    assert {group["weight_decay"] for group in last["optimizer_state"]["param_groups"]} == {0.5}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damage_to_the_newest_checkpoint_ends_a_run(data: Path, damage: str) -> None:
    averaged = arguments(data, "EMA.ENABLED", True, "EMA.DECAY", 0.5, "SOLVER.MAX_EPOCH", 2)
    train_net.main(averaged)
    newest = checkpoints(data)[-1]
    (newest.parent / BEST).unlink()
    DAMAGES[damage](newest)
    assert run_tool(train_net.main, averaged) == 0
    assert "WARNING: a bad checkpoint is not used" in run_log(data) and "weights_only" not in run_log(data)


def torchrun(*values: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               str(ROOT / "tools/train_net.py"), *map(str, values)]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_processes_of_torchrun_list_all_bad_clips_and_end_together(data: Path) -> None:
    for number in (2, 5):
        shutil.rmtree(data / f"v{number}")
        (data / f"v{number}").mkdir()
    pairs = arguments(data, "DATA.MAX_BAD_FRACTION", 1, "SOLVER.MAX_EPOCH", 3)
    output, _ = torchrun(*pairs).communicate(timeout=300)
    assert "trained in" in output, output
    bad = events(data, "bad_clip")
    assert {event["rank"] for event in bad} == {0, 1}
    assert len(bad) == sum(event["bad_clips"] for event in events(data, "epoch"))
    with FileLock(data.parent / "run" / ".train.lock"):
        process = torchrun(*pairs)
        output, _ = process.communicate(timeout=300)
    assert process.returncode and output.count("error: another training run is writing") == 1
    assert "Traceback" not in output.partition("torch/distributed")[0]


def test_a_finished_run_is_left_as_it_is(data: Path) -> None:
    train_net.main(arguments(data, "SOLVER.MAX_EPOCH", 1))
    settings = (data.parent / "run" / "config.yaml").read_bytes()
    train_net.main(arguments(data, "SOLVER.MAX_EPOCH", 1, "SOLVER.BASE_LR", 0.001))
    assert (data.parent / "run" / "config.yaml").read_bytes() == settings


def test_the_best_of_another_run_is_not_called_the_best_of_this_one(data: Path, tmp_path: Path) -> None:
    train_net.main(arguments(data, "SOLVER.MAX_EPOCH", 1))
    (checkpoint,) = (data.parent / "run" / "checkpoints").glob("checkpoint_epoch_*.pyth")
    other = ["OUTPUT_DIR", tmp_path / "other", "TRAIN.CHECKPOINT_FILE_PATH", checkpoint,
             "TRAIN.CHECKPOINT_EPOCH_RESET", "False"]  # fmt: skip
    with pytest.raises(ValueError, match="has finished 1 epochs, so SOLVER.MAX_EPOCH 1 leaves nothing to train"):
        train_net.main(arguments(data, "SOLVER.MAX_EPOCH", 1, *other))
    train_net.main(arguments(data, "SOLVER.MAX_EPOCH", 2, *other))
    assert "after epoch 2" in (tmp_path / "other/run.log").read_text()
    assert (tmp_path / "other/checkpoints/checkpoint_best.pyth").is_file()


def test_fine_tuning_needs_weights(data: Path) -> None:
    with pytest.raises(ValueError, match="TRAIN.FINETUNE True expects weights to start from"):
        train_net.main(arguments(data, "TRAIN.FINETUNE", "True"))
