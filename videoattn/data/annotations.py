"""Lists of videos and their labels, read from annotation files alone: no video is opened, none is even looked for.

Relative paths are taken below `prefix` where one is given, else below the annotation file's own folder.
"""

import csv
import difflib
import json
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

UNLABELLED = -1
_MAX_LABEL = 2**31 - 1
_SSV2_FILES = {"train": "train", "val": "validation", "test": "test"}
_QUOTE = b'"'


class AnnotationError(ValueError):
    """An annotation file does not say what it should; the message names file, line or item, value and expectation."""


@dataclass(frozen=True, eq=False)
class VideoList:
    """An immutable list of (path, label); a million videos are three buffers, which forked workers share.

    `paths` holds all paths as UTF-8, the i-th from `offsets[i]` to `offsets[i + 1]`, relative ones below `root`.
    A label of -1 means that the video has none. `source` is the file that the list was read from.
    """

    paths: bytes
    offsets: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32]
    root: str
    source: str
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.offsets) != len(self.labels) + 1:
            raise ValueError(
                f"expected {len(self.labels) + 1} offsets for {len(self.labels)} labels, got {len(self.offsets)}"
            )
        self.offsets.setflags(write=False)
        self.labels.setflags(write=False)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Where video `index` lies."""
        start, end = self.offsets[self._checked(index)], self.offsets[index + 1]
        return os.path.join(self.root, self.paths[start:end].decode())

    def label(self, index: int) -> int:
        """The class of video `index`, or -1."""
        return int(self.labels[self._checked(index)])

    @property
    def is_labelled(self) -> bool:
        """Whether every video has a label."""
        return bool((self.labels >= 0).all())

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"video {index} of {self.source}, which lists {len(self)}")
        return index


def read_annotations(
    dataset: Literal["kinetics", "ssv2"],
    folder: str,
    split: str,
    *,
    separator: str = " ",
    prefix: str = "",
    num_classes: int | None = None,
) -> VideoList:
    """The videos of one split: `folder/{split}.csv` for kinetics, the published json files for ssv2."""
    if dataset == "ssv2":
        videos = read_ssv2(folder, split, prefix=prefix)
        if num_classes is not None and len(videos) and int(videos.labels.max()) >= num_classes:
            raise AnnotationError(
                f"{videos.source}: labels reach {videos.labels.max()}, expected less than NUM_CLASSES {num_classes}"
            )
        return videos
    if dataset != "kinetics":
        raise ValueError(f"unknown data set {dataset!r}, expected kinetics or ssv2")
    file = os.path.join(folder, f"{split}.csv")
    if not os.path.isfile(file):
        raise AnnotationError(f"{file} does not exist; {_listing(folder, '.csv')}")
    return read_kinetics_csv(file, separator=separator, prefix=prefix, num_classes=num_classes)


def read_kinetics_csv(
    file: str | os.PathLike[str], *, separator: str = " ", prefix: str = "", num_classes: int | None = None
) -> VideoList:
    """A file without header, one video a line: `path`, `path label` or `path number label` (the number is ignored).

    Either all lines have a label or none. With a comma, fields may be quoted. A path with spaces needs another
    separator. Raises AnnotationError at the first line that is not as described.
    Source: PySlowFast, datasets/kinetics.py. Differs: a video without a label gets -1, not class 0.
    """
    source = os.fspath(file)
    if len(separator) != 1 or separator in '\r\n"':
        raise ValueError(f"separator {separator!r}, expected one character")
    blob, ends, labels = bytearray(), array("q", [0]), array("i")
    delimiter = separator.encode()
    limit = _MAX_LABEL if num_classes is None else num_classes - 1
    labelled: bool | None = None
    try:
        with open(source, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                fields = line.rstrip(b"\r\n").split(delimiter)
                if not line.isascii() or _QUOTE in line:
                    fields = _slow_fields(line, separator, f"{source}:{number}")
                count = len(fields)
                path, label = fields[0], fields[-1]
                if not path or count > 3 or (count == 3 and separator == " " and not fields[1].isdigit()):
                    raise AnnotationError(f"{source}:{number}: {_wrong_fields(line, fields, separator)}")
                if count == 1:
                    value = UNLABELLED
                elif label.isdigit() and len(label) < 11 and (value := int(label)) <= limit:
                    pass
                else:
                    expected = "0 or more" if num_classes is None else f"from 0 to {num_classes - 1}"
                    raise AnnotationError(
                        f"{source}:{number}: label {label.decode()!r} of {path.decode()!r}, "
                        f"expected a whole number {expected}"
                    )
                if (count > 1) is not labelled:
                    if labelled is not None:
                        raise AnnotationError(
                            f"{source}:{number}: {line.decode().strip()!r} {'lacks' if labelled else 'has'} a label, "
                            f"unlike the lines before it; expected labels (after {separator!r}) in all lines or in none"
                        )
                    labelled = count > 1
                blob += path
                ends.append(len(blob))
                labels.append(value)
    except OSError as error:
        raise AnnotationError(f"{source}: cannot be read: {error.strerror}") from error
    if not labels:
        raise AnnotationError(f"{source}: is empty, expected one video a line: path{separator}label")
    root = prefix or os.path.dirname(os.path.abspath(source))
    return VideoList(bytes(blob), np.frombuffer(ends, np.int64), np.frombuffer(labels, np.int32), root, source)


def read_ssv2(folder: str, split: str, *, prefix: str = "") -> VideoList:
    """Something-Something-V2 from its published json files; videos are `{prefix or folder/videos}/{id}.webm` (or .mp4).

    Which of the two endings is decided by the first video. The test split has no labels; `class_names` is always set.
    Raises AnnotationError, also on a template that the labels file does not have.
    """
    if split not in _SSV2_FILES:
        raise ValueError(f"unknown split {split!r}, expected train, val or test")
    classes_file = os.path.join(folder, "something-something-v2-labels.json")
    source = os.path.join(folder, f"something-something-v2-{_SSV2_FILES[split]}.json")
    classes, class_names = _read_ssv2_classes(classes_file)
    items = _read_json(source)
    if not isinstance(items, list) or not items:
        raise AnnotationError(f"{source}: expected a list of videos, got {_kind(items)}")
    names, labels = [], np.full(len(items), UNLABELLED, np.int32)
    for index, item in enumerate(items):
        if not isinstance(item, dict) or not isinstance(item.get("id"), str | int) or not str(item["id"]):
            raise AnnotationError(f"{source}: item {index}: expected an object with an id, got {_kind(item)}")
        names.append(str(item["id"]))
        if "template" not in item:
            if split != "test":
                raise AnnotationError(f"{source}: item {index} (id {item['id']}): has no template, so no label")
            continue
        template = str(item["template"]).replace("[", "").replace("]", "")
        if template not in classes:
            nearest = difflib.get_close_matches(template, classes, n=1, cutoff=0.0)[0]
            raise AnnotationError(
                f"{source}: item {index} (id {item['id']}): unknown template {template!r}, "
                f"expected one of {classes_file}; the nearest is {nearest!r}"
            )
        labels[index] = classes[template]
    root = prefix or os.path.join(os.path.abspath(folder), "videos")
    first = os.path.join(root, names[0])
    ending = ".mp4" if not os.path.exists(first + ".webm") and os.path.exists(first + ".mp4") else ".webm"
    paths = [(name + ending).encode() for name in names]
    offsets = np.concatenate(([0], np.cumsum([len(path) for path in paths]))).astype(np.int64)
    return VideoList(b"".join(paths), offsets, labels, root, source, class_names)


def read_class_names(file: str | os.PathLike[str]) -> tuple[str, ...]:
    """One class name a line, in the order of the labels. Raises AnnotationError on an empty line or file."""
    source = os.fspath(file)
    try:
        with open(source, encoding="utf-8-sig") as lines:
            names = tuple(line.strip() for line in lines)
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{source}: is not UTF-8 text: {error}") from error
    except OSError as error:
        raise AnnotationError(f"{source}: cannot be read: {error.strerror}") from error
    if not names:
        raise AnnotationError(f"{source}: is empty, expected one class name a line")
    if "" in names:
        raise AnnotationError(f"{source}:{names.index('') + 1}: is empty, expected a class name")
    return names


def _slow_fields(line: bytes, separator: str, place: str) -> list[bytes]:
    """The fields of a line that is not plain ASCII or may hold quoted fields."""
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{place}: {line.strip()!r} is not UTF-8 text: byte {error.start + 1}") from error
    if separator != "," or '"' not in text:
        return [field.encode() for field in text.split(separator)]
    try:
        return [field.encode() for field in next(csv.reader([text], strict=True))]
    except csv.Error as error:
        raise AnnotationError(f"{place}: {text!r}: {error}; expected quoted fields to end on their line") from error


def _wrong_fields(line: bytes, fields: Sequence[bytes], separator: str) -> str:
    text = line.decode().rstrip("\r\n")
    expected = f"expected path{separator}label with separator {separator!r}"
    if not text.strip():
        return f"is an empty line, {expected}"
    if not fields[0]:
        return f"{text!r} has no path, {expected}"
    hint = "; a path with spaces needs another separator" if separator == " " else ""
    return f"{text!r} has {len(fields)} fields, {expected}, or a number between the two{hint}"


def _read_ssv2_classes(file: str) -> tuple[dict[str, int], tuple[str, ...]]:
    content = _read_json(file)
    if not isinstance(content, dict) or not content:
        raise AnnotationError(f"{file}: expected an object of template: class number, got {_kind(content)}")
    names: dict[int, str] = {}
    for template, value in content.items():
        if not str(value).isdecimal() or int(value) >= len(content) or int(value) in names:
            raise AnnotationError(
                f"{file}: class {value!r} of {template!r}, expected each number from 0 to {len(content) - 1} once"
            )
        names[int(value)] = template
    ordered = tuple(names[number] for number in range(len(names)))
    return {name: number for number, name in enumerate(ordered)}, ordered


def _read_json(file: str) -> Any:
    if not os.path.isfile(file):
        raise AnnotationError(f"{file} does not exist; {_listing(os.path.dirname(file), '.json')}")
    try:
        with open(file, encoding="utf-8") as stream:
            return json.load(stream)
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{file}:{error.lineno}: is not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{file}: is not UTF-8 text: {error}") from error
    except OSError as error:
        raise AnnotationError(f"{file}: cannot be read: {error.strerror}") from error


def _listing(folder: str, ending: str) -> str:
    if not os.path.isdir(folder or "."):
        return f"there is no folder {folder!r}"
    found = sorted(name for name in os.listdir(folder or ".") if name.endswith(ending))
    return f"the folder's {ending} files are: {', '.join(found[:10]) or 'none'}"


def _kind(value: object) -> str:
    return f"{type(value).__name__} {str(value)[:60]!r}"
