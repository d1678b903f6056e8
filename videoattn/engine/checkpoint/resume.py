"""The checkpoint that a run continues from: the newest good one, compared with the run, and restored."""

import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from videoattn.data.lists import VideoList, check_same_order
from videoattn.data.lists.record import describe_change, list_record
from videoattn.data.loader import Loader
from videoattn.engine.checkpoint.check import check_content
from videoattn.engine.checkpoint.files import (
    BEST,
    BadCheckpointError,
    copy_as_best,
    list_checkpoints,
    load_checkpoint,
)
from videoattn.engine.distributed import gather_objects, shared_errors
from videoattn.engine.log import logger
from videoattn.engine.train import Steps, TrainState, restore_training

Content = dict[str, Any]

# Settings that may differ between a run and its continuation: none of them changes what is learned.
FREE_KEYS = (
    "OUTPUT_DIR", "LOG_PERIOD", "DEVICE", "DIST_BACKEND", "DATA_LOADER.", "TENSORBOARD.", "TEST.", "TRAIN.EVAL_PERIOD",
    "TRAIN.CHECKPOINT_PERIOD", "TRAIN.CHECKPOINT_MINUTES", "TRAIN.CHECKPOINT_STEPS", "TRAIN.CHECKPOINT_EPOCH_RESET",
    "TRAIN.KEEP_CHECKPOINTS", "TRAIN.AUTO_RESUME", "TRAIN.COMPILE", "DATA.MAX_BAD_FRACTION", "DATA.PATH_TO_DATA_DIR",
    "DATA.PATH_PREFIX", "DATA.CLASS_NAMES", "DATA.TEST_CROP_SIZE", "DATA.DECODING_BACKEND", "PROBE.COMPARE",
)  # fmt: skip
# Settings that help against divergence: they may differ where the command line gives them, and the log says so.
GIVEN_KEYS = (
    "SOLVER.BASE_LR", "SOLVER.WARMUP_START_LR", "SOLVER.COSINE_END_LR", "SOLVER.CLIP_GRAD_VAL",
    "SOLVER.CLIP_GRAD_L2NORM", "TRAIN.PRECISION",
)  # fmt: skip
# It may be left out: a continued run does not read it.
_START = "TRAIN.CHECKPOINT_FILE_PATH"


