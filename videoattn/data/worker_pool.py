"""A function applied to many items in processes that may crash or hang, at the cost of one item each time."""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Literal, NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_LOOK_FOR_PARENT_SECONDS = 5.0
_WAIT_FOR_END_SECONDS = 2.0


class Lost(NamedTuple):
    """Why an item has no result: its process hung and was ended, or it ended by itself or with an error."""

    kind: Literal["hangs", "crashes"]
    reason: str


def map_surviving(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_workers: int, limit_seconds: float
) -> Generator[tuple[Item, Result | Lost]]:
    """Each item with `function(item)`, in the order in which they are done; items are taken one by one as needed.

    A process that works on one item for more than `limit_seconds` is killed and replaced, and so is one that ends;
    that item's result is `Lost`. Ctrl-C is left to the caller's process; leaving the iterator ends the processes.
    """
    queue = iter(items)
    idle: list[_Worker[Item, Result]] = [_Worker(function) for _ in range(num_workers)]
    busy: dict[Connection, _Worker[Item, Result]] = {}
    try:
        while True:
            while idle and (item := next(queue, None)) is not None:
                worker = idle.pop()
                worker.begin(item, limit_seconds)
                busy[worker.connection] = worker
            if not busy:
                return
            patience = max(0.0, min(worker.deadline for worker in busy.values()) - time.monotonic())
            ready = set(wait(list(busy), patience))
            for connection, worker in list(busy.items()):
                if connection not in ready and time.monotonic() < worker.deadline:
                    continue
                result: Result | Lost = Lost("hangs", f"no answer within {limit_seconds:g} s")
                if connection.poll():
                    result = worker.finish()
                del busy[connection]
                if not worker.is_usable:
                    worker.end()
                idle.append(worker if worker.is_usable else _Worker(function))
                yield worker.item, result
    finally:
        for worker in [*idle, *busy.values()]:
            worker.end()


class _Worker(Generic[Item, Result]):
    """A process that answers one item at a time."""

    item: Item
    deadline: float

    def __init__(self, function: Callable[[Item], Result]) -> None:
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(function, theirs, os.getpid()), daemon=True)
        self._process.start()
        theirs.close()
        self.is_usable = True

    def begin(self, item: Item, limit_seconds: float) -> None:
        self.item, self.deadline, self.is_usable = item, time.monotonic() + limit_seconds, False
        try:
            self.connection.send(item)
        except BrokenPipeError:
            pass  # it ended while idle; the end of the pipe is seen when its answer is asked for

    def finish(self) -> Result | Lost:
        """The answer that is ready, after which the process takes another item unless it has ended."""
        try:
            answer: Result | Lost = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            return Lost("crashes", f"the process that read it ended: {_ending(self._process.exitcode)}")
        self.is_usable = True
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.join(_WAIT_FOR_END_SECONDS)  # one that waits for a dead disk can't be ended
        self.connection.close()


def _serve(function: Callable[[Any], Any], connection: Connection, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process hears it too, and ends this one
    while os.getppid() == parent:
        if not connection.poll(_LOOK_FOR_PARENT_SECONDS):
            continue
        item = connection.recv()
        try:
            answer = function(item)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{os.path.basename(last.filename)}:{last.lineno}"
            answer = Lost("crashes", f"{type(error).__name__} in {place}: {error}")
        connection.send(answer)


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit status {code}"
    return f"killed by {signal.Signals(-code).name}"
