"""Lists of videos and their labels, read from annotation files, or from folders where there is no such file.

No video is opened. Some are looked up, never all, where files alone do not say where videos are.
"""

import os
from functools import partial
from typing import Literal

from videoattn.data.lists.class_folders import find_split_folder, read_class_folders
from videoattn.data.lists.class_names import check_same_order, read_class_names
from videoattn.data.lists.frame_lists import is_frame_list
from videoattn.data.lists.kinetics.official import read_official_kinetics
from videoattn.data.lists.kinetics.rows import is_official_kinetics
from videoattn.data.lists.path_label import read_kinetics_csv
from videoattn.data.lists.ssv2 import find_json_list, find_labels, read_ssv2
from videoattn.data.lists.video_list import (
    UNLABELLED,
    AnnotationError,
    MissingListError,
    VideoList,
    files_in,
    split_names,
)

__all__ = [
    "UNLABELLED",
    "AnnotationError",
    "MissingListError",
    "VideoList",
    "check_same_order",
    "find_list",
    "read_annotations",
    "read_class_folders",
    "read_class_names",
    "read_kinetics_csv",
    "read_official_kinetics",
    "read_ssv2",
]


def read_annotations(
    dataset: Literal["kinetics", "ssv2"],
    folder: str,
    split: str,
    *,
    separator: str = " ",
    prefix: str = "",
    num_classes: int | None = None,
    class_names: tuple[str, ...] | None = None,
    with_lengths: bool = False,
) -> VideoList:
    """Read the videos of one split, in the format of the files in `folder`.

    ssv2 is the published json files, or without those `folder/{split}.csv`, `path label` lines. kinetics is
    `{split}.csv` in `folder` or `folder/annotations`, either Kinetics' own (recognised by its header) or `path label`
    lines; without such a file, it is the class folders in `{split}` below `prefix` or `folder`. `class_names` are those
    of the model, if known: they number the classes of the official csv and of folders. `with_lengths` allows a number
    before the label in lines of videos. Raises AnnotationError if a list is not as expected, and its subclass
    MissingListError if there is neither a list nor a folder.
    """
    plain = partial(
        read_kinetics_csv, separator=separator, prefix=prefix, num_classes=num_classes, with_lengths=with_lengths
    )
    if dataset == "ssv2":
        if _has_plain_list(folder, split):
            return plain(os.path.join(folder, f"{split}.csv"))
        return _read_ssv2(folder, split, prefix, num_classes, class_names)
    if dataset != "kinetics":
        raise ValueError(f"unknown data set {dataset!r}, expected kinetics or ssv2")
    file = _find_csv(folder, split)
    if file is None:
        place = prefix or folder
        if find_split_folder(place, split) is None:
            raise MissingListError(
                f"{os.path.join(folder, split)}.csv does not exist; {files_in(folder, '.csv')}; nor is there a folder "
                f"{' or '.join(split_names(split))} of class folders in {place or 'the current folder'}"
            )
        return read_class_folders(place, split, num_classes=num_classes, class_names=class_names)
    if is_frame_list(file):
        raise AnnotationError(f"{file}: is a list of frames of Something-Something-V2, expected TRAIN.DATASET ssv2")
    if not is_official_kinetics(file):
        return plain(file)
    train = _find_csv(folder, "train")
    return read_official_kinetics(
        file,
        folder,
        split,
        prefix=prefix,
        num_classes=num_classes,
        class_names=class_names,
        train_file=train if train is not None and is_official_kinetics(train) else None,
    )


def find_list(dataset: str, folder: str, split: str, *, prefix: str = "") -> str | None:
    """Return the file or folder from which `read_annotations` would read a split, or None if there is none."""
    if dataset != "ssv2":
        return _find_csv(folder, split) or find_split_folder(prefix or folder, split)
    if _has_plain_list(folder, split):
        return os.path.join(folder, f"{split}.csv")
    file = find_json_list(folder, split)
    return file if os.path.isfile(file) else None


def _has_plain_list(folder: str, split: str) -> bool:
    """Return True if Something-Something-V2 is listed in `path label` lines, as it is after packing."""
    file = os.path.join(folder, f"{split}.csv")
    return os.path.isfile(file) and not is_frame_list(file) and not os.path.isfile(find_labels(folder))


def _read_ssv2(
    folder: str, split: str, prefix: str, num_classes: int | None, class_names: tuple[str, ...] | None
) -> VideoList:
    videos = read_ssv2(folder, split, prefix=prefix)
    if num_classes is not None and len(videos) and int(videos.labels.max()) >= num_classes:
        raise AnnotationError(
            f"{videos.source}: labels reach {videos.labels.max()}, expected less than NUM_CLASSES {num_classes}"
        )
    check_same_order(videos.class_names, "something-something-v2-labels.json", class_names, "DATA.CLASS_NAMES")
    return videos


def _find_csv(folder: str, split: str) -> str | None:
    """Return the csv file of a split: this project's, else one in a folder or under a name of Kinetics' own."""
    for place in (folder, os.path.join(folder, "annotations")):
        for name in split_names(split):
            file = os.path.join(place, f"{name}.csv")
            if os.path.isfile(file):
                return file
    return None
