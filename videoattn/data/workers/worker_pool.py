"""A pool of processes that apply a function to tasks; a crash or a hang costs one task.

Each process gets tasks through a pipe of its own and works through them in order, so that a process that ends holds no
lock, and it is known which task ended it. A process that hangs is ended by an alarm that it has set itself: the system
delivers it whatever the process does, also in a decoder that never releases the interpreter, and when the main process
is gone. Only a process that the system has stopped (SIGSTOP) does not receive it: the main process kills it a little
later.
"""

import math
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from videoattn.data.workers.signals import ignore_signals, signals_held

Task = TypeVar("Task")
Result = TypeVar("Result")
_LOOK_FOR_PARENT_SECONDS = 5.0
_WAIT_FOR_END_SECONDS = 2.0
_MAX_QUEUE = 64  # tasks of a process; what is sent and not read yet has to fit into a pipe
_MAX_IDLE_ENDS = 3
_MARGIN_SECONDS = 1.0  # after which the alarm should have ended a process that hangs
_START_SECONDS = 60.0
_STARTING, _WAITING = -1.0, 0.0  # in the place of a deadline


class Failed(NamedTuple):
    """The reason why a task has no result: its process hung and was ended, or crashed, or the function raised.

    `trace` is that error's traceback.
    """

    kind: Literal["hangs", "crashes", "raises"]
    reason: str
    trace: str = ""


class WorkerPool(Generic[Task, Result]):
    """A pool of processes that each work through tasks; one that hangs or ends is replaced.

    A task may take at most `limit_seconds` (0: no limit); the function may restart the clock with `start_clock`.
    Processes are forked where the system forks safely (Linux), use one torch thread each, and leave Ctrl-C to the
    caller's process.
    """

    def __init__(self, function: Callable[[Task], Result], num_workers: int, limit_seconds: float) -> None:
        self._function, self._limit = function, limit_seconds
        self._workers: list[_Worker[Task]] = []
        self._num_idle_ends = 0
        for _ in range(num_workers):
            self._workers.append(self._start())

    @property
    def num_open(self) -> int:
        """Number of tasks without an answer."""
        return sum(len(worker.tasks) for worker in self._workers)

    def submit(self, task: Task, most: int = _MAX_QUEUE) -> bool:
        """Give a task to the process that has the fewest, or return False if each of them has `most`."""
        worker = min(self._workers, key=lambda worker: len(worker.tasks))
        if len(worker.tasks) >= most:
            return False
        worker.send(task)
        return True

    def next_answer(self, patience: float | None = None) -> tuple[Task, Result | Failed] | None:
        """Return the next answer that arrives, or None if there is none within `patience` seconds.

        Raises RuntimeError if processes end one after the other before they begin a task.
        """
        deadline = None if patience is None else time.monotonic() + patience
        while True:
            due = min(worker.end_if_overdue(self._limit) for worker in self._workers)
            left = min(due, math.inf if deadline is None else deadline) - time.monotonic()
            ready = wait([worker.connection for worker in self._workers], None if left == math.inf else max(0.0, left))
            if not ready:
                if deadline is not None and time.monotonic() >= deadline:
                    return None
                continue
            worker = next(worker for worker in self._workers if worker.connection is ready[0])
            try:
                answer: Result | Failed = worker.connection.recv()
            except (EOFError, OSError):
                failed = worker.ending(self._limit)
                tasks = self._replace(worker)
                if tasks:
                    return tasks.popleft(), failed
                if not worker.has_started:
                    self._count_idle_end(failed)
                continue
            self._num_idle_ends = 0
            return worker.answered(), answer

    def close(self) -> None:
        """End all processes; more than once is fine."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def _start(self) -> "_Worker[Task]":
        return _Worker(self._function, self._limit)

    def _replace(self, worker: "_Worker[Task]") -> deque[Task]:
        """Replace a process that has ended, and return its tasks; all but the first are sent to the new process."""
        worker.end()
        new = self._start()
        self._workers[self._workers.index(worker)] = new
        for task in list(worker.tasks)[1:]:
            new.send(task)
        return worker.tasks

    def _count_idle_end(self, failed: Failed) -> None:
        self._num_idle_ends += 1
        if self._num_idle_ends > _MAX_IDLE_ENDS:
            raise RuntimeError(f"worker processes end before they begin a task: {failed.reason}")


def map_with_timeout(
    function: Callable[[Task], Result], items: Iterable[Task], *, num_workers: int, limit_seconds: float
) -> Generator[tuple[Task, Result | Failed]]:
    """Yield each item with `function(item)`, in the order in which they finish; items are taken one by one as needed.

    An item that hangs (takes more than `limit_seconds`) or crashes its process is retried once, since the system may
    have ended the process for other reasons. If it does so again, or the function raises an error, the result is
    `Failed`. Leaving the iterator ends the processes.
    """
    queue = iter(items)
    retried: list[Task] = []
    with closing(WorkerPool(function, num_workers, limit_seconds)) as pool:
        while True:
            while pool.num_open < num_workers and (item := next(queue, None)) is not None:
                pool.submit(item)
            if not pool.num_open:
                return
            answer = pool.next_answer()
            assert answer is not None
            task, result = answer
            was_retried = any(task is other for other in retried)
            if isinstance(result, Failed) and result.kind != "raises" and not was_retried:
                retried.append(task)
                pool.submit(task)
                continue
            if was_retried:
                retried = [other for other in retried if other is not task]
            yield answer


def start_clock(limit_seconds: float) -> None:
    """Restart the time limit of a worker's task at so many seconds, to be called in the worker; 0 is no limit."""
    signal.setitimer(signal.ITIMER_REAL, limit_seconds)
    _note_deadline(time.monotonic() + limit_seconds if limit_seconds else math.inf)


