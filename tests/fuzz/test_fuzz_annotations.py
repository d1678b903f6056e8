"""Annotation lines with one mutation each are read as what they say, or refused by file and line.

What a list says is told by readings of a few lines each, which share no code with the package.
"""

import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.data.conftest import write_video
from tests.fuzz.time_limit import Hang, time_limit
from videoattn.data.lists import VideoList, read_annotations
from videoattn.data.prepare.index import index_shards
from videoattn.data.prepare.shard import ShardSample, write_shard

Rows = list[tuple[str, int]]
VIDEOS = ("a.mp4", "b.mp4", "sub/c.mp4", "d e,f;g.mp4")
FRAMES = 12
HEADER = "label,youtube_id,time_start,time_end,split"
FRAME_HEADER = "original_vido_id video_id frame_id path labels"
NUM_CASES, LIMIT_SECONDS = 540, 30
LABELS = ("-1", "1.0", "1e0", "+1", "0x1", "1_0", "", "99999999999", "2147483648", "0,1", "0;1", "0 1", "01", " 1", "x",
          "9" * 5000, "\uff11", "\u0661", "1\u00a0", "None")  # fmt: skip
PIECES = (b'"', b'""', b"\r", b"\0", b"\xef\xbb\xbf", b"\xff", b"\xe9", b"\t", b",", b";", b" ", b"|", b"\n", b"\n\n",
          b"#", b"..", b"/", b"\\", b"{", b"}", b"{1..3}", b"@", b"+", b"0", b"7", b"-", b"\xc2\x85", b"\xe2\x80\xa8",
          b"'", b"s3://bucket/", b"\xed\xa0\x80", b"[", b"]", b":", b"null", b"true")  # fmt: skip


class Format(NamedTuple):
    """A list of a folder: its file, its lines without the header, how it is read, and what it says."""

    file: Path
    header: str
    lines: list[str]
    separator: str
    read: Callable[[], VideoList]
    reading: Callable[[bytes], Rows | None]
    rows: Callable[[VideoList], Rows]


def records(text: str, separator: str) -> list[list[str]] | None:
    """The fields of each line of a csv text, by RFC 4180 and the ends of lines LF or CRLF; None where it is none."""
    rows, row, field, place = [], [], "", 0
    while place < len(text):
        if text[place] == '"' and not field:
            closing = place + 1
            while text[closing : closing + 2] == '""' or text[closing : closing + 1] not in ('"', ""):
                closing += 2 if text[closing] == '"' else 1
            field = text[place + 1 : closing].replace('""', '"')
            place = closing + 1
            if closing == len(text) or (
                text[place : place + 1] not in ("", "\n", separator) and text[place : place + 2] != "\r\n"
            ):
                return None
        while place < len(text) and text[place] not in ("\n", separator):
            field, place = field + text[place], place + 1
        row.append(field)
        field = ""
        if place == len(text) or text[place] == "\n":
            row[-1] = row[-1].removesuffix("\r")
            rows.append(row)
            row = []
        place += 1
    if row:  # the text ends in a separator
        rows.append([*row, ""])
    return rows


def text_of(content: bytes) -> str | None:
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        return None


def is_label(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,10}", text, re.ASCII) is not None and int(text) < 2**31


def plain_reading(folder: Path, separator: str, content: bytes) -> Rows | None:
    text = text_of(content)
    rows = None if text is None else records(text, separator)
    while rows and not "".join(rows[-1]).strip():
        rows.pop()
    if not rows or len({len(row) > 1 for row in rows}) > 1:
        return None
    listed: Rows = []
    for row in rows:
        path, label = row[0], row[-1] if len(row) > 1 else "-1"
        if not path or (label != "-1" and not is_label(label)) or "\0" in path:
            return None
        place = os.path.join(folder, path)
        has_ending = re.search(r"\.(mp4|tar/.*@[0-9]+\+[0-9]+)$", path) is not None
        names_a_file = os.path.isfile(place) or (has_ending and not os.path.isdir(place))
        if len(row) > 3 or (len(row) == 3 and (not is_label(row[1]) or names_a_file)):
            return None
        listed.append((path, int(label)))
    return listed


def official_reading(content: bytes) -> Rows | None:
    text = text_of(content)
    if text is None:
        return None
    lines = text.replace("\r\n", "\n").replace("\r", "\n")  # a carriage return alone ends a line of these, too
    rows = records(lines.removeprefix(HEADER + "\n"), ",")
    if rows is None:
        return None
    listed: Rows = []
    for row in [row for row in rows if row != [""]]:
        if len(row) != 5 or row[0] not in ("clap", "wave") or row[4] != "train" or not row[1]:
            return None
        if not all(re.fullmatch("[0-9]{1,6}", time, re.ASCII) for time in row[2:4]):
            return None
        start, end = (int(time) for time in row[2:4])
        listed.append((f"train/{row[0]}/{row[1]}_{start:06d}_{end:06d}.mp4", ("clap", "wave").index(row[0])))
    return listed


