"""Workers that the system kills or stops change nothing: their clips are retried, and the run is the same bitwise."""

import json
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.openers import Opening
from tests.data.test_bad_files_in_runs import SMALL_RUN
from tests.data.test_loader import contents, settings
from videoattn.cli import train as train_net
from videoattn.data import build as loader_module
from videoattn.data import build_loader
from videoattn.data.clips.batch import Failure
from videoattn.data.readers.open_video import open_video
from videoattn.data.workers import worker_pool
from videoattn.data.workers.worker_pool import Failed, WorkerPool, map_with_timeout
from videoattn.engine.checkpoint.files import list_checkpoints, load_checkpoint


class Deadly:
    """Opens videos; the first `times` that each is opened by a worker, that one gets a signal."""

    def __init__(self, folder: Path, number: signal.Signals, times: int = 1, only: str = "") -> None:
        self._folder, self._number, self._times, self._only = folder, number, times, only
        self._main = os.getpid()
        folder.mkdir()

    def __call__(self, path: str, backend: Any = "auto", **options: Any) -> Any:
        for attempt in range(self._times if os.getpid() != self._main and path.endswith(self._only) else 0):
            mark = self._folder / f"{Path(path).name}_{attempt}"
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), self._number)
        return open_video(path, backend, **options)

    @property
    def num_signals(self) -> int:
        return len(list(self._folder.iterdir()))


@pytest.fixture(autouse=True)
def short_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_MARGIN_SECONDS", 0.1, raising=False)


def batches(folder: Path, opener: Any, split: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[Any]:
    cfg = settings(folder, DATA_LOADER={"NUM_WORKERS": 2, "LIMIT_SECONDS": 1, **options})
    with monkeypatch.context() as patch:
        patch.setattr(loader_module, "decode_options", lambda cfg, opener=opener: Opening(opener=opener))
        loader = build_loader(cfg, split)
    if loader._workers is not None:
        loader._workers._stall = 8.0  # so that the test ends where a worker is not replaced
    with closing(loader):
        return contents([batch for number in range(2) for batch in loader.epoch(number)])


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
@pytest.mark.parametrize("split", ["train", "test"])
def test_clips_are_those_of_a_run_whose_workers_were_left_alone(
    video_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, number: Any
) -> None:
    folder = video_folder(4)
    deadly = Deadly(tmp_path / "marks", number)
    disturbed = batches(folder, deadly, split, monkeypatch)
    assert deadly.num_signals == 4
    assert disturbed == batches(folder, open_video, split, monkeypatch)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGKILL, "killed by SIGKILL"), (signal.SIGSTOP, "no answer within 1 s")]
)
def test_a_clip_that_ends_its_worker_twice_is_bad(
    video_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: Any, reason: str
) -> None:
    folder = video_folder(4)
    deadly = Deadly(tmp_path / "marks", number, times=9, only="clip2.mp4")
    disturbed = batches(folder, deadly, "train", monkeypatch)
    failures = [failure for _, some, _, _ in disturbed for failure in some]
    assert deadly.num_signals == 2 and {failure.index for failure in failures} == {2}
    for failure in failures:
        assert failure.path == str(folder / "clip2.mp4") and failure.reason.endswith(reason)
        assert pickle.loads(pickle.dumps(failure)) == failure and isinstance(failure, Failure)
        json.dumps(failure._asdict())


def test_a_success_resets_the_count_of_failures(
    video_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = video_folder(4)
    times = iter(range(100))

    class Again(Deadly):
        """Kills its worker the first time in each of two epochs."""

        def __call__(self, path: str, backend: Any = "auto", **options: Any) -> Any:
            opened = tmp_path / f"opened_{next(times)}_{os.getpid()}_{Path(path).stem}"
            opened.touch()
            if path.endswith("clip2.mp4") and len(list(tmp_path.glob("opened_*_clip2"))) in (1, 3):
                os.kill(os.getpid(), signal.SIGKILL)
            return open_video(path, backend, **options)

    disturbed = batches(folder, Again(tmp_path / "marks", signal.SIGKILL), "train", monkeypatch)
    assert disturbed == batches(folder, open_video, "train", monkeypatch)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_weights_are_those_of_a_run_whose_workers_were_left_alone(
    video_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: Any
) -> None:
    folder = video_folder(4)
    limits = ["DATA.PATH_TO_DATA_DIR", str(folder), "MODEL.NUM_CLASSES", "3", "DATA_LOADER.LIMIT_SECONDS", "1"]
    weights = []
    for name in ("alone", "disturbed"):
        opener = Deadly(tmp_path / f"{name}_marks", number, times=name == "disturbed")
        with monkeypatch.context() as patch:
            patch.setattr(loader_module, "decode_options", lambda cfg, opener=opener: Opening(opener=opener))
            train_net.main([*SMALL_RUN, *limits, "OUTPUT_DIR", str(tmp_path / name)])
        assert opener.num_signals == (4 if name == "disturbed" else 0)
        events = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        assert not [event for event in events if event["event"] == "bad_clip"]
        weights.append(load_checkpoint(list_checkpoints(tmp_path / name / "checkpoints")[-1].path)["model_state"])
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())


def stopping(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGSTOP)
    return number


def test_a_process_that_stands_still_is_replaced_when_its_time_is_up() -> None:
    with closing(WorkerPool(stopping, num_workers=1, limit_seconds=0.3)) as pool:
        for task in (1, 3, 4):
            pool.submit(task)
        answers = [pool.next_answer(patience=20) for _ in range(3)]
    assert answers == [(1, 1), (3, Failed("hangs", "no answer within 0.3 s")), (4, 4)]


def test_a_process_that_is_stopped_before_it_begins_is_replaced() -> None:
    with closing(WorkerPool(stopping, num_workers=1, limit_seconds=0.3)) as pool:
        pool.submit(1)
        assert pool.next_answer(patience=20) == (1, 1)
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGSTOP)
        pool.submit(2)
        assert pool.next_answer(patience=20) == (2, Failed("hangs", "no answer within 0.3 s"))


def test_idle_processes_may_be_killed_any_number_of_times() -> None:
    with closing(WorkerPool(stopping, num_workers=5, limit_seconds=10)) as pool:
        for task in range(10, 20):
            assert pool.submit(task)
        assert sorted(str(pool.next_answer(patience=20)) for _ in range(10)) == [f"({n}, {n})" for n in range(10, 20)]
        killed = multiprocessing.active_children()
        for process in killed:
            process.kill()
            process.join()
        assert pool.next_answer(patience=0.1) is None
        assert len(killed) == 5 and not set(killed) & set(multiprocessing.active_children())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_item_whose_process_is_ended_once_has_its_answer(tmp_path: Path, number: Any) -> None:
    def fragile(item: int) -> int:
        if item % 2 and not (tmp_path / str(item)).exists():
            (tmp_path / str(item)).touch()
            os.kill(os.getpid(), number)
        return item

    answers = list(map_with_timeout(fragile, range(6), num_workers=2, limit_seconds=0.3))
    assert sorted(answers) == [(item, item) for item in range(6)]