_deadline: Any = None  # in a worker: when its work is to be done, in memory that it shares with the pool's process


def _note_deadline(deadline: float) -> None:
    if _deadline is not None:
        _deadline.value = deadline


class _Worker(Generic[Task]):
    """A process with the tasks that it has not answered yet, oldest first."""

    def __init__(self, function: Callable[[Task], Any], limit_seconds: float) -> None:
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        self.tasks: deque[Task] = deque()
        self.connection, theirs = context.Pipe()
        self._deadline = context.RawValue("d", _STARTING)
        self._since = time.monotonic()  # the oldest task could be begun
        self._is_overdue = False
        arguments = (function, theirs, os.getpid(), limit_seconds, self._deadline)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        with signals_held():
            self._process.start()
        theirs.close()

    @property
    def has_started(self) -> bool:
        """Return True if the process has been ready for tasks."""
        return bool(self._deadline.value != _STARTING)

    def send(self, task: Task) -> None:
        if not self.tasks:
            self._since = time.monotonic()
        self.tasks.append(task)
        try:
            self.connection.send(task)
        except OSError:
            pass  # it has ended, which is seen when its answer is asked for

    def answered(self) -> Task:
        """Remove and return the oldest task, whose answer has arrived."""
        self._since = time.monotonic()
        return self.tasks.popleft()

    def end_if_overdue(self, limit_seconds: float) -> float:
        """Kill a process that exceeds its time limit, and return the time of the next look, which may be infinite.

        Its end is then seen by its connection, unless it can't be killed.
        """
        if not self.tasks or self._is_overdue:
            return math.inf
        deadline: float = self._deadline.value
        if deadline in (_STARTING, _WAITING):  # it has not begun the task
            allowed = max(limit_seconds, _START_SECONDS if deadline == _STARTING else 0)
            deadline = self._since + allowed if limit_seconds else math.inf
        if time.monotonic() < deadline + _MARGIN_SECONDS or self.connection.poll():
            return deadline + _MARGIN_SECONDS
        self._is_overdue = True
        self._process.kill()
        return math.inf

    def ending(self, limit_seconds: float) -> Failed:
        """Return the reason for which the process has ended."""
        self._process.join(_WAIT_FOR_END_SECONDS)
        code = self._process.exitcode
        if code == -signal.SIGALRM or self._is_overdue:
            return Failed("hangs", f"no answer within {limit_seconds:g} s")
        end = f"exit status {code}" if code is None or code >= 0 else f"killed by {signal.Signals(-code).name}"
        return Failed("crashes", f"the process that read it ended: {end}")

    def end(self) -> None:
        self._process.kill()
        self._process.join(_WAIT_FOR_END_SECONDS)  # one that waits for a dead disk can't be ended
        self.connection.close()


def _serve(
    function: Callable[[Any], Any], connection: Connection, parent: int, limit_seconds: float, deadline: Any
) -> None:
    import torch

    global _deadline
    _deadline = deadline
    ignore_signals()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    torch.set_num_threads(1)  # there are as many processes as cores; and OpenMP's threads do not survive a fork
    _note_deadline(_WAITING)
    while os.getppid() == parent:
        if not connection.poll(_LOOK_FOR_PARENT_SECONDS):
            continue
        try:
            task = connection.recv()
        except (EOFError, ConnectionError):
            return
        start_clock(limit_seconds)
        try:
            answer = function(task)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{os.path.basename(last.filename)}:{last.lineno}"
            answer = Failed("raises", f"{type(error).__name__} in {place}: {error}", traceback.format_exc())
        start_clock(0)
        _note_deadline(_WAITING)
        connection.send(answer)
