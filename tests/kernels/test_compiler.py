"""Building kernels: once per machine, without harm where it can't be done."""

import _ctypes
import ctypes
import logging
import os
import re
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from videoattn.files import atomic_write
from videoattn.grid import TokenGrid
from videoattn.kernels.cpu import compiler
from videoattn.operators import AttentionSite, FibonacciAttention, FocusedLinearAttention

needs_compiler = pytest.mark.skipif(compiler.find_compiler() is None, reason="no C++ compiler on this machine")
SOURCE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("VIDEOATTN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE)
    return path


def libraries(source: Path) -> list[Path]:
    return sorted((source.parent / "cache/kernels").glob("*.so"))


@pytest.fixture
def loading_anew(monkeypatch) -> Iterator[None]:
    """Forget which libraries this process has, before and after."""
    monkeypatch.delenv("VIDEOATTN_COMPILED", raising=False)
    compiler.load_library.cache_clear()
    compiler._warn_once.cache_clear()
    yield
    compiler.load_library.cache_clear()
    compiler._warn_once.cache_clear()


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@needs_compiler
def test_a_library_is_built_once_and_found_again(source, monkeypatch):
    command = compiler.find_compiler()
    assert compiler._load(source, command).answer() == 42
    (library,) = libraries(source)
    monkeypatch.setattr(compiler, "_compile", None)
    assert compiler._load(source, command).answer() == 42
    assert [library] == libraries(source)


@needs_compiler
def test_another_source_or_header_is_another_library(source):
    command = compiler.find_compiler()
    compiler._load(source, command)
    source.write_text(SOURCE.replace("42", "43"))
    assert compiler._load(source, command).answer() == 43
    (source.parent / "more.h").write_text("// nothing\n")
    compiler._load(source, command)
    assert len(libraries(source)) == 3


@needs_compiler
def test_a_compiler_without_openmp_still_serves(source, caplog):
    real = " ".join(compiler.find_compiler())
    plain = script(source.parent / "plain", f'case "$*" in *-fopenmp*) exit 1;; esac; exec {real} "$@"')
    with caplog.at_level(logging.WARNING):
        assert compiler._load(source, [plain]).answer() == 42
    assert "OpenMP" in caplog.text


@pytest.mark.parametrize("text", ["echo no such luck >&2; exit 1", "exit 0"], ids=["fails", "writes nothing"])
def test_a_broken_compiler_is_reported_once_and_leaves_nothing(source, monkeypatch, caplog, text):
    monkeypatch.delenv("VIDEOATTN_COMPILED", raising=False)
    monkeypatch.setenv("CXX", script(source.parent / "broken", text))
    compiler.load_library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert compiler.load_library("offset_attention") is None
            assert compiler.load_library("offset_attention") is None
    finally:
        compiler.load_library.cache_clear()
    assert len(caplog.records) == 1 and "slower form" in caplog.text
    assert [path.suffix for path in (source.parent / "cache/kernels").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_is_reported(source, monkeypatch, caplog):
    (source.parent / "cache").write_text("a file, no folder")
    compiler.load_library.cache_clear()
    monkeypatch.delenv("VIDEOATTN_COMPILED", raising=False)
    monkeypatch.setenv("CXX", script(source.parent / "unused", "exit 0"))
    try:
        with caplog.at_level(logging.WARNING):
            assert compiler.load_library("offset_attention") is None
    finally:
        compiler.load_library.cache_clear()
    assert "cache" in caplog.text


def test_the_environment_turns_kernels_off(monkeypatch):
    monkeypatch.setenv("VIDEOATTN_COMPILED", "0")
    compiler.load_library.cache_clear()
    try:
        assert compiler.load_library("offset_attention") is None
    finally:
        compiler.load_library.cache_clear()


@needs_compiler
def test_one_of_those_that_start_at_once_compiles_and_the_others_wait(source):
    calls, real = source.parent / "calls", " ".join(compiler.find_compiler())
    counting = f'case "$*" in *--version*) ;; *) echo x >> {calls}; sleep 0.5;; esac; exec {real} "$@"'
    command = [script(source.parent / "counting", counting)]
    with ThreadPoolExecutor(3) as threads:  # each has a descriptor of its own, which is what locks tell apart
        found = list(threads.map(lambda _: compiler._load(source, command), range(3)))
    assert [library.answer() for library in found] == [42] * 3
    assert calls.read_text() == "x\n" and len(libraries(source)) == 1


@needs_compiler
@pytest.mark.parametrize("damage", ["cut in half", "empty", "zeros", "garbage", "a flipped bit"])
def test_a_damaged_library_is_compiled_again(source, caplog, damage):
    command = compiler.find_compiler()
    _ctypes.dlclose(compiler._load(source, command)._handle)  # else this process goes on with what it has loaded
    (library,) = libraries(source)
    whole = library.read_bytes()
    middle = len(whole) // 2
    library.write_bytes(
        {
            "cut in half": whole[:middle],
            "empty": b"",
            "zeros": bytes(len(whole)),
            "garbage": b"<html>no library</html>",
            "a flipped bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        }[damage]
    )
    with caplog.at_level(logging.WARNING):
        assert compiler._load(source, command).answer() == 42
    (again,) = libraries(source)
    assert len(again.read_bytes()) == len(whole)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "is damaged and is compiled again" in warnings[0]


def test_containers_that_share_a_disk_and_a_process_number_write_to_different_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path = tmp_path / "checkpoint_best.pyth"
    with atomic_write(path) as first, atomic_write(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
        assert {*tmp_path.glob(".checkpoint_*.tmp")} == {first, second}
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


GRID = TokenGrid(4, 6, 6, 1)
SITE = AttentionSite(GRID, GRID, 2, 8, 0)


def check_that_auto_takes_plain_forms() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 2, GRID.tokens, 8, generator=generator) for _ in range(3)]
    for method, plain in ((FibonacciAttention, "masked"), (FocusedLinearAttention, "plain")):
        operator, twin = method(SITE), method(SITE, implementation=plain)
        twin.load_state_dict(operator.state_dict())
        torch.testing.assert_close(operator(*inputs), twin(*inputs))


@pytest.mark.usefixtures("loading_anew")
@pytest.mark.parametrize("obstacle", ["no compiler", "compiler fails", "cache is a file", "no disk", "no home"])
def test_without_kernels_auto_takes_plain_forms_and_an_explicit_name_is_an_error(
    tmp_path, monkeypatch, caplog, obstacle
):
    monkeypatch.setattr("videoattn.kernels.offsets.has_triton", lambda: False)
    monkeypatch.setenv("VIDEOATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", script(tmp_path / "broken", "echo no such luck >&2; exit 1"))
    reason = "no such luck"
    if obstacle == "no compiler":
        monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
        monkeypatch.delenv("CXX")
        reason = "no C.. compiler was found"
    elif obstacle == "cache is a file":
        (tmp_path / "cache").write_text("no folder")
        reason = re.escape(str(tmp_path / "cache"))
    elif obstacle == "no disk":
        monkeypatch.setenv("VIDEOATTN_CACHE", "/proc/no/such/folder")
        reason = "/proc/no"
    elif obstacle == "no home":
        monkeypatch.delenv("VIDEOATTN_CACHE")
        monkeypatch.setattr(Path, "home", raise_no_home)
        reason = "no home. Set VIDEOATTN_CACHE"
    with caplog.at_level(logging.WARNING):
        check_that_auto_takes_plain_forms()
        check_that_auto_takes_plain_forms()
    assert len(caplog.records) == (1 if obstacle == "no compiler" else 2) and re.search(reason, caplog.text)
    for method in (FibonacciAttention, FocusedLinearAttention):
        with pytest.raises(ValueError, match=rf"compiled needs a C.. compiler(.|\s)*{reason}"):
            method(SITE, implementation="compiled")


def raise_no_home() -> Path:
    raise RuntimeError("no home.")


def test_a_machine_without_a_compiler_has_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert compiler.find_compiler() is None


@needs_compiler
def test_the_kernels_are_installed_with_the_package():
    folder = Path(compiler.__file__).parent
    assert {path.name for path in folder.glob("*.h")} >= {"rows.h", "pattern.h", "attend.h"}
    assert isinstance(compiler.load_library("offset_attention"), ctypes.CDLL) or os.environ.get("VIDEOATTN_COMPILED")
