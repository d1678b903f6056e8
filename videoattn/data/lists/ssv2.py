"""Something-Something-V2: its published json files, with videos, folders of frames, or PySlowFast's lists of frames."""

import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from videoattn.data.lists.class_names import unknown_name
from videoattn.data.lists.frame_lists import is_frame_list, read_frame_list
from videoattn.data.lists.list_lines import undecodable_place
from videoattn.data.lists.list_mistakes import is_whole_number
from videoattn.data.lists.video_list import (
    UNLABELLED,
    AnnotationError,
    MissingListError,
    VideoList,
    check_names,
    files_in,
    pack,
    split_names,
)

logger = logging.getLogger("videoattn")

_FILES = {"train": "train", "val": "validation", "test": "test"}
_ENDINGS = (".webm", ".mp4", ".mkv", ".avi", ".mov", "")  # "": a folder of frames
_MOST_SOUGHT, _MOST_DIGITS = 100, 9


def read_ssv2(folder: str, split: str, *, prefix: str = "") -> VideoList:
    """Read the published json files, under the names of older or newer downloads, and find the videos.

    If `folder/{split}.csv` is a list of frames, a video is the frames that it lists, below `prefix` or `folder`. Videos
    that it lacks are named in a warning; they are left out of train, and kept for an evaluation to fail on. Otherwise a
    video is `{prefix or folder/videos}/{id}.webm`, with another ending or a folder of frames `{id}`, as decided by the
    first that exists. The test split has no labels; `class_names` is always set. Raises AnnotationError on an invalid
    file, on a template that the labels file does not have, and on frames of a video that the json file does not have.
    """
    split_names(split)
    classes_file = find_labels(folder)
    classes, class_names = _read_classes(classes_file)
    source = find_json_list(folder, split)
    names, labels = _read_videos(source, classes, classes_file, needs_labels=split != "test")
    frame_list = os.path.join(folder, f"{split}.csv")
    if is_frame_list(frame_list):
        paths = _frame_paths(frame_list, source, names)
        kept = [i for i in range(len(names)) if names[i] in paths or split != "train"]
        return pack(
            [paths.get(names[i], names[i]) for i in kept],
            [labels[i] for i in kept],
            prefix or os.path.abspath(folder),
            source,
            class_names,
        )
    root = prefix or os.path.join(os.path.abspath(folder), "videos")
    ending = _find_ending(root, names)
    if ending is None:
        logger.warning("%s: none of the first videos exists, e.g. %s.webm", source, os.path.join(root, names[0]))
        ending = _ENDINGS[0]
    return pack([name + ending for name in names], labels, root, source, class_names)


def find_labels(folder: str) -> str:
    """Return the path of the file that numbers the classes."""
    return _find(folder, "labels")


def find_json_list(folder: str, split: str) -> str:
    """Return the path of the list of a split, whether or not it exists."""
    return _find(folder, _FILES[split])


def _find(folder: str, name: str) -> str:
    """Return a json file under the name of older downloads, or under that of newer ones if only that exists."""
    file, newer = os.path.join(folder, f"something-something-v2-{name}.json"), os.path.join(folder, f"{name}.json")
    return newer if os.path.isfile(newer) and not os.path.isfile(file) else file


def _find_ending(root: str, names: Sequence[str]) -> str | None:
    places = ((os.path.join(root, name), ending) for name in names[:_MOST_SOUGHT] for ending in _ENDINGS)
    return next((ending for place, ending in places if os.path.exists(place + ending)), None)


def _frame_paths(frame_list: str, source: str, names: Sequence[str]) -> dict[str, str]:
    """Return the frames of each video; `names` from `source` must contain all, and those without are warned of."""
    frames = read_frame_list(frame_list)
    known = set(names)
    for name, (line, _) in frames.items():
        if name not in known:
            raise AnnotationError(f"{frame_list}:{line}: video {name}, which {source} does not have")
    missing = [name for name in names if name not in frames]
    if missing:
        logger.warning(
            "%s has no frames of %d of the %d videos of %s: %s",
            frame_list, len(missing), len(names), source, ", ".join(missing[:5]) + (", ..." if missing[5:] else ""),
        )  # fmt: skip
    return {name: path for name, (_, path) in frames.items()}


