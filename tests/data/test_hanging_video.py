"""A file that never answers, a pipe to which nobody writes, costs a run one clip."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

SMALL_RUN = [
    "MODEL.MODEL_NAME", "timesformer_tiny", "TIMESFORMER.PATCH_SIZE", "16", "TIMESFORMER.DEPTH", "1",
    "MODEL.NUM_CLASSES", "3", "DATA.NUM_FRAMES", "4", "DATA.SAMPLING_RATE", "2", "DATA.TRAIN_JITTER_SCALES", "[36, 44]",
    "DATA.TRAIN_CROP_SIZE", "32", "DATA.TEST_CROP_SIZE", "32", "TEST.NUM_ENSEMBLE_VIEWS", "2", "TRAIN.BATCH_SIZE", "2",
    "SOLVER.MAX_EPOCH", "2", "DATA.MAX_BAD_FRACTION", "0.5", "DATA_LOADER.NUM_WORKERS", "2",
    "DATA_LOADER.LIMIT_SECONDS", "1", "DEVICE", "cpu",
]  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_training_and_evaluation_survive_a_file_that_hangs(video_folder: Callable[..., Path], tmp_path: Path) -> None:
    import test_net
    import train_net

    folder = video_folder(6)
    (folder / "clip1.mp4").unlink()
    os.mkfifo(folder / "clip1.mp4")
    run = tmp_path / "run"
    settings = [*SMALL_RUN, "DATA.PATH_TO_DATA_DIR", str(folder), "OUTPUT_DIR", str(run)]
    train_net.main(settings)
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    bad = [event for event in events if event["event"] == "bad_clip"]
    assert {Path(event["path"]).name for event in bad} == {"clip1.mp4"}
    assert all(event["reason"].endswith("clip1.mp4: no answer within 1 s") for event in bad)
    assert [event["bad_clips"] for event in events if event["event"] == "epoch"] == [1, 1]

    test_net.main(settings)
    results = json.loads((run / "test/results.json").read_text())
    assert results["counts"]["evaluated"] == 5 and results["counts"]["failed"] == 1
    assert [Path(failure["path"]).name for failure in results["failed"]] == ["clip1.mp4"]
