"""Database of a check, which may exceed the memory: listed videos, facts of each file, and problems.

The database is a temporary file that SQLite keeps and removes. All problems are derived here from the probes, so that
other limits or labels need no new look at the files.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from videoattn.data.check.checked_list import CheckedList
from videoattn.data.check.probe import Probe, ProbeTask

# What training can't use, or refuses the list for. A run may count any of the others as errors too.
ERRORS = {
    "missing": "there is no such file",
    "unreadable": "the system refuses to read it",
    "not_a_file": "a folder without frames, a pipe or a device",
    "empty": "0 bytes",
    "not_a_video": "cannot be opened as a video",
    "no_video_stream": "sound alone, for example",
    "damaged": "a frame cannot be decoded",
    "cut_short": "its index lists more frames than there are, or its list more bytes of a tar",
    "zero_size": "frames without pixels",
    "odd_rotation": "rotated by an angle that is no multiple of 90 degrees",
    "wrong_backend": "DATA.DECODING_BACKEND does not support this type of video; another one may",
    "hangs": "the decoder did not end in time",
    "crashes": "the decoder ended its process, or raised an error that would end a run",
    "label_out_of_range": "its label is no class of the model",
    "no_labels": "a list for training or validation has none",
}
WARNINGS = {
    "too_short": "fewer frames than one clip, so that the last is repeated",
    "wrong_length": "not as long as the list or its name says",
    "duplicate": "the same content as an earlier file of the list",
    "duplicate_other_label": "the same content as an earlier file of the list, with another label",
    "leak": "the same content as a training video, in a list for evaluation",
    "listed_twice": "the same path as an earlier line",
    "listed_twice_other_label": "the same path as an earlier line, with another label",
    "class_without_videos": "a class of which the list has no usable video",
}
KINDS = ERRORS | WARNINGS

_TABLES = f"""
PRAGMA journal_mode = OFF;
CREATE TABLE listed (split TEXT, number INTEGER, path TEXT, label INTEGER, stated REAL, PRIMARY KEY (split, number))
    WITHOUT ROWID;
CREATE TABLE probe ({", ".join(Probe._fields)}, PRIMARY KEY (path)) WITHOUT ROWID;
CREATE TABLE problem (split TEXT, number INTEGER, kind TEXT, path TEXT, detail TEXT);
CREATE TABLE fatal (kind TEXT PRIMARY KEY);
CREATE TEMP VIEW usable AS SELECT * FROM listed JOIN probe USING (path) WHERE problem = '';
"""
_UNUSABLE_FILES = """
INSERT INTO problem SELECT split, number, problem, path, detail FROM listed JOIN probe USING (path)
WHERE split = :split AND problem != ''
"""
_LABELS = """
INSERT INTO problem SELECT split, number, 'label_out_of_range', path,
    'label ' || label || ', expected 0 to ' || (:num_classes - 1)
FROM listed WHERE split = :split AND label >= :num_classes
"""
_TOO_SHORT = """
INSERT INTO problem SELECT split, number, 'too_short', path,
    num_frames || ' frames at ' || round(fps, 2) || ' per second'
FROM usable WHERE split = :split AND is_short(num_frames, fps)
"""
_WRONG_LENGTH = """
INSERT INTO problem SELECT split, number, 'wrong_length', path,
    CASE WHEN :in_frames THEN num_frames || ' frames, ' || CAST(stated AS INTEGER) || ' are stated'
    ELSE round(num_frames / fps, 2) || ' s, ' || stated || ' s are stated' END
FROM usable WHERE split = :split
    AND abs(num_frames - stated * iif(:in_frames, 1, fps)) > max(1, :tolerance * stated * iif(:in_frames, 1, fps))
"""
_LISTED_TWICE = """
INSERT INTO problem SELECT split, number, iif(label = first_label, 'listed_twice', 'listed_twice_other_label'), path,
    'first listed as number ' || (first_number + 1) || iif(label = first_label, '', ', with label ' || first_label)
FROM (
    SELECT *, first_value(number) OVER same AS first_number, first_value(label) OVER same AS first_label
    FROM listed WHERE split = :split WINDOW same AS (PARTITION BY path ORDER BY number)
) WHERE number > first_number
"""
_DUPLICATES = """
INSERT INTO problem SELECT split, number, iif(label = first_label, 'duplicate', 'duplicate_other_label'), path,
    'same content as ' || first_path || iif(label = first_label, '', ', which has label ' || first_label)
