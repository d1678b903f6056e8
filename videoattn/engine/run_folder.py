"""The folder of a run, which one training run at a time writes to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_LOCK = ".train.lock"
_WAIT_SECONDS = 3.0  # the processes of a run that was just killed may still be ending


@contextmanager
def lock_run_folder(folder: Path, wait_seconds: float = _WAIT_SECONDS) -> Iterator[None]:
    """Make `folder` where it is missing, and keep other training runs out of it inside the block.

    The lock is the system's, which releases it however the process ends; an empty file stays. Raises OSError where the
    folder can't be written to, and ValueError where another run writes to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK)
        lock.acquire(timeout=wait_seconds)
    except Timeout:
        raise ValueError(
            f"another training run is writing to OUTPUT_DIR {folder}; set another OUTPUT_DIR, or wait for its end"
        ) from None
    except FileExistsError:
        raise OSError(f"OUTPUT_DIR {folder} is a file, expected a folder") from None
    except OSError as error:
        raise OSError(f"OUTPUT_DIR {folder} can't be written to: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()
