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
import tempfile
from pathlib import Path

from filelock import FileLock

from videoattn.files import atomic_write, cache_folder, file_sha256

logger = logging.getLogger(__name__)

_FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fPIC", "-shared"]
# Tried in this order: some compilers have no OpenMP, and some don't know the machine they run on.
_CHOICES = [["-march=native", "-fopenmp"], ["-fopenmp"], ["-march=native"], []]
# How long one command may take, and how long a process waits for another that compiles.
_COMPILE_SECONDS, _WAIT_SECONDS = 600, 1800

_obstacles: dict[str, str] = {}


@functools.cache
def load_library(name: str) -> ctypes.CDLL | None:
    """Return the functions of `NAME.cpp` beside this file, or None where this machine can't build them or must not.

    The compiler is $CXX, else c++, g++ or clang++. Libraries are kept in `cache_folder()`, one for each source,
    compiler and processor: one process compiles, and others wait for it. A library that is damaged, or that doesn't
    load, is compiled again. VIDEOATTN_COMPILED=0 in the environment turns them off. What fails is logged once, never
    raised; `explain_absence` repeats it.
    """
    if os.environ.get("VIDEOATTN_COMPILED", "1").lower() in ("0", "false", "no"):
        _obstacles[name] = "VIDEOATTN_COMPILED=0 turns it off"
        return None
    compiler = find_compiler()
    if compiler is None:
        _obstacles[name] = "no C++ compiler was found as c++, g++ or clang++; install one, or set CXX"
        _warn_once(f"attention on CPUs runs in slower forms: {_obstacles[name]}")
        return None
    source = Path(__file__).with_name(f"{name}.cpp")
    try:
        return _load(source, compiler)
    except OSError as error:
        _obstacles[name] = f"it can't be compiled: {error}"
        logger.warning("%s runs in its slower form: %s", name, _obstacles[name])
        return None


def explain_absence(name: str) -> str:
    """Return the reason why `load_library` has returned None."""
    return _obstacles.get(name, "")


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def find_compiler() -> list[str] | None:
    """Return the command of a C++ compiler, as words."""
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
    folder, stem = _folder(), f"{source.stem}-{key}"
    library = _open_kept(folder, stem)
    if library is not None:
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{stem}.lock", timeout=_WAIT_SECONDS):
            return _open_kept(folder, stem, is_builder=True) or ctypes.CDLL(str(_build(source, compiler, folder, stem)))
    except NotImplementedError as error:  # of FileLock, where the disk has no locks
        raise OSError(f"{folder}: {error}") from error


def _folder() -> Path:
    try:
        return cache_folder() / "kernels"
    except RuntimeError as error:
        raise OSError(f"no folder to keep it in: {error} Set VIDEOATTN_CACHE.") from error


def _open_kept(folder: Path, stem: str, is_builder: bool = False) -> ctypes.CDLL | None:
    """Return the library of that name that is whole and loads, if any.

    A builder, who holds the lock, removes damaged ones. The last part of a file's name is its digest. Loading
    a file that is cut short may end the process.
    """
    for path in sorted(folder.glob(f"{stem}-*.so")):
        if path.stem == f"{stem}-{_digest(path)}":
            try:
                return ctypes.CDLL(str(path))
            except OSError as error:  # another machine's, which shares the disk
                problem = f"doesn't load here ({error})"
        else:
            problem = "is damaged"
        if is_builder:
            logger.warning("%s %s and is compiled again", path, problem)
            if problem == "is damaged":
                path.unlink(missing_ok=True)
    return None


def _build(source: Path, compiler: list[str], folder: Path, stem: str) -> Path:
    logger.info("compiling %s, once for this machine", source.name)
    # a folder of its own, as other machines may share the disk and know nothing of the lock
    with tempfile.TemporaryDirectory(prefix=f".{stem}-", dir=folder) as own:
        built = Path(own) / "library.so"
        _compile(source, compiler, built)
        if not built.is_file():
            raise OSError(0, f"{shlex.join(compiler)} wrote no library")
        library = folder / f"{stem}-{_digest(built)}.so"
        with atomic_write(library) as temporary:
            os.replace(built, temporary)
    return library


def _digest(path: Path) -> str:
    return file_sha256(path)[:16]


def _with_headers(source: Path) -> list[Path]:
    return [source, *sorted(source.parent.glob("*.h"))]


def _compile(source: Path, compiler: list[str], library: Path) -> None:
    messages = []
    for choice in _CHOICES:
        command = [*compiler, *_FLAGS, *choice, str(source), "-o", str(library)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_COMPILE_SECONDS)
        except subprocess.TimeoutExpired:
            raise OSError(0, f"{shlex.join(command)} took more than {_COMPILE_SECONDS} seconds") from None
        if done.returncode == 0:
            if "-fopenmp" not in choice:
                logger.warning("%s knows no OpenMP: %s uses one thread", compiler[0], source.name)
            return
        messages.append(f"{shlex.join(command)}\n{done.stderr.strip()[-500:]}")
    raise OSError(0, messages[-1])


def _processor() -> str:
    """Return a description of the processor, on which -march=native depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    kinds = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
