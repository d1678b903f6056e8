"""Encoding of the videos of some lists for training, in worker processes, and lists of the results.

The results are arranged in a folder as the sources are below theirs. `encode.json` there has the settings, and
`encode.jsonl` the outcome of each source, one line as soon as it is known: a later run encodes what is new or changed.
A result gets its name once it has been checked.
"""

import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from videoattn.data.check.check import open_log
from videoattn.data.check.checked_list import CheckedList, clean_name, list_line, write_class_names, write_clean
from videoattn.data.prepare.lists import (
    check_sources,
    keep_settings,
    refuse_own_list,
    relative_path,
    rename_lines,
    separator_for,
    unfinished_folder,
    write_bad_list,
)
from videoattn.data.prepare.video import EncodeError, EncodeSettings, check_encoder, encode_video
from videoattn.data.readers.decode_error import DecodeError
from videoattn.data.workers.worker_pool import Failed, map_with_timeout
from videoattn.files import atomic_write

ENDING = ".mp4"
SETTINGS_NAME, LOG_NAME = "encode.json", "encode.jsonl"
_NOT_WRITTEN = "not_written"


class Encoded(NamedTuple):
    """The outcome of a source; `problem` is the reason why there is no result, or "".

    `path` is that of the result below the folder. `size` and `mtime_ns` are the source's; -1 if there is none, or if
    another attempt may end differently.
    """

    path: str
    size: int = -1
    mtime_ns: int = -1
    result_size: int = -1
    num_frames: int = 0
    problem: str = ""
    detail: str = ""


class EncodeTask(NamedTuple):
    """A source, the path of its result below the folder, and the outcome of an earlier run, if any."""

    path: str
    source: str
    earlier: Encoded | None


class EncodedList(NamedTuple):
    """A list written to `file`; `bad` has those of `num_listed` videos that were left out, by number from 0."""

    file: Path
    num_listed: int
    bad: dict[int, tuple[str, str]]
    separator: str


def encode_lists(
    lists: Sequence[CheckedList],
    folder: Path,
    settings: EncodeSettings,
    *,
    num_workers: int = 1,
    limit_seconds: float = 600.0,
    overwrite: bool = False,
    progress: bool = False,
) -> list[EncodedList]:
    """Encode the videos of all lists into `folder` and write the lists of the results.

    A source that cannot be used is left out of the list and listed in `bad_{split}.csv`; one that takes longer than
    `limit_seconds` hangs. Raises ValueError if the lists are not of local video files below a folder, if two results
    would have the same name, or if `folder` contains anything else (unless `overwrite`, which replaces it); OSError if
    it cannot be written.
    """
    check_encoder()
    sources = _plan(lists, folder)
    targets = [folder / clean_name(checked) for checked in lists]
    folder.mkdir(parents=True, exist_ok=True)
    keep_settings(folder / SETTINGS_NAME, settings.as_dict(), targets, overwrite=overwrite)
    log = folder / LOG_NAME
    if overwrite:
        log.unlink(missing_ok=True)
    earlier = _read_log(log)
    bad = {path: earlier[path] for path in sources if path in earlier and earlier[path].problem}
    tasks = (EncodeTask(path, source, earlier.pop(path, None)) for path, source in sources.items())
    with unfinished_folder(folder / ".unfinished") as unfinished:
        answers = map_with_timeout(
            Encoder(folder, unfinished, settings), tasks, num_workers=num_workers, limit_seconds=limit_seconds
        )
        with closing(answers):
            _collect(answers, len(sources), log, bad, progress)
    return [_write_list(checked, target, bad) for checked, target in zip(lists, targets, strict=True)]


def _plan(lists: Sequence[CheckedList], folder: Path) -> dict[str, str]:
    """Return every source by the path of its result below `folder`. Raises ValueError as `encode_lists` does."""
    sources: dict[str, str] = {}
    for checked in lists:
        videos = checked.videos
        if os.path.realpath(videos.root) == os.path.realpath(folder / _subfolder(checked)):
            raise ValueError(f"--out {folder}: is the folder of the videos of {videos.source}; expected another one")
        refuse_own_list(checked, folder / clean_name(checked))
        check_sources(videos)
        for index in range(len(videos)):
            path, source = _result_path(checked, index), videos.path(index)
            other = sources.setdefault(path, source)
            if other != source:
                raise ValueError(
                    f"{other} and {source} would both become {path}; expected names that differ before their ending"
                )
    return sources


def _subfolder(checked: CheckedList) -> str:
    """Return the folder in which training looks for the videos of a list: `videos` for Something-Something-V2."""
    return "videos" if checked.is_json else ""