def json_reading(content: bytes) -> Rows | None:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    try:
        items = json.loads(content.decode("utf-8-sig"), object_pairs_hook=once)
        classes = {"Moving something up": 0, "Moving something down": 1}
        for item in items:
            assert isinstance(item["id"], str) or type(item["id"]) is int
            str(item["id"]).encode()
        return [(f"{item['id']}.mp4", classes[item["template"].replace("[", "").replace("]", "")]) for item in items]
    except (ValueError, AssertionError, KeyError, TypeError, AttributeError):
        return None


def frame_reading(content: bytes) -> Rows | None:
    text = text_of(content)
    if text is None:
        return None
    frames: dict[str, list[str]] = {}
    for line in text.rstrip().split("\n")[1:]:
        fields = line.encode().split()  # spaces of ASCII
        if len(fields) != 5:
            return None
        frames.setdefault(fields[0].decode(), []).append(fields[3].decode().strip('"'))
    if not set(frames) <= {"7", "8"}:
        return None
    return [(path, int(name == "8")) for name in ("7", "8") for path in frames.get(name, [])]


def expanded(videos: VideoList) -> Rows:
    """The frames of ranges one by one."""
    rows = []
    for path, label in listed(videos):
        match = re.fullmatch(r"(.*)\{([0-9]+)\.\.([0-9]+)\}(.*)", path, re.DOTALL)
        assert match is not None, path
        before, first, last, after = match.groups()
        width = len(first) if first.startswith("0") else 0
        rows += [(f"{before}{number:0{width}d}{after}", label) for number in range(int(first), int(last) + 1)]
    return rows


