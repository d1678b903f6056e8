"""The program that prints what a model costs."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = ["TIMESFORMER.EMBED_DIM", "24", "TIMESFORMER.NUM_HEADS", "3", "TIMESFORMER.DEPTH", "2", "DATA.NUM_FRAMES", "3",
        "DATA.TRAIN_CROP_SIZE", "32", "DATA.TEST_CROP_SIZE", "32", "MODEL.NUM_CLASSES", "7"]  # fmt: skip


def run_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "profile_net.py"), *arguments]
    search_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": search_path})


def test_figures_of_a_config_with_fibonacci_attention_are_printed_and_written(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "ATTENTION: {SPACE: {NAME: fibonacci, IMPLEMENTATION: masked}}\n"
        "TEST: {NUM_ENSEMBLE_VIEWS: 4, NUM_SPATIAL_CROPS: 3}\n"
    )
    target = tmp_path / "cost.json"
    done = run_program(
        "--cfg", str(config), "--depth", "1", "--measure", "--warmup", "1", "--repeats", "2", "--batch-size", "2",
        "--device", "cpu", "--json", str(target), "--opts", *TINY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "per video (12 views)" in done.stdout and "blocks.0-1 x2" in done.stdout and "clips/s" in done.stdout
    figures = json.loads(target.read_text())
    costs = figures["profile"]
    assert costs["clip_shape"] == [1, 3, 3, 32, 32]
    assert costs["macs_executed_per_video"] == 12 * costs["macs_executed"] > 12 * costs["macs_needed"]
    assert figures["measurement"]["batch_size"] == 2 and figures["measurement"]["repeats"] == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def run_main(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """What the program prints and what it says besides, run in this process."""
    runpy.run_path(str(ROOT / "tools" / "profile_net.py"))["main"](arguments)
    printed = capsys.readouterr()
    return printed.out, printed.err


def test_without_arguments_the_default_model_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    printed, said = run_main(capsys)
    assert printed.startswith("timesformer_base: ") and "8 x 224 x 224" in printed and said == ""


def test_ignored_keys_are_named_in_one_line_and_explained_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text("NUM_GPUS: 8\nBN: {NORM_TYPE: batchnorm, NUM_SPLITS: 1}\n")
    short = run_main(capsys, "--cfg", str(config), "--depth", "1", *TINY)
    long = run_main(capsys, "--cfg", str(config), "--depth", "1", "--verbose", *TINY)
    assert short[1].splitlines() == ["Ignored keys: NUM_GPUS, BN (2 keys) (--verbose says why)"]
    reason = "TimeSformer and MViT have no batch normalisation, and pytorchvideo's networks have their own"
    assert f"  BN.NUM_SPLITS 1 ({config}:2): {reason}" in long[1].splitlines()
    assert short[0] == long[0]


def test_a_model_named_alone_has_the_size_it_is_published_with(tmp_path: Path) -> None:
    done = run_program("--model", "timesformer_base_hr", "--depth", "1", "--json", str(tmp_path / "cost.json"))
    assert done.returncode == 0, done.stderr
    costs = json.loads((tmp_path / "cost.json").read_text())["profile"]
    assert costs["clip_shape"] == [1, 3, 16, 448, 448]
    assert costs["macs_executed"] / 1e9 == pytest.approx(1702.7, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "timesformer_huge"], "--model expects one of timesformer_tiny"),
        (["--cfg", "nowhere.yaml"], "nowhere.yaml"),
        (["--model", "timesformer_tiny", "DATA.TRAIN_CROP_SIZE", "50", "DATA.TEST_CROP_SIZE", "50"], "patches of 16"),
        (["--model", "timesformer_tiny", "ATTENTION.TIME.NAME", "nothing"], "ATTENTION.TIME.NAME expects one of dense"),
        (["--model", "timesformer_tiny", "--json", "nowhere/cost.json"], "there is no folder nowhere"),
        (["--model", "timesformer_tiny", "--depth", "0"], "--depth expects at least 1, got 0"),
        (["--model", "timesformer_tiny", "--measure", "--device", "gpu"], "device expects cpu, cuda or cuda:NUMBER"),
    ],
)
def test_mistakes_are_answered_in_one_line(arguments: list[str], message: str) -> None:
    done = run_program(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_help_shows_examples_and_the_convention() -> None:
    done = run_program("--help")
    assert done.returncode == 0
    assert "python tools/profile_net.py --cfg" in done.stdout and "one multiply-add counts as 1" in done.stdout
