"""Lists of videos in a few buffers, however long they are, and functions that readers of annotation files share."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from videoattn.data.readers.packed import is_url
from videoattn.files import file_sha256

UNLABELLED, MAX_LABEL = -1, 2**31 - 1
_SPLITS = {"train": ("train",), "val": ("val", "validate", "validation", "valid"), "test": ("test",)}


class AnnotationError(ValueError):
    """An annotation file is invalid; the message names file, line or item, value and expectation."""


class MissingListError(AnnotationError):
    """A split has neither a list nor a folder."""


@dataclass(frozen=True, eq=False)
class VideoList:
    """An immutable list of (path, label); a million videos are three buffers, which forked workers share.

    `paths` contains all paths as UTF-8, the i-th from `offsets[i]` to `offsets[i + 1]`, relative ones below `root`.
    Either may be a URL. A path is anything that `open_video` opens. A label of -1 means that the video has none.
    `source` is the file, or the folder of class folders, that the list was read from; `left_out` counts, by ending, the
    files there that are not listed because of their names or places. Raises AnnotationError on names that can't be
    written into results: names that are not UTF-8, and class names with a line break.
    """

    paths: bytes
    offsets: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32]
    root: str
    source: str
    class_names: tuple[str, ...] | None = None
    left_out: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if len(self.offsets) != len(self.labels) + 1:
            raise ValueError(
                f"expected {len(self.labels) + 1} offsets for {len(self.labels)} labels, got {len(self.offsets)}"
            )
        check_names((self.source, self.root), "a path")
        check_names(self.class_names or (), f"{self.source}: a class name")
        for name in self.class_names or ():
            if "\n" in name or "\r" in name:
                raise AnnotationError(f"{self.source}: class {name!r}, expected a name without line breaks")
        self.offsets.setflags(write=False)
        self.labels.setflags(write=False)

    def __len__(self) -> int:
        return len(self.labels)

    def listed(self, index: int) -> str:
        """Return the path of video `index` as listed."""
        start, end = self.offsets[self._checked(index)], self.offsets[index + 1]
        return self.paths[start:end].decode()

    def path(self, index: int) -> str:
        """Return the path of video `index`, including the root."""
        listed = self.listed(index)
        return listed if is_url(listed) else os.path.join(self.root, listed)

    def label(self, index: int) -> int:
        """Return the class of video `index`, or -1."""
        return int(self.labels[self._checked(index)])

    @property
    def is_labelled(self) -> bool:
        """True if every video has a label."""
        return bool((self.labels >= 0).all())

    def digest(self) -> str:
        """Return the SHA-256 of the file that the list was read from, or, for a folder, of paths and labels."""
        if os.path.isdir(self.source):
            return hashlib.sha256(self.paths + self.offsets.tobytes() + self.labels.tobytes()).hexdigest()
        return file_sha256(self.source)

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"video {index} of {self.source}, which lists {len(self)}")
        return index


def pack(
    paths: Iterable[str],
    labels: Sequence[int] | npt.NDArray[np.int32],
    root: str,
    source: str,
    class_names: tuple[str, ...] | None = None,
    left_out: tuple[tuple[str, int], ...] = (),
) -> VideoList:
    """Return a VideoList of paths and as many labels. Raises AnnotationError on a path that is not UTF-8."""
    paths = list(paths)
    check_names(paths, f"{source}: a path")
    encoded = [path.encode() for path in paths]
    offsets = np.concatenate(([0], np.cumsum([len(path) for path in encoded]))).astype(np.int64)
    return VideoList(b"".join(encoded), offsets, np.asarray(labels, np.int32), root, source, class_names, left_out)


def check_names(names: Iterable[str], what: str) -> None:
    """Raise AnnotationError if a name has bytes that are not UTF-8, or a zero, and so can't be written or opened.

    Python represents such bytes of file names as surrogates; JSON may contain them, too.
    """
    wrong = [name for name in names if not name.isascii() and not _is_text(name) or "\0" in name]
    if wrong:
        others = f"; so have {len(wrong) - 1} others" if len(wrong) > 1 else ""
        raise AnnotationError(
            f"{what} that is not UTF-8 text, or contains a zero byte: {wrong[0]!r}{others}; expected another name "
            "(convmv or mv rename files)"
        )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def split_names(split: str) -> tuple[str, ...]:
    """Return the names that published data sets use for a split, this project's first."""
    if split not in _SPLITS:
        raise ValueError(f"unknown split {split!r}, expected train, val or test")
    return _SPLITS[split]


def files_in(folder: str, ending: str) -> str:
    """Return a sentence that lists the files of a folder with an ending."""
    if not os.path.isdir(folder or "."):
        return f"there is no folder {folder!r}"
    found = sorted(name for name in os.listdir(folder or ".") if name.endswith(ending))
    return f"the folder's {ending} files are: {', '.join(found[:10]) or 'none'}"
