"""One training run at a time writes to a folder."""

import os
import signal
from pathlib import Path

import pytest

from videoattn.engine.run_folder import lock_run_folder


def test_a_folder_is_held_by_one_run_until_it_ends(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with lock_run_folder(folder):
        with pytest.raises(ValueError, match=f"another training run is writing to OUTPUT_DIR {folder}; set another"):
            with lock_run_folder(folder, wait_seconds=0):
                pass
        with lock_run_folder(tmp_path / "other", wait_seconds=0):
            pass
    with lock_run_folder(folder, wait_seconds=0):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with lock_run_folder(tmp_path, wait_seconds=0):
            os.write(write, b"held")
            signal.pause()
    assert os.read(read, 4) == b"held"
    with pytest.raises(ValueError, match="another training run"), lock_run_folder(tmp_path, wait_seconds=0):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with lock_run_folder(tmp_path):
        pass


def test_an_output_dir_that_is_a_file_or_below_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"OUTPUT_DIR .*/file is a file, expected a folder"):
        with lock_run_folder(tmp_path / "file"):
            pass
    with pytest.raises(OSError, match=r"OUTPUT_DIR .*/file/run can't be written to: Not a directory"):
        with lock_run_folder(tmp_path / "file" / "run"):
            pass


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder that nobody can write to")
def test_an_output_dir_that_cannot_be_written_to_is_named() -> None:
    with pytest.raises(OSError, match=r"OUTPUT_DIR /sys/kernel/run can't be written to: \w"):
        with lock_run_folder(Path("/sys/kernel/run")):
            pass
