"""Every item gets one answer, whatever happens to its process; items are taken only as needed."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from videoattn.data.workers import worker_pool
from videoattn.data.workers.worker_pool import Failed, WorkerPool, map_with_timeout


def square(number: int) -> int:
    if number == 7:
        os._exit(3)
    if number == 11:
        time.sleep(60)
    if number == 13:
        raise ValueError("unlucky")
    return number * number


@pytest.mark.parametrize("num_workers", [1, 3])
def test_every_item_has_one_answer(num_workers: int) -> None:
    before = multiprocessing.active_children()
    answers = list(map_with_timeout(square, range(1, 20), num_workers=num_workers, limit_seconds=0.5))
    assert sorted(item for item, _ in answers) == list(range(1, 20))
    failed = {item: answer for item, answer in answers if isinstance(answer, Failed)}
    assert {item: answer.kind for item, answer in failed.items()} == {7: "crashes", 11: "hangs", 13: "raises"}
    assert failed[7].reason == "the process that read it ended: exit status 3"
    assert failed[13].reason.startswith("ValueError in test_worker_pool.py") and failed[13].reason.endswith(": unlucky")
    assert "in square" in failed[13].trace
    assert all(answer == item * item for item, answer in answers if item not in failed)
    assert set(multiprocessing.active_children()) <= set(before)


def test_items_are_taken_only_as_workers_become_free() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(100, 150):
            taken += 1
            yield number

    answers = map_with_timeout(square, items(), num_workers=2, limit_seconds=60)
    for number_of_answers, _ in enumerate(answers, start=1):
        assert taken <= number_of_answers + 2
    assert taken == 50


def test_an_answer_that_waited_for_its_reader_is_no_hang() -> None:
    answers = map_with_timeout(square, range(2, 6), num_workers=2, limit_seconds=0.4)
    for _, answer in answers:
        assert not isinstance(answer, Failed)
        time.sleep(0.5)


@pytest.mark.parametrize("number", [7, 11])
def test_tasks_behind_one_that_failed_are_done_by_another_process(number: int) -> None:
    with closing(WorkerPool(square, num_workers=1, limit_seconds=0.5)) as pool:
        for task in (1, 2, number, 3, 4):
            assert pool.submit(task)
        answers = [pool.next_answer() for _ in range(5)]
    assert [answer[0] for answer in answers if answer] == [1, 2, number, 3, 4]
    assert [answer[1] for answer in answers if answer and answer[0] != number] == [1, 4, 9, 16]


def test_pool_limits_its_tasks_and_returns_none_if_nothing_finishes() -> None:
    with closing(WorkerPool(square, num_workers=2, limit_seconds=0)) as pool:
        assert [pool.submit(11, most=2) for _ in range(5)] == [True] * 4 + [False]
        assert pool.num_open == 4 and pool.next_answer(patience=0.1) is None


def unable_to_start(number: int) -> int:
    raise AssertionError("is never called")


def test_processes_that_end_before_they_begin_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "ignore_signals", lambda: os._exit(5))
    with closing(WorkerPool(unable_to_start, num_workers=1, limit_seconds=0)) as pool:
        with pytest.raises(RuntimeError, match="end before they begin a task: .*exit status 5"):
            pool.next_answer()


def test_clock_can_be_started_anew() -> None:
    def slowly(number: int) -> int:
        for _ in range(4):
            time.sleep(0.2)
            worker_pool.start_clock(0.5)
        return number

    assert list(map_with_timeout(slowly, [1], num_workers=1, limit_seconds=0.5)) == [(1, 1)]


def test_leaving_early_ends_the_processes() -> None:
    before = multiprocessing.active_children()
    answers = map_with_timeout(square, [1, 11, 2], num_workers=3, limit_seconds=60)
    next(answers)
    answers.close()
    assert set(multiprocessing.active_children()) <= set(before)
