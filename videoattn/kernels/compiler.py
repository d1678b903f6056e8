"""C++ kernels for CPUs, built by the machine's own compiler at first use and kept for the next."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

from videoattn.files import atomic_write, cache_folder

logger = logging.getLogger(__name__)

_FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fPIC", "-shared"]
# Tried in this order: some compilers have no OpenMP, and some don't know the machine they run on.
_CHOICES = [["-march=native", "-fopenmp"], ["-fopenmp"], ["-march=native"], []]


@functools.cache
def load_library(name: str) -> ctypes.CDLL | None:
    """The functions of `videoattn/kernels/NAME.cpp`, or None where this machine can't build them or must not.

    The compiler is $CXX, else c++, g++ or clang++. Libraries are kept in `cache_folder()`, one for each source,
    compiler and processor. VIDEOATTN_COMPILED=0 in the environment turns them off. What fails is logged once, never
    raised.
    """
    if os.environ.get("VIDEOATTN_COMPILED", "1").lower() in ("0", "false", "no"):
        return None
    compiler = find_compiler()
    if compiler is None:
        logger.info("no C++ compiler was found (set CXX): %s runs in its slower form", name)
        return None
    source = Path(__file__).with_name(f"{name}.cpp")
    try:
        return _load(source, compiler)
    except OSError as error:
        logger.warning("%s can't be compiled and runs in its slower form: %s", name, error)
        return None


def find_compiler() -> list[str] | None:
    """The command of a C++ compiler, as words."""
    given = shlex.split(os.environ.get("CXX", ""))
    for command in (given, ["c++"], ["g++"], ["clang++"]):
        if command and shutil.which(command[0]):
            return command
    return None


def _load(source: Path, compiler: list[str]) -> ctypes.CDLL:
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = [*(path.read_text(encoding="utf-8") for path in _with_headers(source)), version, _processor()]
    parts += [shlex.join(compiler), str(_FLAGS), str(_CHOICES)]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    library = cache_folder() / "kernels" / f"{source.stem}-{key}.so"
    if not library.is_file():
        library.parent.mkdir(parents=True, exist_ok=True)
        logger.info("compiling %s, once for this machine", source.name)
        with atomic_write(library) as temporary:
            _compile(source, compiler, temporary)
    return ctypes.CDLL(str(library))


def _with_headers(source: Path) -> list[Path]:
    return [source, *sorted(source.parent.glob("*.h"))]


def _compile(source: Path, compiler: list[str], library: Path) -> None:
    messages = []
    for choice in _CHOICES:
        command = [*compiler, *_FLAGS, *choice, str(source), "-o", str(library)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        except subprocess.TimeoutExpired:
            raise OSError(0, f"{shlex.join(command)} took more than 10 minutes") from None
        if done.returncode == 0:
            if "-fopenmp" not in choice:
                logger.warning("%s knows no OpenMP: %s uses one thread", compiler[0], source.name)
            return
        messages.append(f"{shlex.join(command)}\n{done.stderr.strip()[-500:]}")
    raise OSError(0, messages[-1])


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    kinds = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
