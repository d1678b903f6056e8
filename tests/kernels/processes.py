"""Runs tests of Triton kernels in processes of their own: one interprets kernels on the CPU, another compiles them.

Triton decides between these when it is imported, once for a process, and other tests import it too.
"""

import functools
import importlib
import importlib.util
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from multiprocessing import get_context
from typing import Any

import pytest
import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
# Where a test of kernels runs: in the interpreter, and on a GPU where there is one.
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# The same for what takes the interpreter seconds.
SLOW_DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), *DEVICES[1:]]


def interpreted(law: Callable[..., None]) -> Callable[..., None]:
    """Run a test in the interpreter unless its `device` is a GPU; its arguments must bear pickling."""
    return _elsewhere(law, interpret=True, obstacle=_obstacle_to_interpreting())


def compiling(law: Callable[..., None]) -> Callable[..., None]:
    """Run a test where Triton compiles for a GPU that need not be there."""
    return _elsewhere(law, interpret=False, obstacle=None if HAS_TRITON else "Triton is not installed")


def _obstacle_to_interpreting() -> str | None:
    if not HAS_TRITON:
        return "Triton is not installed"
    triton, numpy = (tuple(int(x) for x in metadata.version(name).split(".")[:2]) for name in ("triton", "numpy"))
    if triton < (3, 9) and numpy >= (2, 4):
        return "before 3.9, Triton's interpreter doesn't loop with NumPy 2.4"
    return None


def _elsewhere(law: Callable[..., None], interpret: bool, obstacle: str | None) -> Callable[..., None]:
    @functools.wraps(law)
    def run(**arguments: Any) -> None:
        if arguments.get("device") == "cuda":
            law(**arguments)
        elif obstacle:
            pytest.skip(obstacle)
        else:
            _process(interpret).submit(_call, law.__module__, law.__name__, arguments).result()

    return run


@functools.cache
def _process(interpret: bool) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_begin, initargs=(interpret,))


_cache: list[tempfile.TemporaryDirectory[str]] = []


def _begin(interpret: bool) -> None:
    _cache.append(tempfile.TemporaryDirectory(prefix="videoattn_triton_"))
    os.environ["TRITON_CACHE_DIR"] = _cache[0].name
    os.environ["TRITON_INTERPRET"] = "1" if interpret else "0"
    torch.set_num_threads(1)
    if interpret:
        from videoattn.kernels import offsets

        offsets.offset_attention.register_kernel("cpu", offsets.attend_on_gpu)
        offsets.offset_attention_backward.register_kernel("cpu", offsets.differentiate_on_gpu)


def _call(module: str, name: str, arguments: dict[str, Any]) -> None:
    getattr(importlib.import_module(module), name).__wrapped__(**arguments)