def _read_videos(
    source: str, classes: dict[str, int], classes_file: str, *, needs_labels: bool
) -> tuple[list[str], list[int]]:
    """Return ids and labels of a list, in its order."""
    items = _read_json(source)
    if not isinstance(items, list) or not items:
        raise AnnotationError(f"{source}: expected a list of videos, got {_kind(items)}")
    names, labels = [], []
    for index, item in enumerate(items):
        if isinstance(item, _Repeating):
            raise AnnotationError(f"{source}: item {index}: key {item.repeated!r} occurs twice, expected once")
        name = item.get("id") if isinstance(item, dict) else None
        if not isinstance(name, str | int) or isinstance(name, bool) or not str(name):
            raise AnnotationError(f"{source}: item {index}: expected an object with an id, got {_kind(item)}")
        check_names((str(name),), f"{source}: item {index}: an id")
        names.append(str(name))
        if "template" not in item:
            if needs_labels:
                raise AnnotationError(f"{source}: item {index} (id {item['id']}): has no template, so no label")
            labels.append(UNLABELLED)
            continue
        template = str(item["template"]).replace("[", "").replace("]", "")
        if template not in classes:
            unknown = unknown_name(template, classes, classes_file)
            raise AnnotationError(f"{source}: item {index} (id {item['id']}): unknown template {unknown}")
        labels.append(classes[template])
    return names, labels


def _read_classes(file: str) -> tuple[dict[str, int], tuple[str, ...]]:
    content = _read_json(file)
    if not isinstance(content, dict) or not content:
        raise AnnotationError(f"{file}: expected an object of template: class number, got {_kind(content)}")
    if isinstance(content, _Repeating):
        raise AnnotationError(f"{file}: template {content.repeated!r} occurs twice, expected once")
    names: dict[int, str] = {}
    for template, value in content.items():
        text = str(value)
        is_number = is_whole_number(text) and len(text) <= _MOST_DIGITS and not isinstance(value, bool)
        if not is_number or int(text) >= len(content) or int(text) in names:
            raise AnnotationError(
                f"{file}: class {text[:60]!r} of {template!r}, expected each number from 0 to {len(content) - 1} once"
            )
        names[int(text)] = template
    ordered = tuple(names[number] for number in range(len(names)))
    return {name: number for number, name in enumerate(ordered)}, ordered


def _read_json(file: str) -> Any:
    if not os.path.isfile(file):
        raise MissingListError(f"{file} does not exist; {files_in(os.path.dirname(file), '.json')}")
    try:
        with open(file, encoding="utf-8-sig") as stream:
            return json.load(stream, object_pairs_hook=_object, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{file}:{error.lineno}: is not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{file}: is not UTF-8 text: {undecodable_place(file)}") from error
    except RecursionError as error:
        raise AnnotationError(f"{file}: can't be read as JSON: it has thousands of brackets in each other") from error
    except OSError as error:
        raise AnnotationError(f"{file}: cannot be read: {error.strerror}") from error


class _Repeating(dict[str, Any]):
    """A JSON object in which the key `repeated` occurs more than once."""

    repeated = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) == len(pairs):
        return content
    repeating, names = _Repeating(content), [name for name, _ in pairs]
    repeating.repeated = next(name for name in names if names.count(name) > 1)
    return repeating


def _integer(text: str) -> int | str:
    """Return a whole number, or its text if Python might refuse to convert so many digits."""
    return int(text) if len(text) < 20 else text


def _kind(value: object) -> str:
    return f"{type(value).__name__} {str(value)[:60]!r}"
