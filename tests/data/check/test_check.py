"""A check of generated clips finds every fault that was put into them, under its name, and nothing else."""

import csv
import json
import multiprocessing
import os
import random
import signal
import time
import tracemalloc
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.data.faulty_clips import NUM_FRAMES, SHORT_FRAMES, ClipMaker
from tests.data.openers import Opening
from tests.shared_files import CLIPS, needs_clips
from videoattn.cli import check as check_data
from videoattn.cli.run_tool import run_tool
from videoattn.data.check.check import LOG_NAME, CheckOptions, check_lists
from videoattn.data.check.checked_list import CheckedList
from videoattn.data.check.probe import Probe, ProbeOptions, Prober, ProbeTask
from videoattn.data.check.table import ERRORS, WARNINGS
from videoattn.data.lists import AnnotationError, read_annotations, read_class_names, read_kinetics_csv, read_ssv2
from videoattn.data.lists.list_lines import format_line
from videoattn.data.readers.open_video import open_video

ROOT = Path(__file__).parents[3]

CLIP_FRAMES = 16
FILE_FAULTS = ("missing", "empty", "not_a_video", "no_video_stream", "damaged", "cut_short", "too_short")
Row = tuple[str, int]


def is_short(num_frames: int, fps: float) -> bool:
    return num_frames < CLIP_FRAMES


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> ClipMaker:
    return ClipMaker(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def listed(tmp_path: Path) -> Callable[..., CheckedList]:
    """Write a list below tmp_path and read it."""

    def build(rows: Sequence[Row], split: str = "train", **asked: Any) -> CheckedList:
        file = tmp_path / f"{split}.csv"
        file.write_text("".join(f"{name} {label}\n" for name, label in rows))
        return CheckedList(split, read_kinetics_csv(file), **asked)

    return build


def problems(out: Path, split: str = "train") -> list[tuple[str, str]]:
    """Return (path, kind), sorted; paths as in the list."""
    with open(out / f"bad_{split}.csv", newline="") as stream:
        return sorted((os.path.basename(row["path"]), row["kind"]) for row in csv.DictReader(stream))


def test_every_fault_of_a_file_is_found_under_its_name_and_no_other(
    maker: ClipMaker, listed: Callable[..., CheckedList], tmp_path: Path
) -> None:
    names = {f"{fault}_{number}.mp4": fault for fault in FILE_FAULTS for number in range(2)}
    names |= {f"good_{number}.mp4": "" for number in range(6)}
    for name, fault in names.items():
        maker.write(tmp_path / name, fault)
    (tmp_path / "folder.mp4").mkdir()
    names["folder.mp4"] = "not_a_file"
    out = tmp_path / "out"
    summary = check_lists([listed([(name, 0) for name in names], is_short=is_short)], out)
    assert problems(out) == sorted((name, fault) for name, fault in names.items() if fault)
    assert (summary["num_errors"], summary["num_warnings"]) == (13, 2)
    clean = [line.split()[0] for line in (out / "clean" / "train.csv").read_text().splitlines()]
    assert clean == [name for name, fault in names.items() if fault in ("", "too_short")]


def test_copies_and_repeated_lines_are_told_apart_and_lead_to_the_first(
    maker: ClipMaker, listed: Callable[..., CheckedList], tmp_path: Path
) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4", "only_val.mp4"):
        maker.write(tmp_path / name)
    for copy, original in (("copy_a", "a"), ("other_a", "a"), ("val_b", "b"), ("val_copy", "only_val")):
        (tmp_path / f"{copy}.mp4").write_bytes((tmp_path / f"{original}.mp4").read_bytes())
    train = [("a.mp4", 0), ("b.mp4", 1), ("copy_a.mp4", 0), ("other_a.mp4", 1), ("a.mp4", 0), ("b.mp4", 0)]
    val = [("c.mp4", 0), ("val_b.mp4", 1), ("only_val.mp4", 0), ("val_copy.mp4", 0), ("a.mp4", 1)]
    out = tmp_path / "out"
    lists = [listed(train), listed(val, "val"), listed(val, "test")]
    summary = check_lists(lists, out)
    assert problems(out) == [
        ("a.mp4", "listed_twice"),
        ("b.mp4", "listed_twice_other_label"),
        ("copy_a.mp4", "duplicate"),
        ("other_a.mp4", "duplicate_other_label"),
    ]
    in_val = [("a.mp4", "leak"), ("val_b.mp4", "leak"), ("val_copy.mp4", "duplicate")]
    assert problems(out, "val") == problems(out, "test") == in_val
    details = {row["path"]: row["detail"] for row in summary["first_problems"] if row["list"] == "val"}
    assert details[str(tmp_path / "val_b.mp4")] == f"same content as {tmp_path / 'b.mp4'} of train"
    assert summary["num_errors"] == 0


def test_labels_beyond_the_model_are_errors_and_classes_without_usable_videos_are_named(
    maker: ClipMaker, listed: Callable[..., CheckedList], tmp_path: Path
) -> None:
    for name in ("a.mp4", "b.mp4"):
        maker.write(tmp_path / name)
    rows = [("a.mp4", 0), ("b.mp4", 4), ("missing.mp4", 2)]
    out = tmp_path / "out"
    check_lists([listed(rows, num_classes=4)], out)
    with open(out / "bad_train.csv", newline="") as stream:
        found = [(row["kind"], row["severity"], row["number"], row["detail"]) for row in csv.DictReader(stream)]
    assert found == [
        ("class_without_videos", "warning", "0", "class 1"),
        ("class_without_videos", "warning", "0", "class 2"),
        ("class_without_videos", "warning", "0", "class 3"),
        ("label_out_of_range", "error", "2", "label 4, expected 0 to 3"),
        ("missing", "error", "3", "does not exist"),
    ]


@pytest.mark.parametrize(
    "lengths, rows, expected",
    [
        ("names", ["x_000010_000012.mp4 0", "y_000010_000020.mp4 0", "z_10_20.mp4 0"], ["y_000010_000020.mp4"]),
        ("frames", ["a.mp4 24 0", "b.mp4 25 0", "c.mp4 26 0", "d.mp4 12 0"], ["c.mp4", "d.mp4"]),
        ("seconds", ["a.mp4,2.4,0", "b.mp4,2.5,0", '"c,d.mp4",2.6,0'], ["c,d.mp4"]),
        ("ignore", ["x_000010_000020.mp4 48 0"], []),
    ],
)
def test_lengths_other_than_stated_are_found_where_they_are_stated(
    maker: ClipMaker, tmp_path: Path, lengths: Any, rows: list[str], expected: list[str]
) -> None:
    """Clips have 24 frames at 10 per second; a frame, or 5 %, does not matter."""
    separator = "," if "," in rows[0] else " "
    for name, *_ in csv.reader(rows, delimiter=separator):
        maker.write(tmp_path / name)
    (tmp_path / "train.csv").write_text("\n".join(rows))
    tolerance = 0.25 if lengths == "names" else 0.05
    read = read_kinetics_csv(tmp_path / "train.csv", separator=separator, with_lengths=lengths != "names")
    videos = CheckedList("train", read, separator)
    check_lists([videos], tmp_path / "out", CheckOptions(lengths=lengths, tolerance=tolerance))
    assert problems(tmp_path / "out") == [(name, "wrong_length") for name in expected]


def test_a_list_without_the_lengths_asked_for_is_refused_by_its_line(
    maker: ClipMaker, listed: Callable[..., CheckedList], tmp_path: Path
) -> None:
    with pytest.raises(AnnotationError, match=r"train.csv:1: 'a.mp4 0', expected a path, the video's length"):
        check_lists([listed([("a.mp4", 0)])], tmp_path / "out", CheckOptions(lengths="frames"))


def counting_opener(log: Path, path: str, backend: str) -> Any:
    with open(log, "a") as stream:
        stream.write(os.path.basename(path) + "\n")
    return open_video(path, backend)  # type: ignore[arg-type]


def test_a_second_check_opens_only_what_is_new_changed_or_half_noted(
    maker: ClipMaker, listed: Callable[..., CheckedList], tmp_path: Path
) -> None:
    names = [f"{number}.mp4" for number in range(5)]
    for name in names:
        maker.write(tmp_path / name, "damaged" if name == "1.mp4" else "")
    opened, out = tmp_path / "opened", tmp_path / "out"
    counting = Opening(opener=partial(counting_opener, opened))
    check = partial(check_lists, folder=out, options=CheckOptions(ProbeOptions(decoding=counting)))
    first = check([listed([(name, 0) for name in names])])
    assert sorted(opened.read_text().split()) == names

    opened.unlink()
    assert check([listed([(name, 0) for name in names])]) == first
    assert not opened.exists()

    log = out / LOG_NAME
    lines = log.read_text().splitlines()
    half = next(line for line in lines if "4.mp4" in line)
    lines.remove(half)
    log.write_text("\n".join([*lines, half[: len(half) // 2]]))
    maker.write(tmp_path / "0.mp4", "too_short")
    maker.write(tmp_path / "5.mp4")
    rows = [(name, 0) for name in [*names, "5.mp4"]]
    check([listed(rows, is_short=is_short)])
    assert sorted(opened.read_text().split()) == ["0.mp4", "4.mp4", "5.mp4"]
    assert problems(out) == [("0.mp4", "too_short"), ("1.mp4", "damaged")]

    opened.unlink()
    check([listed(rows)], options=CheckOptions(ProbeOptions("all", counting)))
    assert len(opened.read_text().split()) == 6  # other options, other answers


def failing_opener(path: str, backend: str) -> Any:
    name = os.path.basename(path)
    while name.startswith("hangs"):
        pass
    if name.startswith("killed"):
        os.kill(os.getpid(), 9)
    if name.startswith("raises"):
        raise KeyError(name)
    return open_video(path, backend)  # type: ignore[arg-type]


def test_a_decoder_that_hangs_or_crashes_costs_one_file_and_is_retried_later(
    maker: ClipMaker, listed: Callable[..., CheckedList], tmp_path: Path
) -> None:
    names = ["good0.mp4", "hangs.mp4", "killed.mp4", "raises.mp4", "good1.mp4", "good2.mp4"]
    for name in names:
        maker.write(tmp_path / name)
    out, videos = tmp_path / "out", listed([(name, 0) for name in names])
    failing = ProbeOptions(decoding=Opening(opener=failing_opener))
    summary = check_lists([videos], out, CheckOptions(failing, limit_seconds=0.5))
    assert problems(out) == [("hangs.mp4", "hangs"), ("killed.mp4", "crashes"), ("raises.mp4", "crashes")]
    details = {os.path.basename(row["path"]): row["detail"] for row in summary["first_problems"]}
    assert details["hangs.mp4"] == "no answer within 0.5 s"
    assert details["killed.mp4"] == "the process that read it ended: killed by SIGKILL"
    assert "KeyError in test_check.py" in details["raises.mp4"]

    opened = tmp_path / "opened"
    counting = ProbeOptions(decoding=Opening(opener=partial(counting_opener, opened)))
    assert check_lists([videos], out, CheckOptions(counting))["num_errors"] == 0
    assert sorted(opened.read_text().split()) == ["hangs.mp4", "killed.mp4", "raises.mp4"]


def test_an_interrupted_check_keeps_what_it_saw_and_leaves_no_process(
    maker: ClipMaker, listed: Callable[..., CheckedList], tmp_path: Path
) -> None:
    names = ["good0.mp4", "good1.mp4", "interrupts.mp4", "good2.mp4"]
    for name in names:
        maker.write(tmp_path / name)
    videos = listed([(name, 0) for name in names])
    before = multiprocessing.active_children()
    before_handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupting = ProbeOptions(decoding=Opening(opener=interrupting_opener))
            check_lists([videos], tmp_path / "out", CheckOptions(interrupting))
    finally:
        signal.signal(signal.SIGINT, before_handler)
    assert set(multiprocessing.active_children()) <= set(before)
    opened = tmp_path / "opened"
    counting = ProbeOptions(decoding=Opening(opener=partial(counting_opener, opened)))
    assert check_lists([videos], tmp_path / "out", CheckOptions(counting))["num_errors"] == 0
    assert opened.read_text().split() == names[2:]


def interrupting_opener(path: str, backend: str) -> Any:
    if "interrupts" in path:
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(60)
    return open_video(path, backend)  # type: ignore[arg-type]


def probe(path: Path, decode: Any) -> Probe:
    found = Prober(ProbeOptions(decode))(ProbeTask(str(path)))
    assert found is not None
    return found


@pytest.mark.parametrize("decode, num_found", [("none", 0), ("sample", 1), ("all", 1)])
def test_damage_to_pictures_is_seen_only_by_decoding(
    maker: ClipMaker, tmp_path: Path, decode: Any, num_found: int
) -> None:
    maker.write(tmp_path / "damaged.mp4", "damaged")
    maker.write(tmp_path / "good.mp4")
    assert probe(tmp_path / "good.mp4", decode).problem == ""
    assert probe(tmp_path / "damaged.mp4", decode).problem == ("damaged" if num_found else "")


def test_damage_between_the_sampled_frames_is_found_by_decoding_all(tmp_path: Path) -> None:
    """In Motion JPEG every frame is independent, so the sample does not read the damaged one."""
    import av

    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for _ in range(9):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuvj420p")))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    starts = [place for place in range(len(content) - 2) if content[place : place + 3] == b"\xff\xd8\xff"]
    content[starts[2] : starts[3]] = bytes(starts[3] - starts[2])
    path.write_bytes(content)
    assert [probe(path, decode).problem for decode in ("sample", "all")] == ["", "damaged"]


def test_pictures_turned_by_half_a_right_angle_are_errors(maker: ClipMaker, tmp_path: Path) -> None:
    """Source: ISO/IEC 14496-12, 8.3.2: the matrix of a track is 40 bytes into its header."""
    content = bytearray(maker.good)
    place = content.index(b"tkhd") + 44
    turned = (46341, 46341, 0, -46341, 46341)
    content[place : place + 20] = b"".join(value.to_bytes(4, "big", signed=True) for value in turned)
    (tmp_path / "turned.mp4").write_bytes(content)
    assert probe(tmp_path / "turned.mp4", "sample").problem == "odd_rotation"


@needs_clips
@pytest.mark.parametrize("decode", ["sample", pytest.param("all", marks=pytest.mark.slow)])
def test_real_files_are_errors_exactly_where_they_do_not_decode(decode: Any) -> None:
    with open(CLIPS / "MANIFEST.csv", newline="") as stream:
        expected = {row["file"]: row["decodes"] == "yes" for row in csv.DictReader(stream)}
    found = {name: not probe(CLIPS / name, decode).problem for name in expected}
    assert len(found) > 30 and found == expected


@needs_clips
@pytest.mark.parametrize(
    "name, reason",
    [
        ("mmaction2_test.mp4", ""),
        ("datumaro_video.avi", "container avi does not keep times reliably"),
        ("torchcodec_h265_video.mp4", "codec hevc is not known to seek safely"),
        ("made/cutcopy_editlist.mp4", "packets are missing, damaged or hidden"),
    ],
)
def test_the_reason_for_sequential_decoding_of_a_real_file_is_recorded(name: str, reason: str) -> None:
    assert probe(CLIPS / name, "none").sequential_reason == reason


def test_something_something_lists_are_checked_and_written_as_they_are(maker: ClipMaker, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for number, fault in ((1, ""), (2, "empty"), (3, "")):
        maker.write(tmp_path / "videos" / f"{number}.mp4", fault)
    names = {"labels": {"Doing something": "0"}}
    items = [{"id": str(number), "template": "Doing [something]", "label": "doing"} for number in (1, 2, 3)]
    for name, content in ({"train": items} | names).items():
        (tmp_path / f"something-something-v2-{name}.json").write_text(json.dumps(content))
    check_lists([CheckedList("train", read_ssv2(str(tmp_path), "train"))], tmp_path / "out")
    assert problems(tmp_path / "out") == [("2.mp4", "empty")]
    clean = read_ssv2(str(tmp_path / "out" / "clean"), "train", prefix=str(tmp_path / "videos"))
    assert clean.paths == b"1.webm3.webm" or clean.paths == b"1.mp43.mp4"
    kept = json.loads((tmp_path / "out" / "clean" / "something-something-v2-train.json").read_text())
    assert kept == [items[0], items[2]]


def test_the_page_is_well_formed_and_counts_what_the_summary_counts(
    maker: ClipMaker, listed: Callable[..., CheckedList], tmp_path: Path
) -> None:
    strange = "<b>&'x.mp4"
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        maker.write(tmp_path / name)
    rows = [("a.mp4", 0), ("b.mp4", 0), (strange, 1), ("c.mp4", 1)]
    summary = check_lists([listed(rows)], tmp_path / "out")
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    counts = summary["lists"]["train"]
    assert (counts["listed"], counts["clean"], counts["problems"]) == (4, 3, {"missing": 1})
    assert [bin for bin in counts["frames"] if bin[2]] == [[NUM_FRAMES, 32, 3]]
    assert [bin for bin in counts["seconds"] if bin[2]] == [[1.5, 2.5, 3]]
    assert (counts["resolution"], counts["fps"], counts["sequential"]) == ({"64x48": 3}, {"10.0": 3}, {})
    assert [(row["class"], row["listed"], row["clean"]) for row in counts["classes"]] == [(0, 2, 2), (1, 2, 1)]
    page = (tmp_path / "out" / "summary.html").read_text().removeprefix("<!DOCTYPE html>\n")
    tree = ElementTree.fromstring(page)
    text = " ".join(tree.itertext())
    assert strange in text and "train: 4 videos, 3 clean" in text and "64x48" in text
    assert not [name for name in ("href", "src") for node in tree.iter() if node.get(name)]


def test_exit_status_is_0_without_errors_1_with_errors_and_2_for_wrong_use(
    maker: ClipMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object) -> tuple[int, str]:
        status = run_tool(check_data.main, [*map(str, arguments)])
        printed = capsys.readouterr()
        return status, printed.err or printed.out

    maker.write(tmp_path / "short.mp4", "too_short")
    (tmp_path / "train.csv").write_text("short.mp4 0\n")
    alone = ("--workers", 1, "--out", tmp_path / "alone", "--list", tmp_path / "train.csv")
    status, printed = run(*alone, "--min-frames", CLIP_FRAMES)
    assert status == 0 and "1 too_short" in printed
    status, printed = run(*alone, "--min-frames", CLIP_FRAMES, "--as-error", "too_short,leak")
    assert status == 1 and "0 clean" in printed
    status, printed = run(*alone, "--as-error", "to_short")
    assert status == 2 and printed.startswith("error: --as-error expects all or some of too_short,")
    status, printed = run(*alone, "DATA.NUM_FRAMES", 8)
    assert status == 2 and "--list stands alone" in printed

    configured = ("--workers", 1, "--out", tmp_path / "configured")
    settings = ("DATA.PATH_TO_DATA_DIR", tmp_path, "MODEL.NUM_CLASSES", 1, "DATA.NUM_FRAMES", CLIP_FRAMES)
    status, printed = run(*configured, *settings)
    assert status == 2 and "val.csv does not exist" in printed and "--split" in printed and "TEST.SPLIT" in printed
    status, printed = run(*configured, "--split", "train", *settings)
    assert status == 0 and "1 too_short" in printed


def test_the_page_about_data_names_every_kind_of_problem() -> None:
    page = (ROOT / "docs" / "data.md").read_text()
    assert [kind for kind in ERRORS | WARNINGS if f"`{kind}`" not in page] == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_list(listed: Callable[..., CheckedList], tmp_path: Path) -> None:
    def peak(num_videos: int) -> int:
        videos = listed([(f"{number}.mp4", number % 10) for number in range(num_videos)])
        tracemalloc.start()
        check_lists([videos], tmp_path / f"out{num_videos}")
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert (peak(20000) - peak(5000)) / 15000 < 20  # bytes for each video more, all of them missing


TEN_KINDS = (*FILE_FAULTS, "wrong_length", "duplicate", "label_out_of_range")


@pytest.mark.slow
def test_exactly_fifty_faults_of_ten_kinds_are_found_among_five_thousand_clips(
    maker: ClipMaker, tmp_path: Path
) -> None:
    rng = random.Random(0)
    assert len(TEN_KINDS) == 10 and set(TEN_KINDS) < set(ERRORS | WARNINGS)
    places = rng.sample(range(1, 5000), 50)
    faults = {place: TEN_KINDS[number % 10] for number, place in enumerate(places)}
    rows, good = [], []
    for number in range(5000):
        name, fault, label = f"{number:06d}.mp4", faults.get(number, ""), number % 10
        if fault == "duplicate":
            original = rng.choice(good)
            (tmp_path / name).write_bytes((tmp_path / f"{original:06d}.mp4").read_bytes())
            label = original % 10
        else:
            maker.write(tmp_path / name, fault)
        if not fault:
            good.append(number)
        length = {"too_short": SHORT_FRAMES, "wrong_length": 2 * NUM_FRAMES}.get(fault, NUM_FRAMES)
        rows.append(f"{name} {length} {10 if fault == 'label_out_of_range' else label}\n")
    (tmp_path / "train.csv").write_text("".join(rows))
    read = read_kinetics_csv(tmp_path / "train.csv", with_lengths=True)
    videos = CheckedList("train", read, num_classes=10, is_short=is_short)
    started = time.perf_counter()
    check_lists([videos], tmp_path / "out", CheckOptions(lengths="frames"))
    print(f"{time.perf_counter() - started:.1f} s")
    found = problems(tmp_path / "out")
    assert found == sorted((f"{place:06d}.mp4", fault) for place, fault in faults.items())
    assert set(Counter(kind for _, kind in found).values()) == {5}


def test_class_folders_and_extracted_frames_are_checked_and_their_clean_list_can_be_read(
    maker: ClipMaker, tmp_path: Path
) -> None:
    from PIL import Image

    data, out = tmp_path / "data", tmp_path / "out"
    for split, name in (("train", "a 1"), ("train", "b"), ("val", "a 1"), ("val", "b")):
        (data / split / name).mkdir(parents=True)
        maker.write(data / split / name / f"{split}_{name}.mp4", "")
    maker.write(data / "train" / "b" / "broken.mp4", "damaged")
    settings = ["DATA.PATH_TO_DATA_DIR", str(data), "MODEL.NUM_CLASSES", "2", "DATA.NUM_FRAMES", "4"]
    status = run_tool(lambda argv: check_data.main(argv), ["--split", "train", "--out", str(out), *settings])
    assert status == 1 and problems(out) == [("broken.mp4", "damaged")]
    clean = read_kinetics_csv(out / "clean" / "train.csv", separator="\t")
    assert [(os.path.basename(clean.path(i)), clean.label(i)) for i in range(len(clean))] == [
        ("train_a 1.mp4", 0), ("train_b.mp4", 1),
    ]  # fmt: skip
    assert (out / "clean" / "class_names.txt").read_text() == "a 1\nb\n"

    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(1, 4):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(frames / f"img_{number:05}.png")
    prober = Prober(ProbeOptions("all"))
    whole, part = prober(ProbeTask(str(frames))), prober(ProbeTask(str(frames / "img_{00001..00009}.png")))
    assert whole is not None and (whole.problem, whole.num_frames, whole.width, whole.height) == ("", 3, 8, 6)
    assert part is not None and part.problem == "damaged"
    nothing = prober(ProbeTask(str(tmp_path / "none_{1..3}.png")))
    assert nothing is not None and nothing.problem == "missing"


def run_check(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = run_tool(check_data.main, ["--workers", "1", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.mark.parametrize("layout", ["folders", "csv"])
def test_train_and_val_alone_are_checked_where_there_is_no_test_split(
    maker: ClipMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    for split in ("train", "val"):
        for number, name in enumerate(("a", "b")):
            (data / split / name).mkdir(parents=True)
            maker.write(data / split / name / f"{number}.mp4")
        (data / split / "a" / "notes.txt").touch()
        if layout == "csv":
            (data / f"{split}.csv").write_text(f"{split}/a/0.mp4 0\n{split}/b/1.mp4 1\n\n")
    settings = ("DATA.PATH_TO_DATA_DIR", data, "MODEL.NUM_CLASSES", 2, "DATA.NUM_FRAMES", 2)
    status, printed, noted = run_check(capsys, "--out", out, *settings)
    assert status == 0, noted
    assert "train: 2 videos listed, 2 clean" in printed and "val: 2 videos listed, 2 clean" in printed
    assert "--split" in noted and "TEST.SPLIT" in noted
    left_out = "left out because of their names or places, so not checked: 1 .txt"
    assert printed.count(left_out) == (2 if layout == "folders" else 0)
    page = (out / "summary.html").read_text()
    assert page.count("so not checked: 1 .txt") == (2 if layout == "folders" else 0)
    assert json.loads((out / "summary.json").read_text())["lists"]["val"]["left_out"] == (
        {".txt": 1} if layout == "folders" else {}
    )
    status, _, error = run_check(capsys, "--out", out, "--split", "train,test", *settings)
    assert status == 2 and "--split" in error and "TEST.SPLIT" in error
    status, printed, noted = run_check(capsys, "--out", out, *settings, "TEST.SPLIT", "val")
    assert status == 0 and not noted.count("note:") and printed.count("videos listed") == 2


def test_a_clean_list_of_class_folders_reads_back_whatever_its_names_hold(
    maker: ClipMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.data.lists.test_list_lines import STRANGE_NAMES

    data, out = tmp_path / "data", tmp_path / "out"
    for label in ("a, b", 'c\t"d"'):
        (data / "train" / label).mkdir(parents=True)
        for name in (*STRANGE_NAMES, "control\x01\x1b.mp4"):
            if name.endswith(".mp4"):
                maker.write(data / "train" / label / name)
    maker.write(data / "train" / "a, b" / "bad\n.mp4", "damaged")
    settings = ("DATA.PATH_TO_DATA_DIR", data, "MODEL.NUM_CLASSES", 2, "DATA.NUM_FRAMES", 2)
    status, _, error = run_check(capsys, "--split", "train", "--decode", "sample", "--out", out, *settings)
    assert status == 1, error
    expected = read_annotations("kinetics", str(data), "train")
    clean = read_annotations(
        "kinetics", str(out / "clean"), "train", separator="\t", class_names=expected.class_names, num_classes=2
    )
    assert [(clean.path(i), clean.label(i)) for i in range(len(clean))] == [
        (expected.path(i), expected.label(i)) for i in range(len(expected)) if "bad" not in expected.path(i)
    ]
    assert read_class_names(out / "clean" / "class_names.txt") == expected.class_names
    with open(out / "bad_train.csv", newline="") as stream:
        errors = [row for row in csv.DictReader(stream) if row["severity"] == "error"]
    assert [row["path"] for row in errors] == [str(data / "train" / "a, b" / "bad\n.mp4")]
    ElementTree.fromstring((out / "summary.html").read_text().removeprefix("<!DOCTYPE html>\n"))


@pytest.mark.parametrize("separator", [" ", ",", "\t"])
def test_a_clean_list_keeps_its_lines_whatever_stands_between_them(
    maker: ClipMaker, tmp_path: Path, separator: str
) -> None:
    names = ["a.mp4", "b\nc.mp4", "d,e f\tg.mp4", "bad\n.mp4", '"h".mp4']
    for name in names:
        maker.write(tmp_path / name, "empty" if "bad" in name else "")
    lines = [format_line([name, "0"], separator, "\r\n") for name in names]
    (tmp_path / "train.csv").write_bytes(("\ufeff" + "".join(lines) + "\n\n").encode())
    videos = CheckedList("train", read_kinetics_csv(tmp_path / "train.csv", separator=separator), separator)
    check_lists([videos], tmp_path / "out")
    clean = tmp_path / "out" / "clean" / "train.csv"
    assert clean.read_bytes().decode() == "".join(line for line in lines if "bad" not in line)
    kept = read_kinetics_csv(clean, separator=separator, prefix=str(tmp_path))
    assert [kept.listed(i) for i in range(len(kept))] == [name for name in names if "bad" not in name]


def test_names_that_are_not_utf_8_are_named_before_any_video_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / os.fsdecode(b"v\xe9.mp4")).touch()
    settings = ("DATA.PATH_TO_DATA_DIR", tmp_path, "MODEL.NUM_CLASSES", 1)
    status, printed, error = run_check(capsys, "--split", "train", "--out", tmp_path / "out", *settings)
    assert status == 2 and not printed and "train: a path that is not UTF-8 text" in error and r"v\udce9.mp4" in error
    out = tmp_path / os.fsdecode(b"out\xe9")
    status, printed, error = run_check(capsys, "--split", "train", "--out", out, *settings)
    assert status == 2 and "--out: a path that is not UTF-8 text" in error and not out.exists()
