"""The log of a run: readable lines, one JSON line per event, a progress bar, and TensorBoard scalars if asked."""

import errno
import importlib.metadata
import json
import logging
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger("videoattn")

_PACKAGES = ("videoattn", "torch", "torchvision", "triton", "timm", "decord", "av", "numpy", "pydantic")


def package_versions() -> dict[str, str]:
    """Return installed versions of packages that a result can depend on, importing none; torch with its build."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    versions["torch"] = str(torch.__version__)  # e.g. 2.6.0+cu124, where the package may be called 2.6.0
    return versions


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, threads and accelerators, as far as known without extra programs."""
    cuda = torch.cuda.is_available()
    return {
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "system": platform.platform(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
    }


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def set_up_logging(folder: Path | None) -> None:
    """Send the package's messages to standard output, and to `folder`/run.log where one is given."""
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [_BarFriendlyHandler(sys.stdout)]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(folder / "run.log", encoding="utf-8", errors="backslashreplace"))
    for handler in handlers:
        handler.setFormatter(_Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        logger.addHandler(handler)


def log_to_file(text: str, *, trace: bool = False) -> None:
    """Write a line to the run.log that `set_up_logging` opened, if any, but not to standard output.

    `trace` adds the traceback of the exception that is being handled.
    """
    information = sys.exc_info() if trace else None
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, text, (), information)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def close_log_file() -> None:
    """Close the run.log that `set_up_logging` opened, if any."""
    for handler in list(logger.handlers):
        if isinstance(handler, logging.FileHandler):
            logger.removeHandler(handler)
            handler.close()


class _Formatter(logging.Formatter):
    """Begins the text of a warning with WARNING."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is the library's
        if record.levelno == logging.WARNING:
            record.message = f"WARNING: {record.message}"
        return super().formatMessage(record)


class _BarFriendlyHandler(logging.StreamHandler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class RunLog:
    """Events of a run: JSON lines in `folder`/log.jsonl, scalars for TensorBoard if asked; no folder, no events.

    The lines are strict JSON, which has no infinity and no NaN: such a number is null, and the field "non_finite" of
    the line has its name and text, as {"grad_norm": "inf"}.
    """

    def __init__(self, folder: Path | None, tensorboard: bool = False) -> None:
        self._file = None
        self._writer = None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "log.jsonl"
        self._file = open(self._path, "ab", buffering=0)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, event: str, step: int | None = None, **values: Any) -> None:
        """Write one line; numbers also go to TensorBoard under `event`/name at `step`.

        Raises OSError naming the file where it can't be written.
        """
        if self._file is not None:
            head = {"event": event, "time": round(time.time(), 3)} | ({} if step is None else {"step": step})
            line = _strict_json(head | values).encode() + b"\n"
            try:
                if self._file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                raise OSError(error.errno, f"can't write {self._path}: {error.strerror or error}") from error
        if self._writer is not None and step is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(f"{event}/{name}", value, step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()


def _strict_json(values: dict[str, Any]) -> str:
    odd: dict[str, str] = {}

    def finite(value: Any, name: str) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            odd[name] = str(value)
            return None
        if isinstance(value, dict):
            return {key: finite(inner, f"{name}.{key}" if name else str(key)) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [finite(inner, f"{name}.{number}") for number, inner in enumerate(value)]
        return value

    values = finite(values, "")
    return json.dumps(values | ({"non_finite": odd} if odd else {}), allow_nan=False)


@contextmanager
def progress_bar(total: int, initial: int, description: str, show: bool) -> Iterator[Any]:
    """Return a tqdm bar on standard error if that is a terminal and `show` is true, else one that prints nothing."""
    from tqdm import tqdm

    with tqdm(
        total=total, initial=initial, desc=description, disable=not (show and sys.stderr.isatty()), dynamic_ncols=True
    ) as bar:
        yield bar


class Stopwatch:
    """Shares of wall time: how long was waited for data, and how many clips passed per second since the last lap."""

    def __init__(self) -> None:
        self.start = self.lap_start = time.perf_counter()
        self.waited = 0.0
        self.clips = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def lap(self) -> dict[str, float]:
        """Clips per second and the share of time spent waiting since the last lap; begins a new one."""
        now = time.perf_counter()
        seconds = max(now - self.lap_start, 1e-9)
        result = {"clips_per_second": round(self.clips / seconds, 2), "data_wait": round(self.waited / seconds, 3)}
        self.lap_start, self.waited, self.clips = now, 0.0, 0
        return result
