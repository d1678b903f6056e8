"""Compiles Triton kernels for an H100 or H200 without having one, and reads what became of them.

To be imported only where Triton doesn't interpret kernels.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

Launch = tuple[JITFunction, dict[str, Any]]


class AbsentGPU:
    """The driver calls that a launch makes before it compiles."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@contextmanager
def record(*modules: Any) -> Iterator[dict[str, Launch]]:
    """The kernels that are launched meanwhile, instead of launching them: each by name, with its arguments."""
    launches: dict[str, Launch] = {}

    class Stand:
        def __init__(self, kernel: JITFunction) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: Any) -> Any:
            return lambda **arguments: launches.update({self.kernel.__name__: (self.kernel, arguments)})

    with ExitStack() as stack:
        for module in modules:
            for name, kernel in list(vars(module).items()):
                if isinstance(kernel, JITFunction) and kernel.__module__ == module.__name__:
                    stack.enter_context(patch.object(module, name, Stand(kernel)))
        yield launches


def compile_launch(kernel: JITFunction, arguments: dict[str, Any]) -> Any:
    driver.set_active(AbsentGPU())
    return kernel.warmup(grid=(1,), **arguments)


def report(compiled: Any) -> dict[str, Any]:
    """Registers, bytes of stack and how many instructions of a kind, such as LDG.E.128."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(compiled.asm["cubin"])
        usage, code = (
            subprocess.run([tool, flag, path], capture_output=True, text=True, check=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    names = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?([A-Z][A-Z0-9_.]*)", code, flags=re.MULTILINE)
    return {"registers": int(found[1]), "stack": int(found[2]), "kinds": dict(Counter(names))}
