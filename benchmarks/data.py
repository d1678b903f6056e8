#!/usr/bin/env python3
"""Compare the speed of loaders with decoders called directly and pytorchvideo's dataset, and how quickly they start.

Examples:
    python benchmarks/data.py                         # renders a ten-second video in the usual formats
    python benchmarks/data.py --clips my/videos --workers 0 4 16 --rounds 9 --out data.json
    python benchmarks/data_readers.py                 # single readers, by processor time
    python benchmarks/data_memory.py                  # memory and open files over ten thousand clips

A round decodes one random clip of each of `--num-videos` videos with every contender in turn, by the clock; given are
medians of all rounds and of their ratios. What is called directly only decodes, and leaves the frames in the process
that decoded them; loaders resize, crop, flip, and hand over batches. With 0 workers all happens in one process.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from data_loaders import Contender, Direct, OurLoader, PytorchvideoLoader, TorchLoader, take_turns
from data_readers import contenders as readers
from data_readers import decoder_versions, find_clips, round_to_all, what_is_wrong
from data_startup import measure_startup
from interleave import median_ratio, quartiles

from videoattn.cli.run_tool import run_tool
from videoattn.data.clips.sampling import ClipSampler
from videoattn.engine.log import describe_machine, package_versions
from videoattn.files import atomic_write

RESULTS = Path(__file__).parent / "results/data_cpu.json"
SAMPLINGS = {"8x32": ClipSampler("dense", 8, 32), "16x4": ClipSampler("dense", 16, 4)}
LIST_LENGTHS = (1_000, 1_000_000)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="folder of videos; default: videos rendered here")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    parser.add_argument("--peers", type=int, default=1, metavar="N",
                        help="the first N videos go to pytorchvideo, too, which is slow; default: 1")  # fmt: skip
    parser.add_argument("--samplings", nargs="+", choices=SAMPLINGS, default=list(SAMPLINGS), metavar="NAME")
    parser.add_argument("--num-videos", type=int, default=16, help="in a round; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--limit", type=float, default=240, help="seconds for each table; default: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: %(default)s")
    args = parser.parse_args(argv)
    for name, least in (("rounds", 1), ("num_videos", 4)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} expects {least} or more, got {getattr(args, name)}")
    if min(args.workers) < 0:
        raise ValueError(f"--workers expects numbers from 0 on, got {args.workers}")
    torch.set_num_threads(1)
    clips = {name: path for name, path in find_clips(args.clips).items() if path.is_file()}
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for number, (name, path) in enumerate(clips.items()):
            folder = list_of(path, Path(temporary, name), args.num_videos)
            for sampling in args.samplings:
                for num_workers in args.workers:
                    build = builders(folder, sampling, num_workers, with_peers=number < args.peers)
                    rows.append(measure(build, path, sampling, num_workers, args.rounds, args.limit))
                    print(show(rows[-1]), flush=True)
        first = next(iter(clips.values()))
        startup = {str(length): measure_startup(first, Path(temporary, str(length)), length) for length in LIST_LENGTHS}
    for length, figures in startup.items():
        print(f"{length} videos: " + ", ".join(f"{name} {value:.3g}" for name, value in figures.items()))
    content = {
        "what": "clips per second by the clock, medians and quartiles of interleaved rounds; start of a run",
        "date": date.today().isoformat(), "num_videos": args.num_videos, "loaders": round_to_all(rows),
        "startup": round_to_all(startup), "machine": describe_machine(),
        "versions": package_versions() | decoder_versions(),
    }  # fmt: skip
    with atomic_write(args.out) as temporary_file:
        temporary_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written: {args.out}")


def list_of(video: Path, folder: Path, num_videos: int) -> Path:
    """A folder with links to one video under many names, and their list."""
    folder.mkdir(parents=True)
    names = [f"{number}{video.suffix}" for number in range(num_videos)]
    for name in names:
        (folder / name).symlink_to(video.resolve())
    (folder / "train.csv").write_text("".join(f"{name} 0\n" for name in names), encoding="utf-8")
    return folder


def builders(folder: Path, sampling: str, num_workers: int, *, with_peers: bool) -> dict[str, Callable[[], Contender]]:
    """Whole loaders by name."""
    sampler = SAMPLINGS[sampling]
    build: dict[str, Callable[[], Contender]] = {
        "videoattn": partial(OurLoader, folder, sampler, num_workers),
        "torch's DataLoader, our dataset": partial(TorchLoader, folder, sampler, num_workers),
    }
    if with_peers:
        for decoder in ("pyav", "decord"):
            build[f"pytorchvideo, {decoder}"] = partial(PytorchvideoLoader, folder, sampler, num_workers, decoder)
    for name, decode in readers(folder / "0.mp4").items():
        if name == "auto" or "directly" in name:
            name = "open_video" if name == "auto" else name
            build[name] = partial(Direct, folder, sampler, num_workers, decode)
    return build


def measure(
    build: Mapping[str, Callable[[], Contender]],
    video: Path,
    sampling: str,
    num_workers: int,
    rounds: int,
    limit: float,
) -> dict[str, Any]:
    """Rates of all contenders that are right about the video, and ours as ratios to theirs."""
    sampler, excluded = SAMPLINGS[sampling], {}
    for name, decode in readers(video).items():
        reason = what_is_wrong(decode, str(video), sampler) if name in build else ""
        if reason:
            excluded[name] = reason
    build = {name: make for name, make in build.items() if name not in excluded}
    with ExitStack() as stack:
        contenders = {name: stack.enter_context(closing(make())) for name, make in build.items()}
        rates = take_turns(contenders, rounds, limit, f"{video.name}, {sampling}, {num_workers} workers")
    direct = [name for name in rates if "directly" in name]
    fastest = max(direct, key=lambda name: statistics.median(rates[name]), default="")
    results = {
        name: {
            "clips_per_second": statistics.median(own),
            "quartiles": quartiles(own),
            "frames_per_second": sampler.num_frames * statistics.median(own),
            "videoattn_times_as_fast": median_ratio(own, rates["videoattn"]),
        }
        for name, own in rates.items()
    }
    return {
        "clip": video.name, "sampling": sampling, "workers": num_workers, "rounds": len(rates["videoattn"]),
        "fastest_direct": fastest, "results": results, "excluded": excluded,
    }  # fmt: skip


def show(row: Mapping[str, Any]) -> str:
    lines = [f"{row['clip']}, {row['sampling']}, {row['workers']} workers"]
    for name, result in row["results"].items():
        low, high = result["quartiles"]
        lines.append(
            f"  {name:32} {result['clips_per_second']:7.2f} clips/s ({low:.2f} to {high:.2f})"
            f"   videoattn {result['videoattn_times_as_fast']:6.2f}x"
        )
    return "\n".join([*lines, *(f"  {name:32} not timed, {reason}" for name, reason in row["excluded"].items())])


if __name__ == "__main__":
    sys.exit(run_tool(main))
