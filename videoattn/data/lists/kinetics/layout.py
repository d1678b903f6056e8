"""Usual layouts of the videos of Kinetics, and a search for the one that a disk has.

Source: file names as in cvdfoundation/kinetics-dataset.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from videoattn.data.lists.kinetics.rows import TIMES, KineticsRows
from videoattn.data.lists.video_list import AnnotationError, split_names

logger = logging.getLogger("videoattn")

_ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".flv")
_MOST_SOUGHT, _ENOUGH_FOUND = 1000, 50


@dataclass(frozen=True)
class Layout:
    """A pattern of paths, `{folder}/{class}/{name}{ending}`; each of the first two may be absent."""

    folder: str
    class_folder: str  # "": none, " ": as the label, "_": with underscores
    has_times: bool
    ending: str

    def folder_of(self, label: str) -> str:
        name = label.replace(" ", "_") if self.class_folder == "_" else label
        return os.path.join(self.folder, name if self.class_folder else "", "")

    def file(self, stem: str) -> str:
        return (stem if self.has_times else stem[:-TIMES]) + self.ending

    def __str__(self) -> str:
        label = {"": "", " ": "{label}", "_": "{label_with_underscores}"}[self.class_folder]
        name = "{youtube_id}_{start:06d}_{end:06d}" if self.has_times else "{youtube_id}"
        return os.path.join(self.folder, label, name + self.ending)


def _layouts(splits: Sequence[str], is_labelled: bool) -> list[Layout]:
    return [
        Layout(folder, class_folder, has_times, ending)
        for has_times in (True, False)
        for class_folder in ((" ", "_", "") if is_labelled else ("",))
        for folder in (*splits, "")
        for ending in _ENDINGS
    ]


def find_layout(rows: KineticsRows, roots: Sequence[str], split: str) -> tuple[str, Layout]:
    """Return the first root and layout that all videos found have in common; up to a thousand are looked up."""
    splits = [name for name in dict.fromkeys((rows.split, split, *split_names(split))) if name]
    is_folder = lru_cache(maxsize=None)(os.path.isdir)
    left = [(root, layout) for root in roots for layout in _layouts(splits, bool(rows.labels))]
    left = [(root, layout) for root, layout in left if is_folder(os.path.join(root, layout.folder))]
    labels, sought, found = list(rows.labels), 0, 0
    for index in _spread(len(rows)):
        label, stem = labels[rows.label_of[index]] if labels else "", rows.stem(index)
        sought += 1
        here = []
        for root, layout in left:
            place = os.path.join(root, layout.folder_of(label))
            if is_folder(place) and os.path.exists(place + layout.file(stem)):
                here.append((root, layout))
        if here:
            left, found = here, found + 1
        if found >= _ENOUGH_FOUND:
            break
    if not found:
        split_folders, endings = " or ".join(splits), " or ".join(_ENDINGS)
        raise AnnotationError(
            f"{rows.source}: none of {sought} videos looked for exists, e.g. {rows.stem(0)}; expected them below "
            f"{' or '.join(roots)} (else set DATA.PATH_PREFIX) as [split/][label/]name, with split "
            f"{split_folders}, label with spaces or underscores, name {{youtube_id}}_{{start:06d}}_{{end:06d}} or "
            f"{{youtube_id}}, ending {endings}"
        )
    root, layout = left[0]
    logger.info("%s: videos are %s; %d of %d looked for exist",
                rows.source, os.path.join(root, str(layout)), found, sought)  # fmt: skip
    return root, layout


def _spread(count: int) -> Iterator[int]:
    """Return up to a thousand places across a list, in an order in which neighbours are far apart."""
    places = range(0, count, max(1, count // _MOST_SOUGHT))[:_MOST_SOUGHT]
    return (places[i * 7919 % len(places)] for i in range(len(places)))  # a prime above their number: each comes once
