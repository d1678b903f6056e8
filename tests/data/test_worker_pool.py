"""Every item gets one answer, whatever happens to the process that works on it; items are taken as they are needed."""

import multiprocessing
import os
import time
from collections.abc import Iterator

import pytest

from videoattn.data.worker_pool import Lost, map_surviving


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
    answers = list(map_surviving(square, range(1, 20), num_workers=num_workers, limit_seconds=0.5))
    assert sorted(item for item, _ in answers) == list(range(1, 20))
    lost = {item: answer for item, answer in answers if isinstance(answer, Lost)}
    assert {item: answer.kind for item, answer in lost.items()} == {7: "crashes", 11: "hangs", 13: "crashes"}
    assert lost[7].reason == "the process that read it ended: exit status 3"
    assert lost[13].reason.startswith("ValueError in test_worker_pool.py") and lost[13].reason.endswith(": unlucky")
    assert all(answer == item * item for item, answer in answers if item not in lost)
    assert set(multiprocessing.active_children()) <= set(before)


def test_no_more_items_are_taken_than_there_are_workers_and_answers() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(100, 150):
            taken += 1
            yield number

    answers = map_surviving(square, items(), num_workers=2, limit_seconds=60)
    for number_of_answers, _ in enumerate(answers, start=1):
        assert taken <= number_of_answers + 2
    assert taken == 50


def test_an_answer_that_waited_for_its_reader_is_no_hang() -> None:
    answers = map_surviving(square, range(2, 6), num_workers=2, limit_seconds=0.4)
    for _, answer in answers:
        assert not isinstance(answer, Lost)
        time.sleep(0.5)


def test_leaving_early_ends_the_processes() -> None:
    before = multiprocessing.active_children()
    answers = map_surviving(square, [1, 11, 2], num_workers=3, limit_seconds=60)
    next(answers)
    answers.close()
    assert set(multiprocessing.active_children()) <= set(before)
