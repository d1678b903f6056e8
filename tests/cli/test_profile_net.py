"""The program that prints what a model costs."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.programs import run_program

TINY = ["TIMESFORMER.EMBED_DIM", "24", "TIMESFORMER.NUM_HEADS", "3", "TIMESFORMER.DEPTH", "2", "DATA.NUM_FRAMES", "3",
        "DATA.TRAIN_CROP_SIZE", "32", "DATA.TEST_CROP_SIZE", "32", "MODEL.NUM_CLASSES", "7"]  # fmt: skip


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_program("tools/profile_net.py", *arguments)


def test_figures_of_a_config_with_fibonacci_attention_are_printed_and_written(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "ATTENTION: {SPACE: {NAME: fibonacci, IMPLEMENTATION: masked}}\n"
        "TEST: {NUM_ENSEMBLE_VIEWS: 4, NUM_SPATIAL_CROPS: 3}\n"
    )
    target = tmp_path / "cost.json"
    done = run(
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


def test_without_arguments_the_default_model_is_counted() -> None:
    done = run()
    assert done.stdout.startswith("timesformer_base: ") and "8 x 224 x 224" in done.stdout and done.stderr == ""


def test_ignored_keys_are_named_in_one_line_and_explained_on_request(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text("NUM_GPUS: 8\nBN: {NORM_TYPE: batchnorm, NUM_SPLITS: 1}\n")
    short = run("--cfg", str(config), "--depth", "1", *TINY)
    long = run("--cfg", str(config), "--depth", "1", "--verbose", *TINY)
    assert short.stderr.splitlines() == ["Ignored keys: NUM_GPUS, BN (2 keys) (--verbose says why)"]
    reason = "TimeSformer and MViT have no batch normalisation, and pytorchvideo's networks have their own"
    assert f"  BN.NUM_SPLITS 1 ({config}:2): {reason}" in long.stderr.splitlines()
    assert short.stdout == long.stdout


def test_a_model_named_alone_has_the_size_it_is_published_with(tmp_path: Path) -> None:
    done = run("--model", "timesformer_base_hr", "--depth", "1", "--json", str(tmp_path / "cost.json"))
    assert done.returncode == 0, done.stderr
    costs = json.loads((tmp_path / "cost.json").read_text())["profile"]
    assert costs["clip_shape"] == [1, 3, 16, 448, 448]
    assert costs["macs_executed"] / 1e9 == pytest.approx(1702.7, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "timesformer_huge"], "did you mean timesformer_base?"),
        (["--cfg", "nowhere.yaml"], "nowhere.yaml"),
        (["--model", "timesformer_tiny", "DATA.TRAIN_CROP_SIZE", "50", "DATA.TEST_CROP_SIZE", "50"], "patches of 16"),
        (["--model", "timesformer_tiny", "ATTENTION.TIME.NAME", "nothing"], "ATTENTION.TIME.NAME expects one of dense"),
        (["--model", "timesformer_tiny", "--json", "nowhere/cost.json"], "there is no folder nowhere"),
        (["--model", "timesformer_tiny", "--depth", "0"], "--depth expects at least 1, got 0"),
        (["--batch-size", "8", "--device", "cpu"], "--device, --batch-size: expected --measure as well"),
        (["--measure", "--batch-size", "0"], "--batch-size expects at least 1, got 0"),
        (["--json", "."], "--json .: expected a file"),
        (["--model", "timesformer_tiny", "--measure", "--device", "gpu"], "device expects cpu, cuda or cuda:NUMBER"),
    ],
)
def test_mistakes_are_answered_in_one_line(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_help_shows_examples_and_the_convention() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "python tools/profile_net.py --cfg" in done.stdout and "one multiply-add counts as 1" in done.stdout
