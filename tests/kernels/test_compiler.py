"""Building kernels: once per machine, without harm where it can't be done."""

import ctypes
import logging
import os
import stat
from pathlib import Path

import pytest

from videoattn.kernels import compiler

needs_compiler = pytest.mark.skipif(compiler.find_compiler() is None, reason="no C++ compiler on this machine")
SOURCE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("VIDEOATTN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE)
    return path


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@needs_compiler
def test_a_library_is_built_once_and_found_again(source, monkeypatch):
    command = compiler.find_compiler()
    assert compiler._load(source, command).answer() == 42
    (library,) = (source.parent / "cache/kernels").iterdir()
    monkeypatch.setattr(compiler, "_compile", None)
    assert compiler._load(source, command).answer() == 42
    assert [library] == list(library.parent.iterdir())


@needs_compiler
def test_another_source_or_header_is_another_library(source):
    command = compiler.find_compiler()
    compiler._load(source, command)
    source.write_text(SOURCE.replace("42", "43"))
    assert compiler._load(source, command).answer() == 43
    (source.parent / "more.h").write_text("// nothing\n")
    compiler._load(source, command)
    assert len(list((source.parent / "cache/kernels").iterdir())) == 3


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
            assert compiler.load_library("jump_attention") is None
            assert compiler.load_library("jump_attention") is None
    finally:
        compiler.load_library.cache_clear()
    assert len(caplog.records) == 1 and "slower form" in caplog.text
    assert not list((source.parent / "cache/kernels").iterdir())


def test_a_cache_that_cannot_be_written_is_reported(source, monkeypatch, caplog):
    (source.parent / "cache").write_text("a file, no folder")
    compiler.load_library.cache_clear()
    monkeypatch.delenv("VIDEOATTN_COMPILED", raising=False)
    monkeypatch.setenv("CXX", script(source.parent / "unused", "exit 0"))
    try:
        with caplog.at_level(logging.WARNING):
            assert compiler.load_library("jump_attention") is None
    finally:
        compiler.load_library.cache_clear()
    assert "cache" in caplog.text


def test_the_environment_turns_kernels_off(monkeypatch):
    monkeypatch.setenv("VIDEOATTN_COMPILED", "0")
    compiler.load_library.cache_clear()
    try:
        assert compiler.load_library("jump_attention") is None
    finally:
        compiler.load_library.cache_clear()


def test_a_machine_without_a_compiler_has_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert compiler.find_compiler() is None


@needs_compiler
def test_the_kernels_are_installed_with_the_package():
    folder = Path(compiler.__file__).parent
    assert {path.name for path in folder.glob("*.h")} >= {"rows.h", "pattern.h", "attend.h"}
    assert isinstance(compiler.load_library("jump_attention"), ctypes.CDLL) or os.environ.get("VIDEOATTN_COMPILED")
