"""Class folders, `{split}/{class}/{video}`, as in UCF101, HMDB51 and many data sets of one's own.

Videos may be nested deeper, `{split}/{class}/{person}/{video}`, as in torchvision's DatasetFolder.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator

from videoattn.data.lists.class_names import check_number, check_same_classes, number_classes
from videoattn.data.lists.video_files import VIDEO_ENDINGS, ending_of, is_video_name
from videoattn.data.lists.video_list import AnnotationError, VideoList, check_names, pack, split_names

logger = logging.getLogger("videoattn")

_PICTURES = (".jpg", ".jpeg", ".png")
_NUMBERED = re.compile(r"[0-9]\.[A-Za-z]+$")
# What systems put into folders by themselves, besides hidden files such as .DS_Store and ._x.mp4 (macOS).
_SYSTEM_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found", "$recycle.bin"}
_UNREAD_FOLDERS, _BESIDE_CLASSES = "folders beside frames", "videos beside the class folders"


def find_split_folder(folder: str, split: str) -> str | None:
    """Return the folder of a split, under whichever of its names it exists, or None."""
    places = [os.path.join(folder, name) for name in split_names(split)]
    return next((place for place in places if os.path.isdir(place)), None)


def read_class_folders(
    folder: str, split: str, *, num_classes: int | None = None, class_names: tuple[str, ...] | None = None
) -> VideoList:
    """Return videos and folders of frames at any depth, sorted by class, the folder below the split's, and path.

    Classes are numbered as in `class_names`, else in sorted order. A class without videos has an empty folder. Files
    whose ending is not a video's are counted in a warning and in `left_out`. Raises AnnotationError if the classes are
    not those of `class_names` or of the train folder, and if a class folder contains files but no video.
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
    left_out = Counter[str]([_BESIDE_CLASSES] * len(_Inside(place).videos))
    for name in found:
        videos = _videos_of_class(os.path.join(place, name), left_out)
        paths += [os.path.join(name, video) for video in videos]
        labels += [numbers[name]] * len(videos)
    if not paths:
        raise AnnotationError(f"{place}: its class folders are all empty")
    if left_out:
        logger.warning(
            "%s: %d videos; left out because of their names or places: %s (a list, %s.csv, may name any file)",
            place, len(paths), format_counts(left_out.most_common()), split,
        )  # fmt: skip
    return pack(paths, labels, os.path.abspath(place), place, names, tuple(left_out.most_common()))


def format_counts(left_out: "list[tuple[str, int]] | tuple[tuple[str, int], ...]") -> str:
    """Format the number of files by ending, as in: 3 .txt, 1 .wav."""
    return ", ".join(f"{number} {ending}" for ending, number in left_out)


def _class_folders(folder: str) -> list[str]:
    names = sorted(_Inside(folder).folders)
    if not names:
        raise AnnotationError(f"{folder}: has no folders, expected one a class")
    check_names(names, f"{folder}: a class folder")
    return names


def _videos_of_class(folder: str, left_out: Counter[str]) -> list[str]:
    """Return sorted paths of a class folder's videos and folders of frames; `left_out` counts other files."""
    others, inside = Counter[str](), _Inside(folder)
    videos = sorted(_walk(folder, inside, (os.path.realpath(folder),), others))
    if others and not videos:
        example = next(iter(inside.others + inside.pictures), None)
        raise AnnotationError(
            f"{folder}: has files such as {example or others.most_common(1)[0][0]!r}, expected videos "
            f"({', '.join(VIDEO_ENDINGS[:8])} and others) or folders of frames"
        )
    left_out.update(others)
    return [video.removeprefix(folder + os.sep) for video in videos]


def _walk(folder: str, inside: "_Inside", above: tuple[str, ...], others: Counter[str]) -> Iterator[str]:
    """Yield the videos of a folder and its subfolders; `above` are the real paths of all folders around it."""
    others.update(map(_kind, inside.others + inside.pictures))
    yield from (os.path.join(folder, name) for name in inside.videos)
    for name in inside.folders:
        place = os.path.join(folder, name)
        real = os.path.realpath(place) if os.path.islink(place) else os.path.join(above[-1], name)
        if real in above:
            raise AnnotationError(f"{place}: is a link to a folder that contains it, expected none")
        deeper = _Inside(place)
        if not deeper.is_frames:
            yield from _walk(place, deeper, (*above, real), others)
            continue
        others.update([_UNREAD_FOLDERS] * len(deeper.folders))
        yield place


class _Inside:
    """The contents of a folder by type, without hidden files."""

    def __init__(self, folder: str) -> None:
        self.videos: list[str] = []
        self.pictures: list[str] = []
        self.folders: list[str] = []
        self.others: list[str] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name[-4:] in _PICTURES and name[0] != "." and not entry.is_dir():
                    self.pictures.append(name)  # at once: there may be millions of frames
                elif not _is_hidden(name):
                    self._list_of(entry).append(name)

    def _list_of(self, entry: "os.DirEntry[str]") -> list[str]:
        if entry.is_dir():
            return self.folders
        if is_video_name(entry.name):
            return self.videos
        return self.pictures if ending_of(entry.name) in _PICTURES else self.others

    @property
    def is_frames(self) -> bool:
        """True if the folder stands for a video: it contains frames, or nothing, on which its reader will fail."""
        if self.videos:
            return False
        if self.folders:
            return any(_NUMBERED.search(name) for name in self.pictures)
        return bool(self.pictures) or not self.others


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def _kind(name: str) -> str:
    return ending_of(name).encode(errors="backslashreplace").decode() or "without an ending"
