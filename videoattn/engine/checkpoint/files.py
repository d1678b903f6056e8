"""Training checkpoints: what a run needs to go on, written whole or not at all, and kept few."""

import os
import pickle
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from videoattn.files import atomic_write, check_archive

BEST = "checkpoint_best.pyth"
_NAME = re.compile(r"checkpoint_epoch_(\d+)(?:_step_(\d+))?\.pyth")


class BadCheckpointError(ValueError):
    """A file that a run can't continue from: damaged, of another type, or of another model. The message names it."""


@dataclass(frozen=True)
class Checkpoint:
    """A file in a checkpoint folder: `epoch` finished epochs, and `step` optimizer steps of the next one."""

    epoch: int
    step: int
    path: Path


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Return the checkpoints of a run, oldest first; the best one's copy is not among them."""
    found = []
    for path in folder.glob("checkpoint_epoch_*.pyth"):
        match = _NAME.fullmatch(path.name)
        if match:
            found.append(Checkpoint(int(match.group(1)), int(match.group(2) or 0), path))
    return sorted(found, key=lambda c: (c.epoch, c.step))


def save_checkpoint(folder: Path, state: dict[str, Any], *, epoch: int, step: int = 0, keep: int = 3) -> Path:
    """Write `state` after `epoch` epochs and `step` steps of the next, then delete what it makes superfluous.

    The newest `keep` whole epochs up to this one stay, and of the checkpoints within an epoch only this one. Later ones
    are left alone: they are bad, where a run went back to this point. The state holds tensors and plain values only, so
    that it loads without unpickling code. Raises OSError naming the file when it can't be written; older files are then
    untouched.
    """
    make_checkpoint_folder(folder)
    name = f"checkpoint_epoch_{epoch:05d}" + (f"_step_{step:06d}" if step else "") + ".pyth"
    with atomic_write(folder / name) as temporary:
        torch.save(state, temporary)
    for piece in folder.glob(".checkpoint_*.tmp"):  # of a process that was killed while writing
        piece.unlink(missing_ok=True)
    existing = [c for c in list_checkpoints(folder) if (c.epoch, c.step) <= (epoch, step)]
    whole = [c for c in existing if c.step == 0]
    for old in [c for c in existing if c.step and c.path.name != name] + whole[: max(len(whole) - keep, 0)]:
        old.path.unlink(missing_ok=True)
    return folder / name


def make_checkpoint_folder(folder: Path) -> None:
    """Make a folder of checkpoints where it is missing. Raises OSError where it can't be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OSError(f"{folder} is a file, expected a folder for checkpoints") from None


def copy_as_best(path: Path) -> Path:
    """Keep a checkpoint under the best one's name, whatever is deleted later: a hard link where the disk has them."""
    best = path.with_name(BEST)
    with atomic_write(best) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
    return best


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint's state on the CPU, with every checksum in the file compared and no code run.

    Raises BadCheckpointError naming the file where it is damaged or no training checkpoint.
    """
    try:
        check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:  # its text advises to run the code in the file: none of it is repeated
        needed = sorted(set(re.findall(r"GLOBAL ([\w.]*\w)", str(error))))
        what = f"needs code to be loaded ({', '.join(needed)})" if needed else "is damaged: its pickle can't be read"
        raise BadCheckpointError(f"{path} {what}") from None
    except ValueError as error:  # of check_archive, which names the file
        raise BadCheckpointError(str(error) if str(path) in str(error) else f"{path} is damaged: {error}") from None
    except Exception as error:  # whatever torch raises on a crafted archive; nothing of ours runs in there
        reason = str(error).split("\n")[0]
        reason = "" if "weights_only" in reason else f": {reason}"
        raise BadCheckpointError(f"{path} can't be read as a checkpoint: {type(error).__name__}{reason}") from None
    if not isinstance(state, dict):
        raise BadCheckpointError(f"{path} holds a {type(state).__name__}, expected the state of a training run")
    missing = [key for key in ("model_state", "optimizer_state", "epoch") if key not in state]
    if missing:
        raise BadCheckpointError(f"{path} is no training checkpoint: it lacks {', '.join(missing)}")
    return state
