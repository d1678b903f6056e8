"""Plain lists: the meaning of a line, refusals that name it, and lines that are read back as written."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.data.readers.test_frame_files import write as write_frames
from videoattn.data.lists import AnnotationError, read_class_names, read_kinetics_csv
from videoattn.data.lists.list_lines import format_line, parse_separator, read_lines

STRANGE_NAMES = (
    "a b.mp4", "a\tb.mp4", "a,b.mp4", "a;b.mp4", "a\nb.mp4", "a\r\nb.mp4", "a\rb.mp4", 'a"b.mp4', '"a".mp4', '"', ' "a',
    "a\t1\nb.mp4", "a.mp4 0\nb.mp4", " a.mp4 ", "\ufeffa.mp4",  "été\u2028\x85.mp4", "a\x1cb.mp4",
    'a\nb\nc\td,e;f g"h.mp4',
)  # fmt: skip


def listed(videos: Any) -> list[tuple[str, int]]:
    return [(videos.listed(i), videos.label(i)) for i in range(len(videos))]


@pytest.mark.parametrize(
    ("line", "separator"),
    [
        ("videos/v.mp4 0 1", " "),
        ("videos/v.mp4 1 0", " "),
        ("v.MKV 120 3", " "),
        ("v.avi,0,1", ","),
        ("v.avi;0;1", ";"),
        ("v.webm\t7\t1", "\t"),
        ('"v w.mp4" 0 1', " "),
        ("s3://bucket/v.mp4 0 1", " "),
        ("train-0.tar/v@512+48 0 1", " "),
        ("v.mp4 0 1 2", " "),
    ],
)
def test_a_video_file_has_one_label(csv: Any, line: str, separator: str) -> None:
    with pytest.raises(AnnotationError, match=r"train.csv:2: .* has [34] fields.*a video has one label"):
        read_kinetics_csv(csv(f"a.mp4{separator}0\n{line}\n"), separator=separator)


@pytest.mark.parametrize(("label", "separator"), [("0,1", " "), ("0;1", " "), ("0,1,2", ";"), ("0|1", ",")])
def test_several_labels_in_one_field_are_refused(csv: Any, label: str, separator: str) -> None:
    with pytest.raises(AnnotationError, match=r"train.csv:1: label .* of 'v.mp4', .*a video has one label"):
        read_kinetics_csv(csv(f'v.mp4{separator}"{label}"\n'), separator=separator)


def test_a_number_of_frames_that_contradicts_the_frames_is_refused(csv: Any, tmp_path: Path) -> None:
    write_frames(tmp_path / "v", [f"img_{number:05d}.png" for number in range(1, 21)])
    write_frames(tmp_path / "v.mp4", ["1.png", "2.png", "3.png"])
    (tmp_path / "file").touch()
    said = "v 20 1\nv 19 0\nv.mp4 3 2\nabsent 7 1\nv/img_{00001..00020}.png 20 1\n"
    assert listed(read_kinetics_csv(csv(said))) == [
        ("v", 1), ("v", 0), ("v.mp4", 2), ("absent", 1), ("v/img_{00001..00020}.png", 1),
    ]  # fmt: skip
    for line in ("v 3 5", "v 0 1", "v/img_{00001..00020}.png 2 1", "file 1 0", "v.mp4 120 0", "absent 0 1"):
        with pytest.raises(AnnotationError, match="train.csv:1: .*between.*expected a number of frames"):
            read_kinetics_csv(csv(line))


def test_a_path_with_the_separator_in_it_is_not_cut(csv: Any) -> None:
    """A comma without quotes would make `arm` the path."""
    with pytest.raises(AnnotationError, match="train.csv:1: 'arm, leg.mp4,3' has 3 fields"):
        read_kinetics_csv(csv("arm, leg.mp4,3\n"), separator=",")
    assert listed(read_kinetics_csv(csv('"arm, leg.mp4",3\n'), separator=",")) == [("arm, leg.mp4", 3)]
    assert listed(read_kinetics_csv(csv('"arm, leg.mp4" 3\n'))) == [("arm, leg.mp4", 3)]


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n\r\n", "\n \n\t\n", "\n\n\n\n"])
def test_empty_lines_at_the_end_do_not_count(csv: Any, end: str) -> None:
    assert listed(read_kinetics_csv(csv(f"a.mp4 0\nb.mp4 1{end}"))) == [("a.mp4", 0), ("b.mp4", 1)]
    assert read_class_names(csv(f"a\nb{end}", "names.txt")) == ("a", "b")


@pytest.mark.parametrize("empty", ["", "\r", "  ", "\t"])
def test_an_empty_line_before_others_is_named(csv: Any, empty: str) -> None:
    with pytest.raises(AnnotationError, match="train.csv:2: is an empty line, .*only at the end"):
        read_kinetics_csv(csv(f"a.mp4 0\n{empty}\n\nb.mp4 1\n"))


@pytest.mark.parametrize("fits", ["\t", ",", ";", " "])
@pytest.mark.parametrize("separator", ["\t", ",", ";", " "])
@pytest.mark.parametrize("rows", ["a.mp4{0}0\nb.mp4{0}1\n", "my clip.mp4{0}0\n"])
def test_a_wrong_separator_is_named_with_its_setting_and_the_one_that_fits(
    csv: Any, fits: str, separator: str, rows: str
) -> None:
    if fits == separator or (fits == " " and "my" in rows):
        return
    for setting in ("DATA.PATH_LABEL_SEPARATOR", "--separator"):
        written = r'"\\t"' if fits == "\t" else f'"{fits}"'
        with pytest.raises(AnnotationError, match=f"train.csv:1: .*separator .* fits: {setting} {written}"):
            read_kinetics_csv(csv(rows.format(fits)), separator=separator, setting=setting)


def test_a_name_that_looks_like_another_separation_is_a_path_where_there_is_such_a_file(
    csv: Any, tmp_path: Path
) -> None:
    (tmp_path / "clip,1").mkdir()
    assert listed(read_kinetics_csv(csv("clip,1\n"))) == [("clip,1", -1)]
    with pytest.raises(AnnotationError, match="train.csv:1: 'clip,2' has no label.*separator ',' fits"):
        read_kinetics_csv(csv("clip,2\n"))


def test_a_tab_may_be_written_as_a_shell_passes_it_on(csv: Any) -> None:
    assert listed(read_kinetics_csv(csv("a b.mp4\t1\n"), separator=r"\t")) == [("a b.mp4", 1)]
    for separator in ("tab", "", "x", "1", '"', "\n"):
        with pytest.raises(ValueError, match="--separator: separator .*, expected one character"):
            parse_separator(separator, "--separator")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path label\na.mp4 0\n", ":1: 'path label' is a header"),
        (b"filename\na.mp4\n", ":1: 'filename' is a header"),
        (b"label;youtube_id;time_start;time_end;split\n", ":1: .* is a header"),
        (b"\xff\xfea\x00.\x00m\x00p\x004\x00 \x000\x00\n\x00", ":1: is UTF-16 text"),
        (b"a.mp4 0\n\xef\xbb\xbfb.mp4 1\n", ":2: begins with a byte order mark"),
        (b"\xef\xbb\xbf\xef\xbb\xbfb.mp4 1\n", ":1: begins with a byte order mark"),
        (b"a.mp4 0\nb\0.mp4 1\n", ":2: .*zero byte"),
        (b"a.mp4 0\rb.mp4 1\r", ":1: .*carriage return"),
        (b"a.mp4\rb.mp4\r", ":1: .*carriage return"),
        (b'a.mp4 0\n"b.mp4 1\nc.mp4 2\n', ":2: .*expected quoted fields to end on their line"),
        (b'a.mp4 0\n"b.mp4 1\nc.mp4" 2\n', ":2: .*continues on the next line .*no such file"),
        (b'"b.mp4 1\n' + 400 * b"clips/number_0001.mp4 0\n" + b'c.mp4" 2\n', ":1: .*longer than 8192 bytes"),
        (b"a.mp4 0\nb.mp4 \xef\xbc\x91\n", ":2: label '\uff11'"),
        (b"a.mp4 +1\n", r":1: label '\+1'"),
        (b"a.mp4 1 \n", ":1: label '' of 'a.mp4'.*ends with the separator"),
        (b"b.mp4 1\na.mp4\xc2\xa01\n", ":2: .* lacks a label"),
        (b"x" * 5000 + b" 1\n", ":1: .*has a path of 5000 bytes"),
        (b"a.tar/b.mp4@99999999999999999999+5 1\n", ":1: .*beyond the end of any file"),
    ],
)
def test_ambiguous_lines_are_refused(csv: Any, content: bytes, message: str) -> None:
    with pytest.raises(AnnotationError, match=f"train.csv.*{message}"):
        read_kinetics_csv(csv(content))


def test_a_label_that_is_the_number_of_classes_is_explained(csv: Any) -> None:
    with pytest.raises(AnnotationError, match="train.csv:2: label '2' .* from 0 to 1 .*labels count from 0"):
        read_kinetics_csv(csv("a.mp4 1\nb.mp4 2\n"), num_classes=2)


@pytest.mark.parametrize("separator", [" ", "\t", ",", ";"])
def test_written_lines_are_read_back(csv: Any, tmp_path: Path, separator: str) -> None:
    names = list(STRANGE_NAMES)
    for name in names:
        (tmp_path / name).touch()
    labelled = [(name, number) for number, name in enumerate(names)]
    file = csv("".join(format_line([name, str(number)], separator) for name, number in labelled))
    assert listed(read_kinetics_csv(file, separator=separator)) == labelled
    assert b"".join(content for _, content, _ in read_lines(file, separator)) == file.read_bytes()
    file = csv("".join(format_line([name], separator) for name in names))
    assert listed(read_kinetics_csv(file, separator=separator)) == [(name, -1) for name in names]


def test_lists_whose_root_or_names_are_not_utf_8_are_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / "train.csv").write_text("a.mp4 0\n")
    with pytest.raises(AnnotationError, match=r"a path that is not UTF-8 text.*caf\\udce9"):
        read_kinetics_csv(folder / "train.csv")
    (tmp_path / "train.csv").write_text("a.mp4 0\n")
    with pytest.raises(AnnotationError, match=r"a path that is not UTF-8 text.*caf\\udce9"):
        read_kinetics_csv(tmp_path / "train.csv", prefix=str(folder))
