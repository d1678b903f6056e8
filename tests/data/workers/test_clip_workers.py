"""A video that hangs or crashes its worker counts as one that cannot be decoded; any other failure is an error."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.openers import Opening
from videoattn.data.augment.transforms import TestTransform, TrainTransform
from videoattn.data.clips.dataset import VideoDataset, ViewDataset
from videoattn.data.clips.plan import EvaluationPlan, TrainPlan
from videoattn.data.clips.sampling import ClipSampler
from videoattn.data.lists import VideoList, read_annotations
from videoattn.data.loader import Loader
from videoattn.data.readers.open_video import DecodeError, open_video
from videoattn.data.workers import clip_workers, worker_pool


def deadly(path: str, backend: str) -> Any:
    """Opens a video unless its name says that it hangs, kills its process or raises an unexpected error."""
    number = int(Path(path).stem.removeprefix("clip"))
    if number == 1:
        time.sleep(600)
    if number == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 6:
        os._exit(3)
    return open_video(path, backend)  # type: ignore[arg-type]


def listed(folder: Path) -> VideoList:
    return read_annotations("kinetics", str(folder), "train", separator=" ", prefix=str(folder), num_classes=3)


def train_loader(folder: Path, opener: Callable[..., Any], **options: Any) -> Loader:
    videos = listed(folder)
    transform = TrainTransform(crop_size=32, jitter_scales=(36, 44))
    decoding = Opening(opener=opener)
    dataset = VideoDataset(videos, ClipSampler("dense", 4, 2, 30.0, False), transform, seed=0, decoding=decoding)
    plan = TrainPlan(len(videos), 2, 1, 0, 2, seed=0)
    return Loader(dataset, plan, batch_size=2, **{"num_workers": 2, "limit_seconds": 1.0, **options})


REASONS = {1: "no answer within 1 s", 4: "killed by SIGKILL", 6: "exit status 3"}


def test_video_that_ends_its_worker_is_replaced_in_training(video_folder: Callable[..., Path]) -> None:
    folder = video_folder(10)
    with closing(train_loader(folder, deadly)) as loader:
        batches = list(loader.epoch(0))
        again = list(loader.epoch(1))
    for some in (batches, again):
        failures = {failure.index: failure for batch in some for failure in batch.failures}
        assert set(failures) == set(REASONS)
        for index, reason in REASONS.items():
            assert reason in failures[index].reason and failures[index].path.endswith(f"clip{index}.mp4")
        assert len(some) == 5 and all(batch.labels.shape == (2,) for batch in some)
    with closing(train_loader(video_folder(10, bad=tuple(REASONS)), open_video)) as loader:
        expected = list(loader.epoch(0))
    assert all(torch.equal(a.clips, b.clips) for a, b in zip(batches, expected, strict=True))


@pytest.mark.slow
def test_video_that_ends_its_worker_is_left_out_of_evaluation(video_folder: Callable[..., Path]) -> None:
    videos = listed(video_folder(10))
    transform = TestTransform(short_side=32, crop_size=32)
    decoding = Opening(opener=deadly)
    dataset = ViewDataset(videos, ClipSampler("dense", 4, 2, 30.0, False), transform, num_clips=2, decoding=decoding)
    plan = EvaluationPlan(len(videos), 1, 0, 1)
    with closing(Loader(dataset, plan, batch_size=1, num_workers=2, limit_seconds=1.0)) as loader:
        batches = list(loader.epoch(0))
    failures = {failure.index: failure.reason for batch in batches for failure in batch.failures}
    assert set(failures) == set(REASONS) and all(reason in failures[index] for index, reason in REASONS.items())
    assert [video for batch in batches for video in batch.videos.tolist()] == [
        index for index in range(10) if index not in REASONS for _ in range(2)
    ]


def test_video_that_hangs_is_retried_once_and_no_more(video_folder: Callable[..., Path], tmp_path: Path) -> None:
    log = tmp_path / "log"

    def noting(path: str, backend: str) -> Any:
        with open(log, "a") as lines:
            lines.write(Path(path).stem + "\n")
        return deadly(path, backend)

    with closing(train_loader(video_folder(4), noting, limit_seconds=0.3)) as loader:
        for number in range(4):
            batches = list(loader.epoch(number))
            assert [failure.index for batch in batches for failure in batch.failures].count(1) >= 1
    assert log.read_text().split().count("clip1") == 2


def test_unexpected_error_ends_the_run_and_names_the_video(video_folder: Callable[..., Path]) -> None:
    def flawed(path: str, backend: str) -> Any:
        raise ZeroDivisionError("no such luck")

    with closing(train_loader(video_folder(2), flawed)) as loader:
        with pytest.raises(RuntimeError, match=r"clip\d.mp4: ZeroDivisionError in test_clip_workers.py:\d+") as error:
            next(loader.epoch(0))
    assert "in flawed" in str(error.value)


SPAWNED = """
import multiprocessing
import sys

from videoattn.compat import import_torchvision

import_torchvision()  # a spawned worker imports this file first, and then the transforms
if __name__ == "__main__":
    from pathlib import Path
    from tests.data.test_loader import contents, epoch, settings

    multiprocessing.set_start_method("spawn")
    sys.platform = "a system that does not fork safely"
    runs = [contents(epoch(settings(Path({folder!r}), DATA_LOADER={{"NUM_WORKERS": n}}))) for n in (0, 2)]
    print(len(runs[0]), runs[0] == runs[1])
"""


@pytest.mark.slow
def test_workers_that_are_not_forked_give_the_same_clips(video_folder: Callable[..., Path], tmp_path: Path) -> None:
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED.format(folder=str(video_folder(6, bad=(2,)))))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout == "3 True\n", done.stderr


def test_loader_gives_up_if_a_worker_can_not_be_ended(
    video_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_workers, "start_clock", lambda limit: worker_pool.start_clock(0))  # a disk that is gone
    loader = train_loader(video_folder(2), lambda *_: time.sleep(600), limit_seconds=0.1, stall_seconds=1.0)
    with pytest.raises(DecodeError, match=r"no clip arrived for 1 s.*clip\d.mp4, .*clip\d.mp4"):
        next(loader.epoch(0))
    loader.close()
    assert multiprocessing.active_children() == []
