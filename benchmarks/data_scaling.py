#!/usr/bin/env python3
"""Time saved by DATA.DECODING_SHORT_SIZE: training clips of large videos, scaled while decoding or afterwards.

Examples:
    python benchmarks/data_scaling.py
    python benchmarks/data_scaling.py --clips my/videos --short-sides 0 256 --out scaling.json

A turn is to open a video, decode 16 frames of it and crop them for training, without and with RandAugment
(DATA.TRAIN_JITTER_SCALES 256 and 320, crops of 224). All take turns; given are medians of processor time.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from data_readers import Choose, decoder_versions, find_clips, round_to_all, take_turns
from render_clips import KINDS, render

from videoattn.cli.run_tool import run_tool
from videoattn.data.augment.transforms import TrainTransform
from videoattn.data.clips.sampling import ClipSampler
from videoattn.data.readers.open_video import open_video
from videoattn.engine.log import describe_machine, package_versions
from videoattn.files import atomic_write, cache_folder

RESULTS = Path(__file__).parent / "results/data_scaling.json"
SIZES = {"1920x1080": (1920, 1080), "1280x720": (1280, 720), "340x256": (340, 256)}
RAND_AUGMENT = "rand-m7-n4-mstd0.5-inc1"
SAMPLER = ClipSampler("dense", 16, 4, 30.0)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="folder of videos; default: H.264 of three sizes, rendered here")
    parser.add_argument("--short-sides", type=int, nargs="+", default=[0, 256, 320], help="default: 0 256 320")
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: %(default)s")
    args = parser.parse_args(argv)
    if args.rounds < 2:
        raise ValueError(f"--rounds expects 2 or more, got {args.rounds}")
    torch.set_num_threads(1)
    rows = []
    for name, path in (find_clips(args.clips) if args.clips else render_sizes()).items():
        rows.append({"clip": name, **measure(path, args.short_sides, args.rounds)})
        print(json.dumps(rows[-1]), flush=True)
    content = {
        "what": "processor milliseconds to open a video, decode 16 frames and make a training clip of them; medians of "
        "interleaved rounds, by what is done with the frames and DATA.DECODING_SHORT_SIZE",
        "date": date.today().isoformat(), "rounds": args.rounds, "rows": rows,
        "machine": describe_machine(), "versions": package_versions() | decoder_versions(),
    }  # fmt: skip
    with atomic_write(args.out) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written: {args.out}")


def render_sizes() -> dict[str, Path]:
    """The same scene in three sizes."""
    found: dict[str, Path] = {}
    for name, size in SIZES.items():
        found |= render(cache_folder() / "benchmark_clips", {f"h264_{name}.mp4": KINDS["h264_250.mp4"]}, size)
    return found


def measure(path: Path, short_sides: Sequence[int], rounds: int) -> dict[str, Any]:
    """Milliseconds by what is done with the frames and by short side."""
    steps = {"decode": None, "crop": build_transform(""), "RandAugment and crop": build_transform(RAND_AUGMENT)}
    tried = {
        f"{step}, {short_side}": partial(make_clip, short_side, transform)
        for step, transform in steps.items()
        for short_side in short_sides
    }
    seconds = take_turns(tried, str(path), SAMPLER, rounds, path.name)
    return round_to_all({name: 1e3 * statistics.median(times) for name, times in seconds.items()})


def build_transform(aa_type: str) -> TrainTransform:
    return TrainTransform(crop_size=224, jitter_scales=(256, 320), flip=True, aa_type=aa_type)


def make_clip(short_side: int, transform: TrainTransform | None, path: str, choose: Choose) -> None:
    with open_video(path, short_side=short_side) as reader:
        frames = reader.read(choose(reader.num_frames, reader.fps)).permute(0, 3, 1, 2)
    if transform is not None:
        transform(frames, 0)


if __name__ == "__main__":
    sys.exit(run_tool(main))
