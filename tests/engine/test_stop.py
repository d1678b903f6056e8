"""Signals that ask a run to stop."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.engine.test_train import Clips, run
from videoattn.engine import train as train_module
from videoattn.engine.checkpoint.files import list_checkpoints
from videoattn.engine.train import Interrupted


class UsualEffect(Exception):  # noqa: N818
    """Stands for the end that a signal has where nobody notes it."""


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def number(request: pytest.FixtureRequest) -> Any:
    def usual(*_: object) -> None:
        raise UsualEffect

    previous = signal.signal(request.param, usual)
    yield request.param
    signal.signal(request.param, previous)


def test_a_second_signal_within_a_second_is_the_same_request_and_the_run_saves(tmp_path: Path, number: int) -> None:
    def twice(epoch: int, batch: int) -> None:
        if batch == 2:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match="epoch 1 after step 3 of 6"):
        run(tmp_path, loader=Clips(on_batch=twice))
    assert [(c.epoch, c.step) for c in list_checkpoints(tmp_path / "checkpoints")] == [(0, 3)]


def test_a_signal_more_than_a_second_later_has_its_usual_effect_at_once(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from videoattn.engine import stop

    monkeypatch.setattr(stop, "_ONE_REQUEST_SECONDS", -1.0)
    assert train_module.StopRequest is stop.StopRequest

    def twice(epoch: int, batch: int) -> None:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)

    with pytest.raises(UsualEffect):
        run(tmp_path, loader=Clips(on_batch=twice))
    with pytest.raises(UsualEffect):
        os.kill(os.getpid(), number)
