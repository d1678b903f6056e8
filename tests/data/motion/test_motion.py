"""Motion: its clips are a function of the seed, no single frame reveals the class, and both list formats agree."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.programs import run_program
from videoattn.data.lists import read_annotations, read_class_names
from videoattn.data.motion import render as program
from videoattn.data.motion import scenes

ROOT = Path(__file__).parents[3]

SMALL = program.Settings("short", num_train=16, num_val=8, width=40, height=32, num_frames=8, seed=3)
SHORT = list(scenes.SHORT_CLASSES)
NUM_DRAWS, NUM_FRAMES = 600, 12
# With 8 classes x 4 attributes x 3 times, one in a thousand seeds would pass this by chance (Kolmogorov's bound).
FARTHEST = np.sqrt(np.log(2 * 96 / 1e-3) / (2 * NUM_DRAWS))


@pytest.fixture(scope="module")
def phases() -> np.ndarray:
    """[class, draw, attribute, frame]"""
    rng = np.random.default_rng(0)
    draws = [[scenes.short_phases(c, NUM_FRAMES, rng) for _ in range(NUM_DRAWS)] for c in range(len(SHORT))]
    return np.array(draws, np.float64)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("motion")
    program.make_motion(folder, SMALL, num_workers=2)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_frames(path: Path) -> np.ndarray:
    import av

    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("frame", [0, NUM_FRAMES // 2, NUM_FRAMES - 1])
def test_at_every_frame_each_attribute_is_uniform_whatever_the_class(phases: np.ndarray, frame: int) -> None:
    ordered = np.sort(phases[..., frame], axis=1)
    below = np.arange(1, NUM_DRAWS + 1)[:, None] / NUM_DRAWS
    distance = np.maximum(np.abs(below - ordered), np.abs(below - 1 / NUM_DRAWS - ordered)).max(axis=1)
    assert distance.shape == (8, 4)
    assert distance.max() < FARTHEST, f"class and attribute {np.unravel_index(distance.argmax(), distance.shape)}"


@pytest.mark.parametrize("frame", [0, NUM_FRAMES - 1])
def test_at_every_frame_attributes_are_independent_whatever_the_class(phases: np.ndarray, frame: int) -> None:
    for states in phases[..., frame]:
        waves = np.concatenate([np.cos(2 * np.pi * states), np.sin(2 * np.pi * states)], axis=1)
        correlation = np.corrcoef(waves, rowvar=False) - np.eye(8)
        assert np.abs(correlation).max() < 5 / np.sqrt(NUM_DRAWS)


@pytest.mark.parametrize("name", SHORT)
def test_the_attribute_of_the_class_runs_steadily_in_its_direction_and_the_others_stay(
    phases: np.ndarray, name: str
) -> None:
    attribute, direction = {
        "translate_left": (0, -1), "translate_right": (0, 1), "translate_up": (1, -1), "translate_down": (1, 1),
        "recede": (2, -1), "approach": (2, 1), "rotate_counterclockwise": (3, -1), "rotate_clockwise": (3, 1),
    }[name]  # fmt: skip
    steps = np.diff(phases[SHORT.index(name)], axis=-1)
    steps = (steps + 0.5) % 1.0 - 0.5  # across the end of the cycle
    moved = steps[:, attribute]
    assert (direction * moved > 0.01).all()
    np.testing.assert_allclose(moved, np.broadcast_to(moved[:, :1], moved.shape), atol=1e-6)
    assert not np.delete(steps, attribute, axis=1).any()


def test_painted_motion_goes_where_its_name_says() -> None:
    frames = np.zeros((2, 64, 64, 3), np.float32)
    phases = np.array([[0.4, 0.6], [0.5, 0.3], [0.2, 0.8], [0.0, 0.0]], np.float32)  # right, up, closer
    scenes.paint(frames, phases, np.ones(3, np.float32), np.ones(2, np.float32), np.random.default_rng(0))
    covered = frames.sum(axis=-1) > 0
    (top, left), (top_later, left_later) = (np.argwhere(mask).mean(axis=0) for mask in covered)
    assert left_later > left + 8 and top_later < top - 8
    assert covered[1].sum() > 2 * covered[0].sum()


def test_a_quarter_turn_clockwise_takes_the_lit_half_from_the_right_to_the_bottom() -> None:
    frames = np.zeros((2, 64, 64, 3), np.float32)
    phases = np.array([[0.5, 0.5], [0.5, 0.5], [0.9, 0.9], [0.0, 0.25]], np.float32)
    scenes.paint(frames, phases, np.ones(3, np.float32), np.ones(2, np.float32), np.random.default_rng(0))
    light = frames.sum(axis=-1)
    assert light[0, :, 32:].sum() > 1.5 * light[0, :, :32].sum()
    assert light[1, 32:].sum() > 1.5 * light[1, :32].sum()


@pytest.mark.parametrize("label", range(6))
def test_long_clips_show_each_colour_once_in_a_third_of_its_own_and_the_class_is_their_order(label: int) -> None:
    num_frames = 48
    clip = scenes.render_long(label, num_frames, 48, 64, np.random.default_rng(label)).astype(int)
    seen = []
    for channel in range(3):
        others = np.delete(clip, channel, axis=-1).max(axis=-1)
        coloured = ((clip[..., channel] - others) > 70).sum(axis=(1, 2))
        assert coloured.max() > 100
        frames = np.flatnonzero(coloured > coloured.max() / 2)
        assert len(frames) >= 2 and len(frames) == frames[-1] - frames[0] + 1, "one event without a break"
        assert frames[0] // (num_frames // 3) == frames[-1] // (num_frames // 3)
        seen.append((frames[0], ("red", "green", "blue")[channel]))
    order = [colour for _, colour in sorted(seen)]
    assert "_".join(order) == list(scenes.LONG_CLASSES)[label]


def test_encoding_the_same_frames_again_gives_the_same_bytes(tmp_path: Path) -> None:
    frames = scenes.render_short(3, 20, 64, 80, np.random.default_rng(3))
    encoded = []
    for size in range(1, 30):
        displaced = np.zeros(size * 999, np.uint8)  # so that the frames lie elsewhere in memory
        program.encode(frames.copy(), tmp_path / "clip.mp4")
        encoded.append((tmp_path / "clip.mp4").read_bytes())
        assert displaced.size and encoded[-1] == encoded[0]


def test_files_depend_on_the_seed_alone_and_not_on_the_number_of_processes(made: Path, tmp_path: Path) -> None:
    program.make_motion(tmp_path / "one", SMALL, num_workers=1)
    assert contents(tmp_path / "one") == contents(made)
    other = dataclasses.replace(SMALL, seed=4)
    program.make_motion(tmp_path / "other", other, num_workers=1)
    clips, theirs = (sorted((folder / "videos").iterdir()) for folder in (made, tmp_path / "other"))
    assert all(a.read_bytes() != b.read_bytes() for a, b in zip(clips, theirs, strict=True))


def test_a_clip_does_not_depend_on_how_many_there_are(made: Path, tmp_path: Path) -> None:
    program.make_motion(tmp_path, dataclasses.replace(SMALL, num_train=3, num_val=2))
    for path in (tmp_path / "videos").iterdir():
        assert path.read_bytes() == (made / "videos" / path.name).read_bytes()


def test_kinetics_and_ssv2_lists_name_the_same_clips_with_the_same_labels(made: Path) -> None:
    for split, count in (("train", 16), ("val", 8)):
        kinetics = read_annotations("kinetics", str(made), split, num_classes=8)
        ssv2 = read_annotations("ssv2", str(made), split, num_classes=8)
        assert len(kinetics) == len(ssv2) == count
        for index in range(count):
            assert Path(kinetics.path(index)).is_file()
            assert kinetics.path(index) == ssv2.path(index)
        assert kinetics.labels.tolist() == ssv2.labels.tolist()
        assert set(Counter(kinetics.labels.tolist()).values()) == {count // 8}


def test_test_lists_are_the_validation_clips_and_the_ssv2_one_has_no_labels(made: Path) -> None:
    assert (made / "test.csv").read_bytes() == (made / "val.csv").read_bytes()
    items = json.loads((made / "something-something-v2-test.json").read_text())
    assert all(list(item) == ["id"] for item in items)
    assert not read_annotations("ssv2", str(made), "test").is_labelled


def test_class_names_are_in_alphabetical_order_as_kinetics_has_them(made: Path) -> None:
    assert read_class_names(made / "class_names.txt") == tuple(SHORT) == tuple(sorted(SHORT))


def test_ssv2_items_are_shaped_as_published(made: Path) -> None:
    labels = json.loads((made / "something-something-v2-labels.json").read_text())
    assert sorted(labels.values()) == [str(label) for label in range(8)]
    item = json.loads((made / "something-something-v2-train.json").read_text())[0]
    assert set(item) == {"id", "label", "template", "placeholders"}
    filled = item["template"]
    for placeholder in item["placeholders"]:
        filled = filled.replace("[something]", placeholder, 1)
    assert filled == item["label"]
    assert item["template"].replace("[", "").replace("]", "") in labels


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_both_encoders_keep_the_frames(codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import av

    if codec not in av.codecs_available:
        pytest.skip(f"PyAV has no {codec} here")
    if codec == "mpeg4":
        monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    frames = scenes.render_short(0, 9, 48, 64, np.random.default_rng(0))
    program.encode(frames, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == {"libx264": "h264", "mpeg4": "mpeg4"}[codec]
        assert stream.average_rate == program.FPS
    decoded = read_frames(tmp_path / "clip.mp4")
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).mean() < 8  # colour is kept at half the size


def test_clips_have_the_size_and_length_asked_for(made: Path) -> None:
    for path in sorted((made / "videos").iterdir())[:4]:
        assert read_frames(path).shape == (8, 32, 40, 3)


def test_a_complete_folder_is_left_as_it_is_and_a_missing_clip_of_a_stopped_run_is_made_again(tmp_path: Path) -> None:
    settings = dataclasses.replace(SMALL, num_train=4, num_val=2)
    program.make_motion(tmp_path, settings)
    before = contents(tmp_path)
    (tmp_path / "motion.json").rename(tmp_path / "motion.unfinished.json")
    kept, lost = sorted((tmp_path / "videos").iterdir())[:2]
    lost.unlink()
    os.utime(kept, (1, 1))
    program.make_motion(tmp_path, settings)
    assert contents(tmp_path) == before
    program.make_motion(tmp_path, settings)
    assert kept.stat().st_mtime == 1


@pytest.mark.parametrize("stopped", [False, True])
def test_clips_of_other_settings_are_never_mixed_in(stopped: bool, tmp_path: Path) -> None:
    first = dataclasses.replace(SMALL, num_train=4, num_val=2)
    second = dataclasses.replace(SMALL, num_train=2, num_val=2, seed=9)
    program.make_motion(tmp_path / "old", first)
    if stopped:
        (tmp_path / "old" / "motion.json").rename(tmp_path / "old" / "motion.unfinished.json")
    with pytest.raises(ValueError, match=r"seed 3 there, 9 asked.*--overwrite"):
        program.make_motion(tmp_path / "old", second)
    program.make_motion(tmp_path / "old", second, overwrite=True)
    program.make_motion(tmp_path / "new", second)
    assert contents(tmp_path / "old") == contents(tmp_path / "new")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "medium"}, "variant.*short, long.*'medium'"),
        ({"width": 41}, "even numbers.*41x32"),
        ({"height": 16}, "from 32 on.*40x16"),
        ({"num_frames": 4}, "8 or more.*got 4"),
        ({"variant": "long", "num_frames": 16}, "24 or more.*long.*got 16"),
        ({"num_val": 0}, "1 or more.*got 16 and 0"),
    ],
)
def test_settings_that_cannot_be_rendered_are_refused_by_name_and_value(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


def test_the_program_reports_a_mistake_in_one_line_and_makes_nothing(tmp_path: Path) -> None:
    result = run_program("datasets/make_motion.py", tmp_path / "motion", "--size", "big")
    assert result.returncode == 2
    assert result.stderr.strip() == "error: --size expects WIDTHxHEIGHT such as 64x64, got 'big'"
    assert not (tmp_path / "motion").exists()


def make_command(folder: Path, num_val: int) -> list[str]:
    sizes = ["--num-train", "1", "--num-val", str(num_val), "--size", "32x32", "--num-workers", "2"]
    return [sys.executable, str(ROOT / "datasets" / "make_motion.py"), str(folder), *sizes]


def start_rendering(folder: Path) -> subprocess.Popen[str]:
    """Start a process, in a group of its own, and return it once it has rendered some of 200 clips."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        make_command(folder, 200), start_new_session=True, env=environment, stdout=subprocess.PIPE, text=True
    )
    while len(list(folder.glob("videos/val_*.mp4"))) < 20:
        assert process.poll() is None
    return process