def listed(videos: VideoList) -> Rows:
    return [(videos.listed(i), videos.label(i)) for i in range(len(videos))]


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> list[Format]:
    """Nine formats, over videos, folders of frames and shards that exist."""
    from PIL import Image

    root = tmp_path_factory.mktemp("fuzz")
    write_video(root / "video.mp4", seed=0)
    video = (root / "video.mp4").read_bytes()

    def put(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(video)
        return path

    def extract(folder: Path, name: str) -> None:
        folder.mkdir(parents=True)
        for number in range(1, FRAMES + 1):
            Image.new("RGB", (8, 6)).save(folder / name.format(number))

    def plain(name: str, lines: list[str], separator: str) -> Format:
        folder = root / name
        return Format(
            folder / "train.csv", "", lines, separator,
            lambda: read_annotations("kinetics", str(folder), "train", separator=separator),
            lambda content: plain_reading(folder, separator, content), listed,
        )  # fmt: skip

    made = []
    for name, separator in (("space", " "), ("comma", ","), ("tab", "\t"), ("semicolon", ";")):
        paths = [put(root / name / path).relative_to(root / name).as_posix() for path in VIDEOS]
        quoted = [f'"{path}"' if separator in path else path for path in paths]
        made.append(plain(name, [f"{path}{separator}{number % 3}" for number, path in enumerate(quoted)], separator))
    for number in range(4):
        extract(root / f"frames/f{number}", "img_{:05d}.png")
    made.append(plain("frames", [f"f{number} {FRAMES} {number}" for number in range(4)], " "))
    (root / "packed").mkdir()
    samples = [ShardSample(f"{number}_v", str(root / "video.mp4"), len(video), number) for number in range(4)]
    write_shard(root / "packed/train-000000.tar", samples)
    index_shards(root / "packed", "train", root / "packed/train.csv")
    made.append(plain("packed", (root / "packed/train.csv").read_text().splitlines(), " "))

    rows = [("wave", "idA", 1), ("clap", "id-B", 2), ("wave", "_idC", 30), ("clap", "idD", 123456)]
    folder = root / "official"
    for label, video_id, start in rows:
        put(folder / f"train/{label}/{video_id}_{start:06d}_{start + 10:06d}.mp4")
    made.append(
        Format(
            folder / "train.csv",
            HEADER,
            [f"{a},{b},{start},{start + 10},train" for a, b, start in rows],
            ",",
            lambda: read_annotations("kinetics", str(root / "official"), "train", class_names=("clap", "wave")),
            official_reading,
            listed,
        )  # fmt: skip
    )
    labels = json.dumps({"Moving something up": "0", "Moving something down": "1"})
    for name in ("json", "frame_list"):
        for video_id in ("7", "8"):
            put(root / name / f"videos/{video_id}.mp4")
            extract(root / name / video_id, video_id + "_{:06d}.png")
        (root / name / "something-something-v2-labels.json").write_text(labels)
    items = [{"id": name, "template": f"Moving [something] {way}"} for name, way in (("7", "up"), ("8", "down"))]
    entries = ",\n".join(json.dumps(item) for item in items)
    (root / "frame_list/something-something-v2-train.json").write_text(f"[{entries}]")
    made.append(
        Format(
            root / "json/something-something-v2-train.json",
            "[",
            [*f"{entries}\n]".split("\n")],
            ",",
            lambda: read_annotations("ssv2", str(root / "json"), "train"),
            json_reading,
            listed,
        )  # fmt: skip
    )
    lines = [f"{v} {v} {i} {v}/{v}_{i:06d}.png 0" for v in ("7", "8") for i in range(1, FRAMES + 1)]
    made.append(
        Format(
            root / "frame_list/train.csv",
            FRAME_HEADER,
            lines,
            " ",
            lambda: read_annotations("ssv2", str(root / "frame_list"), "train"),
            frame_reading,
            expanded,
        )  # fmt: skip
    )
    return made


def mutated(lines: list[bytes], separator: bytes, rng: random.Random) -> list[bytes]:
    """The lines with one change in one of them."""
    number = rng.randrange(len(lines))
    line, place = lines[number], rng.randrange(len(lines[number]) + 1)
    fields = line.split(separator)
    field = rng.randrange(len(fields))
    change = rng.choice(("insert", "delete", "replace", "swap", "cut", "label", "field", "separator", "lines"))
    if change == "insert":
        line = line[:place] + rng.choice(PIECES) + line[place:]
    elif change == "delete":
        line = line[:place] + line[place + rng.choice((1, 1, 1, 3)) :]
    elif change == "replace":
        line = line[:place] + rng.choice(PIECES) + line[place + 1 :]
    elif change == "swap":
        line = line[:place] + line[place : place + 2][::-1] + line[place + 2 :]
    elif change == "cut":
        line = line[:place]
    elif change == "label":
        fields[-1 if rng.random() < 0.8 else field] = rng.choice(LABELS).encode()
        line = separator.join(fields)
    elif change == "field":
        how = rng.choice(("drop", "twice", "move", "number", "quote", "empty"))
        if how == "drop":
            del fields[field]
        elif how == "twice":
            fields.insert(field, fields[field])
        elif how == "move":
            fields.insert(0, fields.pop())
        elif how == "number":
            fields.insert(rng.randrange(len(fields) + 1), rng.choice((b"0", b"1", b"2", b"12", b"300", b"2.5")))
        elif how == "quote":
            fields[field] = b'"' + fields[field] + rng.choice((b'"', b"", b'""'))
        else:
            fields.insert(field, b"")
        line = separator.join(fields)
    elif change == "separator":
        line = line.replace(separator, rng.choice((b"\t", b",", b";", b" ", 2 * separator, b"|", b"")))
    else:
        how = rng.choice(("empty", "double", "join", "drop", "comment", "again"))
        before, after = lines[:number], lines[number + 1 :]
        if how == "join":
            return [*before, line + b"".join(after[:1]), *after[1:]]
        middle = {"empty": [b"", line], "double": [line, line], "drop": [], "comment": [b"# a comment", line],
                  "again": [line, line[:-1] + b"2"]}  # fmt: skip
        return [*before, *middle[how], *after]
    return [*lines[:number], line, *lines[number + 1 :]]


def outcome(listing: Format, content: bytes) -> str:
    """Return "read", "refused", or the fault in full."""
    said = listing.reading(content)
    try:
        with time_limit(LIMIT_SECONDS):
            found = listing.rows(listing.read())
    except ValueError as error:
        text = str(error)
        names_place = re.search(r":\d+: |: item \d+|: line \d+", text)
        return "refused" if listing.file.name in text and names_place else f"no place named: {text}"
    except Hang:
        return "hangs"
    except Exception as error:  # the kinds of faults are what is looked for
        return f"raises {type(error).__name__}: {error}"
    return "read" if found == said else f"reads {found}, which says {said}"


@pytest.mark.slow
def test_mutated_lines_are_read_as_what_they_say_or_refused_by_file_and_line(formats: list[Format]) -> None:
    counts: Counter[tuple[str, str]] = Counter()
    faults = []
    for listing in formats:
        content = "\n".join([listing.header, *listing.lines]).removeprefix("\n").encode() + b"\n"
        listing.file.write_bytes(content)
        assert outcome(listing, content) == "read", listing.file
        assert listing.reading(content)
    for case in range(NUM_CASES):
        rng, listing = random.Random(case), formats[case % len(formats)]
        lines = mutated([line.encode() for line in listing.lines], listing.separator.encode(), rng)
        content = b"\n".join([listing.header.encode(), *lines]).removeprefix(b"\n") + b"\n"
        listing.file.write_bytes(content)
        found = outcome(listing, content)
        counts[listing.file.parent.name, found if found in ("read", "refused") else "fault"] += 1
        if found not in ("read", "refused"):
            faults.append(f"case {case}, {listing.file.parent.name}, {lines!r}: {found}")
    print(dict(counts))
    assert not faults, "\n".join([f"{len(faults)} faults", *faults])
    assert sum(counts.values()) == NUM_CASES and len(formats) == 9
    total = Counter(kind for (_, kind), number in counts.items() for _ in range(number))
    assert total == {"read": 182, "refused": 358}
