"""Functions that encoding and packing share: paths below a list's folder, settings of earlier runs, new lists."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from videoattn.data.check.checked_list import CheckedList
from videoattn.data.check.report import write_problems
from videoattn.data.lists import VideoList
from videoattn.data.lists.list_lines import format_line, read_lines
from videoattn.data.readers.frame_files import is_frame_range
from videoattn.data.readers.packed import is_url, parse_packed
from videoattn.files import atomic_write

_TAB = "\t"
Bad = Mapping[int, tuple[str, str]]  # kind and detail by the number of a video, from 0


def check_sources(videos: VideoList) -> None:
    """Raise ValueError unless every listed path may be a local video file."""
    for index in range(len(videos)):
        path = videos.path(index)
        found = (
            "is inside a tar" if parse_packed(path) else
            "is a URL" if is_url(path) else
            "is a range of extracted frames" if is_frame_range(path) else ""
        )  # fmt: skip
        if found:
            raise ValueError(f"{videos.source}: video {index + 1}, {path}, {found}; expected a video file")


def relative_path(videos: VideoList, index: int) -> str:
    """Return the path of a video below the folder of its list. Raises ValueError if it is elsewhere."""
    listed = videos.listed(index)
    path = os.path.relpath(listed, videos.root) if os.path.isabs(listed) else os.path.normpath(listed)
    if path.split(os.sep, 1)[0] == os.pardir:
        raise ValueError(
            f"{videos.source}: video {index + 1}, {listed}, expected to lie below {videos.root}; "
            "--prefix or DATA.PATH_PREFIX names another folder"
        )
    return path


def keep_settings(
    file: Path, settings: Mapping[str, Any], products: Iterable[Path], *, overwrite: bool
) -> dict[str, Any]:
    """Record the settings on which the contents of a folder depend, so that a later run uses the same ones or refuses.

    Returns the content of `file`: `settings`, and what an earlier run with the same settings added. Raises ValueError,
    unless `overwrite`, if an earlier run had other settings, or if `file` is missing although some of the `products`,
    which a run would overwrite, exist.
    """
    if not overwrite and file.exists():
        content = _read_state(file)
        for name, value in settings.items():
            earlier = content["settings"].get(name)
            if earlier != value:
                raise ValueError(
                    f"{file}: {name} was {earlier!r}, now {value!r}; expected the same, another --out, or --overwrite"
                )
        return content
    strange = None if overwrite else next((path for path in products if path.exists()), None)
    if strange is not None:
        raise ValueError(f"{strange} exists without {file.name} beside it; expected another --out, or --overwrite")
    content = {"settings": dict(settings)}
    write_json(file, content)
    return content


def _read_state(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
        raise ValueError(f"{file}: expected the settings of an earlier run; --overwrite starts afresh")
    return content


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON, whole or not at all."""
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def unfinished_folder(folder: Path) -> Iterator[Path]:
    """Create a folder for files in progress, emptied of the remains of a killed run, and remove it at the end."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def refuse_own_list(checked: CheckedList, target: Path) -> None:
    """Raise ValueError if a new list would replace the one that is read."""
    if target.exists() and os.path.samefile(checked.videos.source, target):
        raise ValueError(f"{target}: is the list that is read; expected another folder for --out")


def separator_for(checked: CheckedList, paths: bytes) -> str:
    """Return the separator for a new list: the same as before, or a tab if a path would otherwise have to be quoted."""
    return _TAB if checked.separator.encode() in paths else checked.separator


def write_bad_list(checked: CheckedList, bad: Bad, file: Path) -> None:
    """Write the videos that could not be used, in the format of a check."""
    rows = ((checked.videos.path(index), kind, "error", index + 1, detail) for index, (kind, detail) in bad.items())
    write_problems(rows, file)


def rename_lines(checked: CheckedList, names: Iterable[str | None], target: Path) -> None:
    """Write the csv of a plain list with each video's path replaced; lines without a new path are left out."""
    lines = read_lines(checked.videos.source, checked.separator)
    with atomic_write(target) as temporary, open(temporary, "w", encoding="utf-8", newline="") as renamed:
        for (_, content, fields), name in zip(lines, names, strict=True):
            if name is not None:
                end = content[len(content.rstrip(b"\r\n")) :].decode()
                renamed.write(format_line([name, *(field.decode() for field in fields[1:])], checked.separator, end))