@dataclass(frozen=True)
class Run:
    """The facts of a run to compare with a checkpoint: its settings as YAML text, its list of videos and its notes.

    `changed_keys(old, new)` names the keys at which two texts differ, and raises ValueError where it can't read them;
    `given` are those that the command line gives. `list_file` is where `write_list` writes the list. `notes` has the
    records of both lists and the "steps": plain facts on which the number of an optimizer step depends.
    """

    cfg: str
    changed_keys: Callable[[str, str], list[str]]
    given: Collection[str]
    videos: VideoList
    list_file: Path
    notes: Mapping[str, Any]

    def check(self, path: Path, content: Content) -> None:
        """Raise ValueError, naming what differs, where the run can't go on from a checkpoint as its own.

        Raises BadCheckpointError where the checkpoint contradicts itself. Differences that are allowed are logged.
        """
        self._check_step(content)
        refused, allowed = self._changes(content)
        if refused:
            given = " or ".join(key for key in refused if key in GIVEN_KEYS)
            hint = f" To change {given} within a run, give it on the command line." if given else ""
            raise ValueError(
                f"{path} was made with other settings ({', '.join(refused.values())}), so the run can't continue from "
                f"it. Set another OUTPUT_DIR and {_START} {shlex.quote(str(path))}, which starts anew from its "
                f"weights; add TRAIN.CHECKPOINT_EPOCH_RESET False to continue from its epoch.{hint}"
            )
        others = self._other_differences(content)
        if others:
            raise ValueError(f"{path} is of another run: {'; '.join(others)}; continue with what it began with, or set "
                             "another OUTPUT_DIR")  # fmt: skip
        check_same_order(self.videos.class_names, self.videos.source, content.get("class_names"), str(path))
        for text in allowed:
            logger.warning("continuing with %s", text)
        names, before = self.videos.class_names, content.get("class_names")
        if names is not None and before is not None and list(names) != list(before):
            logger.warning("the names of classes were others when the run began, such as %r", before[0])

    def compare(self, path: Path, content: Content) -> None:
        """Warn of all that differs from a checkpoint which the user has named, rather than refuse it.

        Raises ValueError where it stands within an epoch that this run does not have.
        """
        self._check_step(content)
        check_same_order(self.videos.class_names, self.videos.source, content.get("class_names"), str(path))
        refused, allowed = self._changes(content)
        refused.pop(_START, None)  # it names the checkpoint itself
        others = self._other_differences(content)
        if others and content["step"]:
            raise ValueError(f"{path} is from within an epoch, which can't go on: {'; '.join(others)}")
        lines = [*refused.values(), *allowed, *others]
        if lines:
            logger.warning("%s was made with other settings:\n  %s", path, "\n  ".join(lines))

    def _check_step(self, content: Content) -> None:
        steps = content.get("steps", self.notes["steps"])
        if not isinstance(steps, Mapping) or content["step"] >= steps.get("steps_per_epoch", 0):
            raise BadCheckpointError(f"step is {content['step']}, expected less than those of an epoch, {steps}")

    def _changes(self, content: Content) -> tuple[dict[str, str], list[str]]:
        """Return the settings that must not differ but do, and those that the command line changes."""
        try:
            keys = [key for key in self.changed_keys(content["cfg"], self.cfg) if not key.startswith(FREE_KEYS)]
        except ValueError as error:
            raise BadCheckpointError(f"cfg can't be read: {error}") from None
        old, new = _flat(content["cfg"]), _flat(self.cfg)
        if _START in keys and not new.get(_START):
            keys.remove(_START)
        texts = {key: f"{key} {_show(new, key)}, was {_show(old, key)}" for key in keys}
        allowed = [key for key in keys if key in GIVEN_KEYS and key in self.given]
        return {k: v for k, v in texts.items() if k not in allowed}, [texts[key] for key in allowed]

    def _other_differences(self, content: Content) -> list[str]:
        found = []
        if isinstance(record := content.get("train_list"), dict):  # older checkpoints have none
            change = describe_change(self.videos, record, self.list_file)
            found += [f"the training list {self.videos.source} has changed: {change}"] if change else []
        old, new = content.get("steps"), self.notes["steps"]
        if isinstance(old, Mapping):
            found += [f"{key} is {new[key]}, was {old.get(key)}" for key in new if new[key] != old.get(key)]
        return found


@dataclass
class Candidates:
    """The checkpoints in a folder, newest first; each that is refused is named in a warning and not tried again.

    `check(path, content)` raises BadCheckpointError for one to refuse. The copy of the best one counts as well.
    """

    folder: Path
    check: Callable[[Path, Content], None]
    refused: dict[Path, str] = field(default_factory=dict)

    def newest(self) -> tuple[Path, Content] | None:
        """Return the newest good checkpoint with its content; None if the folder has no checkpoint.

        Raises BadCheckpointError that says why of each, where none is good, and ValueError on a folder in its place.
        """
        for found in reversed(list_checkpoints(self.folder)):
            if found.path in self.refused:
                continue
            if found.path.is_dir():  # an older one would not help: a checkpoint of that name is to be written later
                raise ValueError(f"{found.path} is a folder, expected a checkpoint; remove or rename it")
            best = self._best() if self.refused else None
            if best is not None and (best[1]["epoch"], best[1]["step"]) > (found.epoch, found.step):
                return best
            content = self._read(found.path, found.epoch, found.step)
            if content is not None:
                return found.path, content
        best = self._best() if self.refused else None
        if best is None and self.refused:
            raise BadCheckpointError(
                f"no checkpoint in {self.folder} can be continued from: {'; '.join(self.refused.values())}"
            )
        return best

    def restore(self, trainer: Steps, found: tuple[Path, Content]) -> tuple[Path, Content, TrainState]:
        """Put the newest checkpoint that fits the model into `trainer`: `found`, or else an older one of the folder.

        Raises BadCheckpointError where `found` is of another folder and does not fit.
        """
        path, content = found
        while True:
            try:
                state = restore_training(trainer, content)
                break
            except BadCheckpointError as error:
                if path.parent != self.folder:
                    raise BadCheckpointError(f"{path}: {error}") from None
                self._refuse(path, str(error))
            older = self.newest()
            assert older is not None  # where none is left, that is an error
            path, content = older
        is_best = state.best is not None and (state.best.epoch, 0) == (state.epoch, state.step)
        if is_best and path.parent == self.folder and path.name != BEST:
            copy_as_best(path)  # a run may have been killed after it had saved its best epoch and before it kept it
        return path, content, state

    def _refuse(self, path: Path, reason: str) -> None:
        reason = reason if str(path) in reason else f"{path}: {reason}"
        self.refused[path] = reason
        logger.warning("a bad checkpoint is not used: %s", reason)

    def _read(self, path: Path, epoch: int | None = None, step: int | None = None) -> Content | None:
        try:
            return read_checkpoint(path, self.check, epoch, step)
        except BadCheckpointError as error:
            self._refuse(path, str(error))
            return None

    def _best(self) -> tuple[Path, Content] | None:
        path = self.folder / BEST
        if path in self.refused or not path.is_file():
            return None
        content = self._read(path)
        return None if content is None else (path, content)


