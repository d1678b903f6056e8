"""Official lists of Kinetics: numbers of the labels, and paths of the videos."""

import logging
import os
from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from videoattn.data.lists.class_names import check_number, number_classes, unknown_name
from videoattn.data.lists.kinetics.layout import Layout, find_layout
from videoattn.data.lists.kinetics.rows import TIMES, KineticsRows, read_rows
from videoattn.data.lists.video_list import UNLABELLED, AnnotationError, VideoList

logger = logging.getLogger("videoattn")


def read_official_kinetics(
    file: str,
    folder: str,
    split: str,
    *,
    prefix: str = "",
    num_classes: int | None = None,
    class_names: tuple[str, ...] | None = None,
    train_file: str | None = None,
) -> VideoList:
    """Read an official list with the videos below `prefix`, or else below `folder` or `folder/videos`.

    Classes are numbered as in `class_names`, else by the alphabetical order of the labels in `train_file`, else in the
    file itself. The layout is decided by the first videos that exist. Raises AnnotationError if a line is invalid, a
    label is unknown, or none of the videos looked up exists.
    """
    rows = read_rows(file)
    names, source = class_names, "DATA.CLASS_NAMES"
    if names is None:
        source = train_file or file
        names = _sorted_labels(rows if source == file else read_rows(source), num_classes)
    labels = np.full(len(rows), UNLABELLED, np.int32)
    if rows.labels:
        labels = _numbers(rows, names or (), source)[np.frombuffer(rows.label_of, np.int32)]
    root, layout = find_layout(rows, [prefix] if prefix else [folder, os.path.join(folder, "videos")], split)
    paths, offsets = _paths(rows, layout)
    return VideoList(paths, offsets, labels, os.path.abspath(root), file, names)


def _sorted_labels(rows: KineticsRows, num_classes: int | None) -> tuple[str, ...] | None:
    """Return the labels in alphabetical order, and log them; None if there are none."""
    names = tuple(sorted(rows.labels))
    if not names:
        return None
    check_number(names, f"{rows.source}, whose labels are the classes, since DATA.CLASS_NAMES is not set", num_classes)
    logger.info(
        "classes: the %d labels of %s in alphabetical order, 0 %s to %d %s",
        len(names), rows.source, names[0], len(names) - 1, names[-1],
    )  # fmt: skip
    return names


def _numbers(rows: KineticsRows, names: Sequence[str], source: str) -> npt.NDArray[np.int32]:
    """Return the class of each of the labels of `rows`."""
    numbers = number_classes(names, source)
    for label, line in rows.labels.items():
        if label not in numbers:
            raise AnnotationError(f"{rows.source}:{line}: unknown label {unknown_name(label, numbers, source)}")
    return np.array([numbers[label] for label in rows.labels], np.int32)


def _paths(rows: KineticsRows, layout: Layout) -> tuple[bytes, npt.NDArray[np.int64]]:
    """Return all paths and their offsets, as in VideoList."""
    folders = [layout.folder_of(label).encode() for label in rows.labels] or [layout.folder_of("").encode()]
    stems, ends, label_of = rows.stems, rows.ends, rows.label_of
    cut, ending = 0 if layout.has_times else TIMES, layout.ending.encode()
    blob, offsets = bytearray(), array("q", [0])
    for index in range(len(rows)):
        blob += folders[label_of[index]]
        blob += stems[ends[index] : ends[index + 1] - cut]
        blob += ending
        offsets.append(len(blob))
    return bytes(blob), np.frombuffer(offsets, np.int64)