@pytest.mark.slow
def test_of_two_processes_one_renders_and_the_other_waits(tmp_path: Path) -> None:
    folder, begun = tmp_path / "motion", time.monotonic()
    first = start_rendering(folder)
    os.killpg(first.pid, signal.SIGSTOP)
    long_enough = 3 * (time.monotonic() - begun)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    second = subprocess.Popen(make_command(folder, 200), env=environment, stdout=subprocess.PIPE, text=True)
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(long_enough)
    os.killpg(first.pid, signal.SIGCONT)
    said = [process.communicate(timeout=300)[0] for process in (first, second)]
    assert "200 validation clips of 8 classes" in said[0] and "is complete" in said[1]
    assert len(list((folder / "videos").iterdir())) == 201  # no temporary file among them


@pytest.mark.slow
def test_a_rendering_that_was_killed_is_continued(tmp_path: Path) -> None:
    folder = tmp_path / "motion"
    process = start_rendering(folder)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "motion.json").exists() and not (folder / "val.csv").exists()
    (folder / "videos" / ".val_000199.mp4.1.tmp").write_bytes(b"half a clip")
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("videos/*.mp4")}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(make_command(folder, 200), check=True, env=environment, capture_output=True)
    assert len(list((folder / "videos").iterdir())) == 201
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    whole = tmp_path / "whole"
    subprocess.run(make_command(whole, 200), check=True, env=environment, capture_output=True)
    assert contents(folder) == contents(whole)


def test_a_complete_folder_is_used_without_a_lock(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made / ".lock").unlink(missing_ok=True)
    program.make_motion(made, SMALL)
    assert "is complete" in capsys.readouterr().out and not (made / ".lock").exists()
