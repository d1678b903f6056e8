#!/usr/bin/env python3
"""Measure resident memory and open files of a process that decodes ten thousand clips (Linux), to find leaks.

Examples:
    nice -n 19 python benchmarks/data_memory.py
    python benchmarks/data_memory.py --clips my/videos --num-clips 2000 --out memory.json --plot memory.png

Four frames of one video after the other are read, the videos and the readers (auto, pyav, decord, and torchcodec where
it is installed) taking turns. Good videos are followed by damaged copies of theirs: cut short, with flipped bytes, and
what is no video at all. By default the videos are those of data_readers.py.
"""

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from data_readers import decoder_versions, find_clips
from tqdm import tqdm

from videoattn.cli.run_tool import run_tool
from videoattn.data.readers.open_video import DecodeError, check_backend, open_video
from videoattn.engine.log import describe_machine, package_versions
from videoattn.files import atomic_write

RESULTS = Path(__file__).parent / "results/data_memory.json"
PLOT = Path(__file__).parents[1] / "docs/images/data_memory.png"
FLIPPED_BYTES, NUM_FRAMES = 100, 4
MEGABYTE = 1e6


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="folder of videos; default: videos rendered here")
    parser.add_argument("--num-clips", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--every", type=int, default=100, help="clips between samples; default: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--plot", type=Path, default=PLOT, help="picture of the curve; default: %(default)s")
    args = parser.parse_args(argv)
    if not os.path.isdir("/proc/self/fd"):
        raise ValueError("memory and open files are read from /proc, which this system does not have")
    if not 1 <= args.every <= args.num_clips:
        raise ValueError(f"--every expects 1 to --num-clips {args.num_clips}, got {args.every}")
    torch.set_num_threads(1)
    good = list(find_clips(args.clips).values())
    with tempfile.TemporaryDirectory() as folder:
        files = [*good, *damage([path for path in good if path.is_file()], Path(folder))]
        samples, outcomes = decode_many(files, args.num_clips, args.every)
    content = {
        "what": "resident memory (MB of a million bytes) and open files of a process that decodes clip after clip",
        "date": date.today().isoformat(), "num_clips": args.num_clips, "frames_per_clip": NUM_FRAMES,
        "outcomes": dict(outcomes), "samples": samples, "growth": growth(samples),
        "machine": describe_machine(), "versions": package_versions() | decoder_versions(),
    }  # fmt: skip
    with atomic_write(args.out) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    plot(samples, args.plot)
    print(json.dumps(content["growth"], indent=1))
    print(f"written: {args.out}, {args.plot}")


def damage(videos: Sequence[Path], folder: Path) -> list[Path]:
    """Damaged copies of videos, and files that are none."""
    rng, found = random.Random(0), []
    for path in videos:
        content = path.read_bytes()
        cut = folder / f"cut_{path.name}"
        cut.write_bytes(content[: len(content) * 2 // 3])
        flipped = folder / f"flipped_{path.name}"
        changed = bytearray(content)
        for place in rng.sample(range(len(content) // 10, len(content)), min(FLIPPED_BYTES, len(content) // 2)):
            changed[place] ^= 1 << rng.randrange(8)
        flipped.write_bytes(changed)
        found += [cut, flipped]
    for name, content in (("empty.mp4", b""), ("text.mp4", b"no video"), ("noise.avi", rng.randbytes(10_000))):
        (folder / name).write_bytes(content)
        found.append(folder / name)
    return found


def decode_many(files: Sequence[Path], num_clips: int, every: int) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Return the memory and files of the process before, during and after, and how many clips were read or refused."""
    samples, outcomes = [sample(0)], Counter[str]()
    rng = random.Random(0)
    turns = itertools.cycle(itertools.product(backends(), files))
    for number in tqdm(range(1, num_clips + 1), "decoding", leave=False, disable=None):
        backend, path = next(turns)
        try:
            with open_video(path, backend) as reader:  # type: ignore[arg-type]
                reader.read([rng.randrange(reader.num_frames) for _ in range(NUM_FRAMES)])
            outcomes["read"] += 1
        except DecodeError as error:
            outcomes[error.kind] += 1
        if number % every == 0:
            samples.append(sample(number))
    return samples, outcomes


def backends() -> Iterator[str]:
    """Those whose libraries are here."""
    for name in ("auto", "pyav", "decord", "torchcodec"):
        try:
            check_backend(name)  # type: ignore[arg-type]
        except ValueError:
            continue
        yield name


def sample(number: int) -> dict[str, Any]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "clips": number, "megabytes": round(pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE, 1),
        "open_files": len(os.listdir("/proc/self/fd")), "threads": len(os.listdir("/proc/self/task")),
    }  # fmt: skip


def growth(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what was held at the start and on average in each quarter, and the straight line through the last half."""
    megabytes = torch.tensor([row["megabytes"] for row in samples[1:]], dtype=torch.float64)
    clips = torch.tensor([row["clips"] for row in samples[1:]], dtype=torch.float64)
    half = len(clips) // 2
    x, y = clips[half:] - clips[half:].mean(), megabytes[half:] - megabytes[half:].mean()
    return {
        "megabytes_at_start": samples[0]["megabytes"],
        "megabytes_by_quarter": [round(float(part.mean()), 1) for part in megabytes.chunk(4)],
        "megabytes_per_1000_clips_in_the_last_half": round(float(1000 * (x * y).sum() / (x * x).sum().clamp(min=1)), 3),
        "open_files": sorted({row["open_files"] for row in samples[1:]}),
        "threads": sorted({row["threads"] for row in samples[1:]}),
    }


def plot(samples: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot(xlabel="clips decoded", ylabel="resident memory, MB")
    clips = [row["clips"] for row in samples]
    axes.plot(clips, [row["megabytes"] for row in samples])
    axes.set_ylim(0, 1.3 * max(row["megabytes"] for row in samples))
    files = axes.twinx()
    files.plot(clips, [row["open_files"] for row in samples], color="tab:orange")
    files.set_ylabel("open files (orange)")
    files.set_ylim(0, 2 * max(row["open_files"] for row in samples))
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


if __name__ == "__main__":
    sys.exit(run_tool(main))