FROM (
    SELECT *, first_value(path) OVER same AS first_path, first_value(label) OVER same AS first_label
    FROM (SELECT split, min(number) AS number, path, label, digest FROM usable WHERE split = :split GROUP BY path)
    WINDOW same AS (PARTITION BY digest ORDER BY number)
) WHERE path != first_path
"""
_LEAKS = """
INSERT INTO problem SELECT split, number, 'leak', path, 'same content as ' || train_path || ' of train'
FROM usable JOIN (
    SELECT digest, path AS train_path, min(number) FROM usable WHERE split = 'train' GROUP BY digest
) USING (digest) WHERE split = :split AND split != 'train'
"""


class CheckTable:
    """The database of one check; `fatal` are the kinds of problems that make a video unusable."""

    def __init__(self, fatal: Iterable[str]) -> None:
        self._base = sqlite3.connect("", isolation_level=None)
        self._base.executescript(_TABLES)
        self._base.executemany("INSERT INTO fatal VALUES (?)", [(kind,) for kind in fatal])

    def close(self) -> None:
        """Remove the database."""
        self._base.close()

    def rows(self, query: str, **values: object) -> Iterator[Any]:
        """Return the results of a query, row by row."""
        return self._base.execute(query, values)

    def add_list(self, checked: CheckedList, stated: Iterable[float | None]) -> None:
        """Add all videos of a list, with the lengths that it states."""
        videos, split = checked.videos, checked.split
        self._add(
            "INSERT INTO listed VALUES (?, ?, ?, ?, ?)",
            (
                (split, index, videos.path(index), videos.label(index), length)
                for index, length in zip(range(len(videos)), stated, strict=True)
            ),
        )

    def add_probes(self, probes: Iterable[Probe]) -> None:
        """Add the probes of files; a later probe replaces an earlier one."""
        marks = ", ".join("?" * len(Probe._fields))
        self._add(f"INSERT OR REPLACE INTO probe VALUES ({marks})", probes)

    def _add(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        self._base.execute("BEGIN")
        self._base.executemany(statement, rows)
        self._base.execute("COMMIT")

    def tasks(self) -> tuple[int, Iterator[ProbeTask]]:
        """Return the number of listed files, and each once, in the order of the lists, with its earlier probe."""
        self._base.execute("""
            CREATE TABLE task AS
            SELECT path, min(place) AS place, ifnull(size, -1) AS size, ifnull(mtime_ns, -1) AS mtime_ns
            FROM (SELECT path, row_number() OVER () AS place FROM listed) LEFT JOIN probe USING (path)
            GROUP BY path ORDER BY place
        """)
        (number,) = next(self.rows("SELECT count(*) FROM task"))
        rows = self.rows("SELECT path, size, mtime_ns FROM task")  # add_probes does not change it meanwhile
        return number, (ProbeTask(*row) for row in rows)

    def find_problems(self, checked: CheckedList, *, in_frames: bool, tolerance: float) -> None:
        """Fill the table of problems for one list, once all lists and probes are there.

        Stated lengths are frames if `in_frames`, else seconds; `tolerance` is a share of them, at least one frame.
        """
        split, values = checked.split, {"split": checked.split}
        self._base.execute(_UNUSABLE_FILES, values)
        if checked.num_classes is not None:
            self._base.execute(_LABELS, values | {"num_classes": checked.num_classes})
        if checked.is_short is not None:
            is_short: Callable[[int, float], bool] = checked.is_short
            self._base.create_function("is_short", 2, is_short, deterministic=True)
            self._base.execute(_TOO_SHORT, values)
        self._base.execute(_WRONG_LENGTH, values | {"in_frames": in_frames, "tolerance": tolerance})
        for query in (_LISTED_TWICE, _DUPLICATES, _LEAKS):
            self._base.execute(query, values)
        if checked.videos.is_labelled:
            self._find_absent_classes(checked)
        elif checked.needs_labels:
            detail = "training refuses a list without labels"
            self._base.execute("INSERT INTO problem VALUES (?, -1, 'no_labels', '', ?)", (split, detail))

    def _find_absent_classes(self, checked: CheckedList) -> None:
        counts = dict(self.class_counts(checked.split, usable=True))
        names = checked.videos.class_names or ()
        num_classes = checked.num_classes or int(checked.videos.labels.max()) + 1
        if checked.num_classes is None and num_classes > len(checked.videos):
            return  # the labels are no numbers of classes
        for label in range(num_classes):
            if not counts.get(label):
                name = f" ({names[label]})" if label < len(names) else ""
                row = (checked.split, f"class {label}{name}")
                self._base.execute("INSERT INTO problem VALUES (?, -1, 'class_without_videos', '', ?)", row)

    def class_counts(self, split: str, *, usable: bool) -> Iterator[tuple[int, int]]:
        """Return the number of videos with each label: all, or those without a fatal problem."""
        without_bad = f"AND number NOT IN ({_BAD_NUMBERS})" if usable else ""
        return self.rows(
            f"SELECT label, count(*) FROM listed WHERE split = :split AND label >= 0 {without_bad} GROUP BY label",
            split=split,
        )

    def bad_numbers(self, split: str) -> Iterator[int]:
        """Return the videos of a list, numbered from 0 and rising, that have a fatal problem."""
        return (number for (number,) in self.rows(f"{_BAD_NUMBERS} ORDER BY number", split=split))


_BAD_NUMBERS = """
SELECT DISTINCT number FROM problem JOIN fatal USING (kind) WHERE split = :split AND number >= 0
"""
