"""Labels of horizontally flipped clips: "left" becomes "right", and a turn changes its direction."""

import logging
import re
from collections.abc import Sequence

from videoattn.data.lists.class_names import number_classes, unknown_name
from videoattn.data.lists.video_list import AnnotationError

logger = logging.getLogger("videoattn")

NEVER_FLIPPED = -1
_OPPOSITES = {"left": "right", "right": "left", "clockwise": "counterclockwise", "counterclockwise": "clockwise"}
_DIRECTION = re.compile(r"(?<![^\W\d_])(left|right|clockwise|counterclockwise)(?![^\W\d_])")  # "_" separates words too
_OTHER_SPELLINGS = re.compile(r"(anti-?|counter-)(?=clockwise)")


def flipped_labels(names: Sequence[str] | None, source: str, pairs: Sequence[Sequence[str]] = ()) -> tuple[int, ...]:
    """Return, for each class, the class of its flipped clips, or NEVER_FLIPPED; `names` are those of the list `source`.

    If a name contains the words left, right, clockwise or counterclockwise, the class is swapped with the one whose
    name has the opposite words; if there is no such class, its clips are never flipped. Other classes keep their label.
    `pairs` takes precedence over the words: the two classes of `[name, name]` are swapped, and `[name]` is never
    flipped. The result is logged. Raises AnnotationError if there are no names, if two classes share a name, and if a
    pair names an unknown class.
    """
    if names is None:
        raise AnnotationError(
            f"{source}: DATA.FLIP_LABELS exchange expects class names, which this list does not have; set "
            "DATA.CLASS_NAMES to a file with one name a line, in the order of the labels"
        )
    keys = [_OTHER_SPELLINGS.sub("counter", name.lower()) for name in names]
    by_key, by_name = number_classes(keys, source), number_classes(names, source)
    opposites = [_DIRECTION.sub(lambda match: _OPPOSITES[match[0]], key) for key in keys]
    labels = [by_key.get(opposite, NEVER_FLIPPED) for opposite in opposites]
    for pair in pairs:
        for name in pair:
            if name not in by_name:
                raise AnnotationError(f"DATA.FLIP_PAIRS: unknown class {unknown_name(name, by_name, source)}")
        first, last = by_name[pair[0]], by_name[pair[-1]]
        labels[first], labels[last] = (last, first) if len(pair) == 2 else (NEVER_FLIPPED, NEVER_FLIPPED)
    _check_mutual(labels, names)
    _report(labels, names, source)
    return tuple(labels)


def _check_mutual(labels: Sequence[int], names: Sequence[str]) -> None:
    for number, label in enumerate(labels):
        if label != NEVER_FLIPPED and labels[label] != number:
            raise AnnotationError(
                f"DATA.FLIP_PAIRS: a flip would turn {names[number]!r} into {names[label]!r}, but not the other way "
                f"round; expected a pair or [name] for {names[number]!r}, too"
            )


def _report(labels: Sequence[int], names: Sequence[str], source: str) -> None:
    pairs = [f"{names[number]!r} and {names[label]!r}" for number, label in enumerate(labels) if label > number]
    never = [repr(names[number]) for number, label in enumerate(labels) if label == NEVER_FLIPPED]
    logger.info(
        "%s: flips swap %s; never flipped: %s; the other %d classes keep their label",
        source, ", ".join(pairs) or "no classes", ", ".join(never) or "none", len(names) - 2 * len(pairs) - len(never),
    )  # fmt: skip
