"""Whole runs over unusable files: each costs one clip in training, and is excluded from evaluation and listed.

One of them is a pipe without a writer: opening it would never end.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.data.faulty_clips import ClipMaker
from tests.samples import first_quick
from tests.shared_files import CLIPS, needs_clips
from videoattn.cli import test as test_net
from videoattn.cli import train as train_net

SMALL_RUN = [
    "MODEL.MODEL_NAME", "timesformer_tiny", "TIMESFORMER.PATCH_SIZE", "16", "TIMESFORMER.DEPTH", "1",
    "MODEL.NUM_CLASSES", "2", "DATA.NUM_FRAMES", "4", "DATA.SAMPLING_RATE", "2", "DATA.TRAIN_JITTER_SCALES", "[36, 44]",
    "DATA.TRAIN_CROP_SIZE", "32", "DATA.TEST_CROP_SIZE", "32", "TEST.NUM_ENSEMBLE_VIEWS", "2", "TRAIN.BATCH_SIZE", "2",
    "SOLVER.MAX_EPOCH", "2", "SOLVER.BASE_LR", "0.001", "DATA.MAX_BAD_FRACTION", "1", "DATA_LOADER.NUM_WORKERS", "2",
    "DEVICE", "cpu",
]  # fmt: skip
NEVER_READ = {"missing.mp4", "empty.mp4", "not_a_video.mp4", "no_video_stream.mp4", "pipe.mp4"}
READ_IN_PART = {"damaged.mp4", "cut_short.mp4"}


def train_and_evaluate(folder: Path, names: list[str], run: Path, *pairs: str) -> tuple[list[Any], dict[str, Any]]:
    """Events of a training run and results of an evaluation, both over all files."""
    for split in ("train", "val", "test"):
        (folder / f"{split}.csv").write_text("".join(f"{name} {number % 2}\n" for number, name in enumerate(names)))
    settings = [*SMALL_RUN, "DATA.PATH_TO_DATA_DIR", str(folder), "OUTPUT_DIR", str(run), *pairs]
    train_net.main(settings)
    test_net.main(settings)
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return events, json.loads((run / "test/results.json").read_text())


def bad_names(entries: list[Any]) -> set[str]:
    return {Path(entry["path"]).name for entry in entries}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("backend", first_quick(["auto", "decord"]))
def test_training_and_evaluation_continue_past_every_type_of_bad_file(tmp_path: Path, backend: str) -> None:
    if backend == "decord":
        pytest.importorskip("decord")
    folder = tmp_path / "videos"
    folder.mkdir()
    clips = ClipMaker(folder)
    good = [f"good{number}.mp4" for number in range(5)]
    for name in good:
        clips.write(folder / name)
    for name in (NEVER_READ | READ_IN_PART) - {"pipe.mp4"}:
        clips.write(folder / name, name.removesuffix(".mp4"))
    os.mkfifo(folder / "pipe.mp4")
    names = [*sorted(NEVER_READ | READ_IN_PART), *good]
    limits = ["DATA.DECODING_BACKEND", backend, "DATA_LOADER.LIMIT_SECONDS", "2"]
    events, results = train_and_evaluate(folder, names, tmp_path / "run", *limits)
    bad = [event for event in events if event["event"] == "bad_clip"]
    assert NEVER_READ <= bad_names(bad) <= NEVER_READ | READ_IN_PART
    pipes = [event["reason"] for event in bad if event["path"].endswith("pipe.mp4")]
    assert pipes and all(reason.endswith("pipe.mp4: is a pipe or a device, expected a file") for reason in pipes)
    assert [event["bad_clips"] for event in events if event["event"] == "epoch"][0] >= len(NEVER_READ)
    failed = bad_names(results["failed"])
    assert NEVER_READ <= failed <= NEVER_READ | READ_IN_PART
    assert results["counts"]["failed"] == len(failed)
    assert results["counts"]["evaluated"] == len(names) - len(failed) >= len(good)


@pytest.mark.slow
@needs_clips
@pytest.mark.parametrize("backend", ["auto", "pyav", "decord"])
def test_training_and_evaluation_continue_past_real_videos_of_all_types(tmp_path: Path, backend: str) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in [*CLIPS.iterdir(), *(CLIPS / "made").iterdir()]:
        if path.suffix in (".mp4", ".avi", ".mov", ".mkv", ".webm"):
            shutil.copy(path, folder / path.name)
    names = sorted(path.name for path in folder.iterdir())
    events, results = train_and_evaluate(folder, names, tmp_path / "run", "DATA.DECODING_BACKEND", backend)
    never = {"audio_only.mp4", "trunc_head.mp4", "trunc100.mp4", "zero.mp4", "text.mp4", "random.mp4"}
    assert never <= bad_names([event for event in events if event["event"] == "bad_clip"])
    assert never <= bad_names(results["failed"])
    assert results["counts"]["evaluated"] + results["counts"]["failed"] == len(names)
    assert results["counts"]["evaluated"] >= (25 if backend == "decord" else 30)