def _result_path(checked: CheckedList, index: int) -> str:
    path = os.path.splitext(relative_path(checked.videos, index))[0] + ENDING
    return os.path.join(_subfolder(checked), path)


def _read_log(log: Path) -> dict[str, Encoded]:
    """Return the last outcome of each source; lines that are cut off are skipped."""
    known: dict[str, Encoded] = {}
    if log.exists():
        with open(log, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    encoded = Encoded(**json.loads(line))
                except (ValueError, TypeError):
                    continue
                known[encoded.path] = encoded
    return known


def _collect(
    answers: Iterable[tuple[EncodeTask, Encoded | None | Failed]],
    num_tasks: int,
    log: Path,
    bad: dict[str, Encoded],
    progress: bool,
) -> None:
    """Log each answer as it arrives and update `bad`. Raises OSError if results cannot be written."""
    from tqdm import tqdm

    with open_log(log) as lines, tqdm(total=num_tasks, desc="encoding", unit="video", disable=not progress) as bar:
        for task, answer in answers:
            if isinstance(answer, Failed):
                # without a size: next time the disk may answer, or the memory suffice
                answer = Encoded(
                    task.path, problem="hangs" if answer.kind == "hangs" else "crashes", detail=answer.reason
                )
            if answer is not None:
                if answer.problem == _NOT_WRITTEN:
                    raise OSError(answer.detail)
                lines.write(json.dumps(answer._asdict()) + "\n")
                bad.pop(task.path, None)
                if answer.problem:
                    bad[task.path] = answer
                bar.set_postfix(unusable=len(bad), refresh=False)
            bar.update()


@dataclass(frozen=True)
class Encoder:
    """An encoder of one source at a time.

    It returns None if an earlier run has encoded it, and neither source nor result has changed.
    """

    folder: Path
    unfinished: Path
    settings: EncodeSettings

    def __call__(self, task: EncodeTask) -> Encoded | None:
        make, result = partial(Encoded, task.path), self.folder / task.path
        try:
            status = os.stat(task.source)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no file can have such a name
            return make(problem="missing", detail="does not exist")
        except OSError as error:
            return make(problem="unreadable", detail=str(error.strerror))
        make = partial(make, size=status.st_size, mtime_ns=status.st_mtime_ns)
        if task.earlier is not None and self._is_done(task.earlier, status):
            return None
        if not stat.S_ISREG(status.st_mode):
            return make(problem="not_a_file", detail="is a folder (extracted frames are not encoded), pipe or device")
        if not status.st_size:
            return make(problem="empty", detail="has 0 bytes")
        try:
            result.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(result, self.unfinished) as temporary:
                num_frames = encode_video(os.path.abspath(task.source), temporary, self.settings)
                result_size = temporary.stat().st_size
        except (DecodeError, EncodeError) as error:
            return make(problem=error.kind, detail=str(error).removeprefix(f"{os.path.abspath(task.source)}: "))
        except OSError as error:
            return make(problem=_NOT_WRITTEN, detail=str(error))
        return make(result_size=result_size, num_frames=num_frames)

    def _is_done(self, earlier: Encoded, status: os.stat_result) -> bool:
        if (earlier.size, earlier.mtime_ns) != (status.st_size, status.st_mtime_ns):
            return False
        try:
            return bool(earlier.problem) or (self.folder / earlier.path).stat().st_size == earlier.result_size
        except OSError:
            return False


def _write_list(checked: CheckedList, target: Path, results: Mapping[str, Encoded]) -> EncodedList:
    """Write the list with the names of results, and the list of sources without one."""
    videos, separator, folder = checked.videos, checked.separator, target.parent
    bad: dict[int, tuple[str, str]] = {}
    for index in range(len(videos)):
        encoded = results.get(_result_path(checked, index))
        if encoded is not None:
            bad[index] = (encoded.problem, encoded.detail)
    names = (None if index in bad else _result_path(checked, index) for index in range(len(videos)))
    if checked.is_json:
        write_clean(checked, bad, folder)
    elif checked.is_plain:
        rename_lines(checked, names, target)
    else:
        separator = separator_for(checked, videos.paths)
        with atomic_write(target) as temporary, open(temporary, "w", encoding="utf-8", newline="") as lines:
            for index, name in enumerate(names):
                if name is not None:
                    lines.write(list_line(name, videos.label(index), separator))
    if not checked.is_json:
        write_class_names(videos, folder)
    write_bad_list(checked, bad, folder / f"bad_{checked.split}.csv")
    return EncodedList(target, len(videos), bad, separator)
