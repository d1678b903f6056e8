"""The benchmarks of readers and loaders run, and leave out what gives other frames."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.programs import run_program


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_program(f"benchmarks/{script}", *arguments)


def test_readers_take_turns_and_wrong_frames_are_not_timed(make: Callable[..., Path], tmp_path: Path) -> None:
    make("plain.mp4", num_frames=64)
    make("uneven.mp4", num_frames=64, times=[*range(32), *range(32, 192, 5)])
    out = tmp_path / "readers.json"
    done = run("data_readers.py", "--clips", str(tmp_path), "--rounds", "2", "--out", str(out),
               "--samplings", "8 frames, uniform", "1 frame")  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    assert [(row["clip"], row["sampling"]) for row in rows] == [
        (clip, sampling) for clip in ("plain.mp4", "uneven.mp4") for sampling in ("8 frames, uniform", "1 frame")
    ]
    for row in rows:
        assert {"auto", "pyav", "decord", "decord directly"} <= row["results"].keys()
        assert all(result["ms"] > 0 for result in row["results"].values())
        assert row["results"][row["fastest_direct"]]["times_as_fast_as_fastest_direct"] == 1
    assert not rows[0]["excluded"]
    assert "PyAV directly, seeking" in rows[2]["excluded"]


def test_wrong_arguments_are_answered_in_one_line(tmp_path: Path) -> None:
    done = run("data_readers.py", "--clips", str(tmp_path))
    assert done.returncode == 2 and "holds no video, expected names that end in .mp4" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="memory is read from /proc")
def test_loaders_take_turns_and_starts_are_measured(make: Callable[..., Path], tmp_path: Path) -> None:
    make("plain.mp4", num_frames=64)
    out = tmp_path / "data.json"
    done = run("data.py", "--clips", str(tmp_path), "--workers", "0", "2", "--samplings", "8x32", "--num-videos", "4",
               "--rounds", "1", "--out", str(out))  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert [row["workers"] for row in result["loaders"]] == [0, 2]
    for row in result["loaders"]:
        ours, peers = row["results"]["videoattn"], [name for name in row["results"] if "pytorchvideo" in name]
        assert ours["videoattn_times_as_fast"] == 1 and len(peers) == 2 and row["fastest_direct"] in row["results"]
        assert all(result["clips_per_second"] > 0 for result in row["results"].values())
    assert result["startup"].keys() == {"1000", "1000000"}
    assert all(value > 0 for figures in result["startup"].values() for value in figures.values())


@pytest.mark.slow
def test_memory_is_sampled_over_good_and_damaged_videos(make: Callable[..., Path], tmp_path: Path) -> None:
    make("plain.mp4")
    out, plot = tmp_path / "memory.json", tmp_path / "memory.png"
    done = run("data_memory.py", "--clips", str(tmp_path), "--num-clips", "60", "--every", "20",
               "--out", str(out), "--plot", str(plot))  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert [sample["clips"] for sample in result["samples"]] == [0, 20, 40, 60]
    assert sum(result["outcomes"].values()) == 60 and result["outcomes"]["read"] >= 10
    assert result["outcomes"]["not_a_video"] >= 10
    assert len(result["growth"]["open_files"]) == 1
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_scaling_is_timed_for_every_size(make: Callable[..., Path], tmp_path: Path) -> None:
    make("large.mp4", size=(300, 400), num_frames=64)
    out = tmp_path / "scaling.json"
    done = run("data_scaling.py", "--clips", str(tmp_path), "--rounds", "2", "--short-sides", "0", "256",
               "--out", str(out))  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text())["rows"]
    steps = ("decode", "crop", "RandAugment and crop")
    assert row.keys() == {"clip", *(f"{step}, {size}" for step in steps for size in (0, 256))}
