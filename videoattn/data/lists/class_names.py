"""Names of classes: their file, and errors about names that should agree."""

import difflib
import os
from collections.abc import Collection, Sequence

from videoattn.data.lists.video_list import AnnotationError

_MOST_NAMED = 5
_NO_DATA = "is the data set where the settings say? (`videoattn motion FOLDER` renders a small one)"


def read_class_names(file: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read class names, one a line, in the order of the labels.

    Empty lines at the end are ignored. Raises AnnotationError on an empty line before others, and on an empty file.
    """
    source = os.fspath(file)
    try:
        with open(source, encoding="utf-8-sig") as lines:
            names = [line.strip() for line in lines]
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{source}: is not UTF-8 text: {error}") from error
    except OSError as error:
        if not os.path.isdir(folder := os.path.dirname(os.path.abspath(source))):
            raise AnnotationError(f"{source}: cannot be read, since there is no folder {folder}; {_NO_DATA}") from error
        raise AnnotationError(
            f"{source}: cannot be read: {error.strerror}; DATA.CLASS_NAMES names this file, '' leaves it out"
        ) from error
    while names and not names[-1]:
        names.pop()
    if not names:
        raise AnnotationError(f"{source}: is empty, expected one class name a line")
    if "" in names:
        raise AnnotationError(f"{source}:{names.index('') + 1}: is empty, expected a class name")
    return tuple(names)


def number_classes(names: Sequence[str], source: str) -> dict[str, int]:
    """Return the number of each name. Raises AnnotationError if two classes have the same name."""
    numbers = {name: number for number, name in enumerate(names)}
    if len(numbers) < len(names):
        twice = next(name for number, name in enumerate(names) if numbers[name] != number)
        raise AnnotationError(f"{source}: class {twice!r} occurs twice, expected different names")
    return numbers


def unknown_name(name: str, known: Collection[str], source: str) -> str:
    """Return the part of a message that says where a name was expected, and the nearest one there."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"{name!r}, expected one of {source}" + (f"; the nearest is {nearest[0]!r}" if nearest else "")


def check_same_classes(names: Collection[str], source: str, others: Collection[str], other_source: str) -> None:
    """Raise AnnotationError, naming the classes that only one of two lists has."""
    if set(names) != set(others):
        parts = [
            f"{len(only)} only in {place}: {_some(only)}"
            for only, place in ((set(names) - set(others), source), (set(others) - set(names), other_source))
            if only
        ]
        raise AnnotationError(f"{source} and {other_source} expect the same classes; {'; '.join(parts)}")


def check_same_order(names: Sequence[str] | None, source: str, others: Sequence[str] | None, other_source: str) -> None:
    """Raise AnnotationError if two lists number the same classes differently.

    Underscores count as spaces and capitals as small letters. Lists of different names may differ, since names may have
    been rewritten; None is an unknown list.
    """
    if names is None or others is None:
        return
    ours, theirs = ([name.replace("_", " ").lower() for name in listed] for listed in (names, others))
    if ours == theirs or sorted(ours) != sorted(theirs):
        return
    number = next(number for number, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    raise AnnotationError(
        f"class {number} is {names[number]!r} in {source} and {others[number]!r} in {other_source}; "
        "expected the same order of classes in both (DATA.CLASS_NAMES, if that is set, names those of all lists)"
    )


def check_number(names: Sequence[str], source: str, num_classes: int | None) -> None:
    """Raise AnnotationError unless there are as many classes as the model has."""
    if num_classes is not None and len(names) != num_classes:
        raise AnnotationError(f"{source}: {len(names)} class names, expected MODEL.NUM_CLASSES {num_classes}")


def _some(names: Collection[str]) -> str:
    first = sorted(names)[:_MOST_NAMED]
    return ", ".join(repr(name) for name in first) + (", ..." if len(names) > len(first) else "")
