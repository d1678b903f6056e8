"""Folders of class folders, `{split}/{class}/{video}`, as UCF101, HMDB51 and data of one's own often are."""

import os
from collections.abc import Iterator

from videoattn.data.annotations.class_names import check_number, check_same_classes, number_classes
from videoattn.data.annotations.video_list import AnnotationError, VideoList, pack, split_names

_ENDINGS = (".mp4", ".avi", ".mkv", ".webm", ".mov")


def find_split_folder(folder: str, split: str) -> str | None:
    """The folder of a split, under whichever of its names it exists."""
    places = [os.path.join(folder, name) for name in split_names(split)]
    return next((place for place in places if os.path.isdir(place)), None)


def read_class_folders(
    folder: str, split: str, *, num_classes: int | None = None, class_names: tuple[str, ...] | None = None
) -> VideoList:
    """Videos and folders of frames, sorted by class and name; the class is the name of the folder they lie in.

    Classes are numbered as in `class_names`, else in sorted order. A class without videos has an empty folder. Raises
    AnnotationError where the classes are not those of `class_names` or of the train folder, and where a class folder
    holds files but no video.
    """
    place = find_split_folder(folder, split)
    if place is None:
        raise AnnotationError(f"{folder} has no folder {' or '.join(split_names(split))} of class folders")
    found = _class_folders(place)
    names, named = (class_names, "DATA.CLASS_NAMES") if class_names is not None else (tuple(found), place)
    check_same_classes(found, place, names, named)
    train = find_split_folder(folder, "train")
    if train is not None and train != place and class_names is None:
        check_same_classes(found, place, _class_folders(train), train)
    check_number(names, named, num_classes)
    numbers = number_classes(names, named)
    paths: list[str] = []
    labels: list[int] = []
    for name in found:
        videos = sorted(_videos(os.path.join(place, name)))
        paths += [os.path.join(name, video) for video in videos]
        labels += [numbers[name]] * len(videos)
    if not paths:
        raise AnnotationError(f"{place}: its class folders are all empty")
    return pack(paths, labels, os.path.abspath(place), place, names)


def _class_folders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise AnnotationError(f"{folder}: has no folders, expected one a class")
    return names


def _videos(folder: str) -> Iterator[str]:
    """Names of video files and of folders; hidden ones do not count."""
    other, count = "", 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(_ENDINGS) or entry.is_dir():
                count += 1
                yield entry.name
            else:
                other = other or entry.name
    if other and not count:
        raise AnnotationError(f"{folder}: has files such as {other!r}, expected videos ({', '.join(_ENDINGS)})")