def resume(
    trainer: Steps, candidates: Candidates | None, found: tuple[Path, Content] | None, notes: Mapping[str, Any]
) -> tuple[Path, TrainState]:
    """Continue in every process from the checkpoint `found` by the main one, or an older one if it does not fit.

    Only the main process has `candidates` and `found`. Raises ValueError where another process does not see the file.
    """
    chosen: tuple[Path, TrainState] | None = None
    with shared_errors():
        if candidates is not None and found is not None:
            path, content, state = candidates.restore(trainer, found)
            if state.best is not None and content.get("val_list") not in (None, notes["val_list"]):
                logger.warning("the validation list has changed, so the search for the best epoch starts again")
                state.best = None
            if path.parent != candidates.folder:
                state.best = None  # its weights are kept in the other folder
            chosen = path, state
    shared = gather_objects(chosen)[0]
    assert shared is not None
    with shared_errors():
        if chosen is None:
            if not shared[0].is_file():
                raise ValueError(f"{shared[0]} is not there for all processes; expected an OUTPUT_DIR that they share")
            restore_training(trainer, load_checkpoint(shared[0]))
    return shared


def take_notes(loader: Loader, val_loader: Loader, world_size: int, rate_factor: float) -> dict[str, Any]:
    """Return what checkpoints say of lists and batches, to be compared when a run continues.

    `rate_factor` is what the number of machines multiplies learning rates by.
    """
    steps = {
        "clips_per_step": loader.batch_size * loader.accumulate * world_size,
        "steps_per_epoch": loader.num_batches // loader.accumulate,
        "rate_factor": rate_factor,
    }
    return {"train_list": list_record(loader.videos), "val_list": list_record(val_loader.videos), "steps": steps}


def read_checkpoint(
    path: Path, check: Callable[[Path, Content], None], epoch: int | None = None, step: int | None = None
) -> Content:
    """Return a checkpoint's content, checked. Raises BadCheckpointError naming the file, and what `check` raises.

    `epoch` and `step` are those that the file's name says.
    """
    content = load_checkpoint(path)
    try:
        check_content(content, epoch, step)
        check(path, content)
    except BadCheckpointError as error:
        raise BadCheckpointError(f"{path}: {error}") from None
    return content


def _flat(text: str) -> dict[str, Any]:
    """Return the values of a dumped config by dotted key, such as `DATA.NUM_FRAMES`."""
    flat: dict[str, Any] = {}

    def add(values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if isinstance(value, Mapping):
                add(value, f"{prefix}{key}.")
            else:
                flat[f"{prefix}{key}"] = value

    content = yaml.safe_load(text)
    add(content if isinstance(content, Mapping) else {}, "")
    return flat


def _show(values: Mapping[str, Any], key: str) -> str:
    return str(values[key]) if key in values else "not set"
