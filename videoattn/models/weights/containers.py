"""The containers that tensors are written in: archives of torch.save, its older format, and safetensors.

Damage is found before a tensor is used. An archive of torch.save has a CRC-32 of every member, which `torch.load` does
not look at. Safetensors has no checksum, so that the files written here note a SHA-256 of their content.
"""

import argparse
import hashlib
import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from videoattn.files import atomic_write, check_archive, describe_content

DIGEST = "videoattn.sha256"  # the key of the digest in the metadata of a safetensors file
PICKLES = (".pyth", ".pt", ".pth", ".bin")

_ZIP_START = b"PK\x03\x04"
# The magic number of torch's older format, pickled by any protocol.
_LEGACY_START = re.compile(rb"\x80[\x02-\x05](\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
# What unpickling damaged bytes, or classes that are not there, raises.
_READ_ERRORS = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, ImportError,
    AssertionError, OverflowError, MemoryError, struct.error,
)  # fmt: skip


class CheckpointError(ValueError):
    """A file of weights that can't be read, or does not belong to the model; the message names file and tensors."""


def read_container(path: Path, trust: bool) -> tuple[Any, Mapping[str, Any]]:
    """Return what a file holds, on the CPU and where possible mapped, and the notes beside its tensors.

    The content decides how a file is read, not the ending of its name. A pickle that needs code is refused unless
    `trust`, which runs that code. Raises CheckpointError naming the file where it is damaged or is no file of weights.
    """
    container = _find_container(path)
    if container == "safetensors":
        return _read_safetensors(path)
    content = _read_pickle(path, trust, mapped=container == "zip" and _check_zip(path))
    return content, content if isinstance(content, Mapping) else {}


def write_weight_file(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors whole or not at all: .safetensors, or .pyth, .pt or .pth as {"model_state": ...}.

    Raises OSError naming the file where it can't be written; an older file then stays.
    """
    path = Path(path)
    whole = torch.contiguous_format  # tensors that share memory are written apart
    tensors = {name: value.detach().cpu().clone(memory_format=whole) for name, value in tensors.items()}
    if path.suffix == ".safetensors":
        notes = {"format": "pt", **(metadata or {})}
        notes[DIGEST] = digest(tensors, notes)
        with atomic_write(path) as temporary:
            try:
                safetensors.torch.save_file(tensors, temporary, notes)
                os.chmod(temporary, 0o666 & ~_umask())  # safetensors lets nobody else read
            except safetensors.SafetensorError as error:
                raise OSError(str(error)) from error
    elif path.suffix in PICKLES:
        # by a name, torch would write that of the temporary file into the archive: no two would be the same
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            torch.save({"model_state": tensors, **(metadata or {})}, file)
    else:
        raise ValueError(f"{path}: expected a name that ends in .safetensors, {', '.join(PICKLES)}")


def digest(tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
    """Return the SHA-256 of tensors (names, types, shapes, bytes; on the CPU) and notes, in hexadecimal."""
    names = sorted(tensors)
    described = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    said = {key: text for key, text in notes.items() if key != DIGEST}
    found = hashlib.sha256(json.dumps([described, said], sort_keys=True).encode())
    for name in names:
        found.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, cut to 300 characters."""
    return str(error).strip().split("\n")[0][:300]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _find_container(path: Path) -> Literal["zip", "legacy", "safetensors"]:
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(_ZIP_START):
        return "zip"
    if _LEGACY_START.match(start):
        return "legacy"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return "safetensors"
    look = describe_content(path)
    if look is not None:
        raise CheckpointError(f"{path} is {look}, expected a file of torch.save or safetensors")
    if path.suffix == ".safetensors":
        return "safetensors"  # it is damaged, and its reader says how
    raise CheckpointError(f"{path} was not written by torch.save, it begins with {start[:24]!r}")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            notes: dict[str, str] = file.metadata() or {}
    except (safetensors.SafetensorError, *_READ_ERRORS) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {first_line(error)}") from error
    if DIGEST in notes and digest(tensors, notes) != notes[DIGEST]:
        raise CheckpointError(
            f"{path} is damaged: its tensors or notes are not those that it was written with, by the checksum in it "
            f"({DIGEST}): fetch or write it again"
        )
    return tensors, notes


def _read_pickle(path: Path, trust: bool, mapped: bool) -> Any:
    try:
        # arguments of a command line beside the tensors are plain values, which no code has to make
        with torch.serialization.safe_globals([argparse.Namespace]):
            if path.suffix != ".safetensors":
                return torch.load(path, map_location="cpu", weights_only=not trust, mmap=mapped)
            with path.open("rb") as file:  # by this name, torch would not take it for its own
                return torch.load(file, map_location="cpu", weights_only=not trust)
    except _READ_ERRORS as error:
        needed = sorted(set(re.findall(r"GLOBAL ([\w.]*\w)", str(error))))
        if "Unsupported operand 149" in str(error):  # how a pickle of protocol 4 or 5 begins
            needed.append("pickle protocol 4 or 5")
        if trust or not needed:
            raise CheckpointError(f"{path} can't be read: {type(error).__name__}: {_without_advice(error)}") from error
        raise CheckpointError(
            f"{path} needs code to be loaded ({', '.join(needed)}), and such a file can run anything. If you trust "
            "where it comes from, convert it once in Python, by torch.save(torch.load(FILE, weights_only=False)[KEY], "
            "NEW_FILE) with the KEY of its weights, or pass trust=True to load_weights"
        ) from error


def _check_zip(path: Path) -> bool:
    """Raise CheckpointError unless an archive is undamaged and of torch.save; return whether it can be mapped."""
    try:
        check_archive(path)
    except ValueError as error:
        raise CheckpointError(f"{error} ({path.stat().st_size} bytes): fetch or write it again") from error
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    last_names = {member.filename.rpartition("/")[2] for member in members}
    if "constants.pkl" in last_names:
        raise CheckpointError(f"{path} is a TorchScript program, expected a state dict saved by torch.save")
    if "data.pkl" not in last_names:
        raise CheckpointError(f"{path} is a zip archive that torch.save did not write, it has no data.pkl")
    # torch maps the bytes as they lie in the file; those of a compressed member would be read as numbers
    return all(member.compress_type == zipfile.ZIP_STORED for member in members)


def _without_advice(error: Exception) -> str:
    """Return what an error of torch.load says is wrong, without its advice to run the code in a file."""
    text = str(error)
    return first_line(ValueError(text.partition("WeightsUnpickler error:")[2] or text))
