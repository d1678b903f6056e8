import errno
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from videoattn.files import atomic_write, check_archive, describe_content


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_no_temporary_one(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)) as raised, atomic_write(path) as temporary:
        temporary.write_text("ha")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]
    if isinstance(error, OSError):
        assert raised.value.errno == errno.ENOSPC
        assert f"can't write {path}: No space left" in str(raised.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"), atomic_write(tmp_path / "nowhere" / "a.txt"):
        pass


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="^mine$"), atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("")
        raise RuntimeError("mine")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="the size of files can't be limited here")
def test_torch_running_out_of_space_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pyth"
    torch.save({"old": torch.ones(1)}, path)
    program = (
        "import resource, signal, sys, torch\n"
        "from videoattn.files import atomic_write\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    with atomic_write(sys.argv[1]) as temporary:\n"
        "        torch.save({'new': torch.zeros(100_000)}, temporary)\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert f"can't write {path}" in run.stdout, run.stderr
    assert list(torch.load(path)) == ["old"]
    assert os.listdir(tmp_path) == ["a.pyth"]


def test_every_flipped_bit_of_a_tensor_is_found(tmp_path: Path) -> None:
    path = tmp_path / "weights.pyth"
    torch.save({"weight": torch.arange(4096.0)}, path)
    check_archive(path)
    content = bytearray(path.read_bytes())
    start = content.find(torch.arange(64.0).numpy().tobytes())
    content[start + 1000] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pyth is damaged: the checksum \(CRC-32\) of data/0 in it"):
        check_archive(path)


def test_an_archive_that_is_cut_short_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pyth"
    torch.save({"weight": torch.arange(4096.0)}, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"weights\.pyth is damaged or cut short"):
        check_archive(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_two_members_of_a_name_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pyth"
    with zipfile.ZipFile(path, "w") as archive:
        for content in ("first", "second"):
            archive.writestr("weights/data.pkl", content)
    with pytest.raises(ValueError, match=r"weights\.pyth is damaged .*it holds weights/data\.pkl twice"):
        check_archive(path)


def test_writers_of_one_file_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.txt") as first, atomic_write(tmp_path / "a.txt") as second:
        first.write_text("first")
        second.write_text("second")
    assert first != second and (tmp_path / "a.txt").read_text() == "first"


@pytest.mark.parametrize(
    ("content", "look"),
    [  # the look is a regular expression, but for question marks
        (b"", "empty"),
        (b"<!DOCTYPE html>\n<html>", "an HTML page"),
        (b"\xef\xbb\xbf \r\n<HTML lang=en>", "an HTML page"),
        (b"<?xml version='1.0'?>\n<!DOCTYPE html><html>", "an HTML page"),
        (b"<?xml version='1.0'?><Error>", "an XML document that begins with \"<?xml version='1.0'?><Error>\""),
        (b'{"error": "gone"}', """JSON that begins with '{"error": "gone"}'"""),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a Git LFS pointer; `git lfs pull` fetches .*"),
        (b"\x1f\x8b\x08\x00", "compressed with gzip; unpack it first"),
        (b"a/".ljust(257, b"\0") + b"ustar", "a tar archive; unpack it first"),
        (b"\0" * 100, "empty space, all zeros at its start"),
        (b"Access denied\n", "text that begins with 'Access denied'"),
        (b"\x80\x04\x95", "a pickle"),
    ],
)
def test_the_beginning_of_a_file_tells_what_it_is(tmp_path: Path, content: bytes, look: str) -> None:
    (tmp_path / "a").write_bytes(content)
    assert re.fullmatch(look.replace("?", r"\?"), describe_content(tmp_path / "a") or "")


def test_the_beginning_of_random_bytes_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes([200, 7, 99, 1]) * 100)
    assert describe_content(tmp_path / "a") is None
