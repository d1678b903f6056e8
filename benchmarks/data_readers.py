#!/usr/bin/env python3
"""Compare the speed of the video readers with decord, PyAV and torchcodec called directly.

Examples:
    python benchmarks/data_readers.py                      # renders ten-second videos in the usual formats
    python benchmarks/data_readers.py --clips my/videos --rounds 15 --out readers.json

A turn is to open one video, choose frames by its length and rate, and decode them to one array. All contenders take
turns in every round, with the same random choice; given are medians with quartiles of the processor time of the whole
process, since decord decodes in a thread of its own. Everything else runs in one thread. What a contender returns is
first compared with the video decoded in order: one that gives other frames is named and not timed.
"""

import argparse
import importlib.metadata
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleave import median_ratio, quartiles, round_to
from render_clips import extract, render
from tqdm import tqdm

from videoattn.cli.run_tool import run_tool
from videoattn.data.clips.sampling import ClipSampler
from videoattn.data.readers.open_video import DecodeError, check_backend, open_video
from videoattn.engine.log import describe_machine, package_versions
from videoattn.files import atomic_write, cache_folder

RESULTS = Path(__file__).parent / "results/data_readers.json"
VIDEOS = (".mp4", ".webm", ".mkv", ".avi", ".mov")
Choose = Callable[[int, float], list[int]]  # frames of a video by its length and rate
Decode = Callable[[str, Choose], Any]  # the frames as [T, H, W, 3], whatever holds them
SAMPLINGS = {
    "8 frames, uniform": ClipSampler("segments", 8),
    "16x4 window": ClipSampler("dense", 16, 4, 30.0),
    "1 frame": ClipSampler("dense", 1, 1, 30.0),
}
GREY_LEVELS = 1.0  # what two decoders' colours may differ by, on average over a frame


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="folder of videos; default: videos rendered here")
    parser.add_argument("--rounds", type=int, default=15, help="default: %(default)s")
    parser.add_argument("--samplings", nargs="+", choices=SAMPLINGS, default=list(SAMPLINGS), metavar="NAME")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: %(default)s")
    args = parser.parse_args(argv)
    if args.rounds < 2:
        raise ValueError(f"--rounds expects 2 or more, got {args.rounds}")
    torch.set_num_threads(1)
    rows = []
    for name, path in find_clips(args.clips).items():
        for title in args.samplings:
            rows.append({"clip": name, "sampling": title, **measure(path, SAMPLINGS[title], args.rounds)})
            print(show(rows[-1]), flush=True)
    content = {
        "what": "processor milliseconds to open a video and decode a clip; medians and quartiles of interleaved rounds",
        "date": date.today().isoformat(), "rounds": args.rounds, "rows": round_to_all(rows),
        "machine": describe_machine(), "versions": package_versions() | decoder_versions(),
    }  # fmt: skip
    with atomic_write(args.out) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written: {args.out}")


def find_clips(folder: Path | None) -> dict[str, Path]:
    """Videos by name: those of a folder, else rendered ones and the frames of one of them."""
    if folder is None:
        clips = render(cache_folder() / "benchmark_clips")
        first = next(iter(clips.values()))
        return clips | {"jpg frames": extract(first, first.with_suffix(".frames"))}
    clips = {path.name: path for path in sorted(folder.iterdir()) if path.suffix in VIDEOS}
    if not clips:
        raise ValueError(f"--clips {folder}: holds no video, expected names that end in {', '.join(VIDEOS)}")
    return clips


def read(backend: str, path: str, choose: Choose) -> Any:
    """Ours."""
    with open_video(path, backend) as reader:  # type: ignore[arg-type]
        return reader.read(choose(reader.num_frames, reader.fps))


def decord_directly(path: str, choose: Choose) -> Any:
    """One thread: with more it takes longer in all."""
    import decord

    video = decord.VideoReader(path, num_threads=1)
    return video.get_batch(choose(len(video), video.get_avg_fps()))


def pyav_from_the_start(path: str, choose: Choose) -> Any:
    """Every frame up to the last one wanted."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        wanted, images = choose(*stated_length(container, stream)), {}
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                images[number] = frame.to_ndarray(format="rgb24", threads=1)
            if number >= max(wanted):
                break
    return np.stack([images[number] for number in wanted])


def pyav_seeking(path: str, choose: Choose) -> Any:
    """From the keyframe before the first wanted frame on, numbered by time: wrong where the rate varies."""
    import av

    with av.open(path) as container:
        stream: Any = container.streams.video[0]
        stream.codec_context.thread_count = 1
        num_frames, fps = stated_length(container, stream)
        wanted, images = choose(num_frames, fps), {}
        start = stream.start_time or 0
        container.seek(start + round(min(wanted) / fps / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            number = round((frame.pts - start) * float(stream.time_base) * fps)
            if number in wanted:
                images[number] = frame.to_ndarray(format="rgb24", threads=1)
            if number >= max(wanted):
                break
    return np.stack([images[number] for number in wanted])


def stated_length(container: Any, stream: Any) -> tuple[int, float]:
    """Frames and rate as the file's header has them."""
    fps = float(stream.average_rate)
    return stream.frames or round(container.duration / 1e6 * fps), fps


def torchcodec_directly(path: str, choose: Choose) -> Any:
    from torchcodec.decoders import VideoDecoder

    video = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
    return video.get_frames_at(choose(len(video), video.metadata.average_fps)).data


def contenders(path: Path) -> dict[str, Decode]:
    """Return the contenders that can read a video, or a folder of frames."""
    found: dict[str, Decode] = {"auto": partial(read, "auto")}
    if path.is_dir():
        return found
    found |= {"pyav": partial(read, "pyav"), "decord": partial(read, "decord")}
    found |= {"decord directly": decord_directly, "PyAV directly": pyav_from_the_start}
    found["PyAV directly, seeking"] = pyav_seeking
    try:
        check_backend("torchcodec")
    except ValueError:
        return found
    return found | {"torchcodec": partial(read, "torchcodec"), "torchcodec directly": torchcodec_directly}


def chooser(sampler: ClipSampler, number: int) -> Choose:
    """A clip that depends on the round alone: random where it is a window, else the middle of each part."""
    if sampler.kind == "segments":
        return lambda num_frames, fps: sampler.test(num_frames, fps)
    return lambda num_frames, fps: sampler.train(num_frames, fps, random.Random(number))


def measure(path: Path, sampler: ClipSampler, rounds: int) -> dict[str, Any]:
    """Times of every contender that gives the right frames, and why the others were left out."""
    tried, excluded = contenders(path), {}
    for name in list(tried):
        reason = what_is_wrong(tried[name], str(path), sampler)
        if reason:
            excluded[name] = reason
            del tried[name]
    seconds = take_turns(tried, str(path), sampler, rounds, f"{path.name}, {sampler.num_frames} frames")
    direct = [name for name in seconds if "directly" in name]
    fastest = min(direct, key=lambda name: statistics.median(seconds[name]), default="")
    results = {
        name: {
            "ms": 1e3 * statistics.median(times),
            "quartiles_ms": [1e3 * quartile for quartile in quartiles(times)],
            "clips_per_second": 1 / statistics.median(times),
            "frames_per_second": sampler.num_frames / statistics.median(times),
            "times_as_fast_as_fastest_direct": median_ratio(times, seconds[fastest]) if fastest else None,
        }
        for name, times in seconds.items()
    }
    return {"fastest_direct": fastest, "results": results, "excluded": excluded}


def what_is_wrong(decode: Decode, path: str, sampler: ClipSampler) -> str:
    """Why a contender's frames are not those decoded in order, or nothing; three random clips are looked at."""
    for number in range(3):
        choose = chooser(sampler, number)
        expected = np.asarray(read("pyav", path, choose)).astype(int)
        try:
            frames = as_array(decode(path, choose)).astype(int)
        except (DecodeError, RuntimeError, KeyError, IndexError) as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
        if frames.shape != expected.shape:
            return f"gives {frames.shape}, expected {expected.shape}"
        difference = float(np.abs(frames - expected).mean(axis=(1, 2, 3)).max())
        if difference > GREY_LEVELS:
            return f"gives other frames: they differ by {difference:.1f} grey levels on average"
    return ""


def as_array(frames: Any) -> Any:
    """Frames of decord's own type too."""
    return np.asarray(frames.asnumpy() if hasattr(frames, "asnumpy") else frames)


def take_turns(
    tried: Mapping[str, Decode], path: str, sampler: ClipSampler, rounds: int, title: str
) -> dict[str, list[float]]:
    """Processor seconds of the process for every contender and round, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in tried}
    names = list(tried)
    for number in tqdm(range(1 + rounds), title, leave=False, disable=None):
        choose, first = chooser(sampler, number), number % max(1, len(names))
        for name in (*names[first:], *names[:first]):
            begun = time.process_time()
            tried[name](path, choose)
            if number:
                seconds[name].append(time.process_time() - begun)
    return seconds


def round_to_all(value: Any) -> Any:
    """Four digits for every number of nested tables."""
    if isinstance(value, dict):
        return {key: round_to_all(part) for key, part in value.items()}
    return [round_to_all(part) for part in value] if isinstance(value, list) else round_to(value)


def decoder_versions() -> dict[str, str]:
    """Versions of what only videos need."""
    versions = {}
    for name in ("pillow", "torchcodec"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def show(row: Mapping[str, Any]) -> str:
    lines = [f"{row['clip']}: {row['sampling']}"]
    for name, result in row["results"].items():
        low, high = result["quartiles_ms"]
        ratio = result["times_as_fast_as_fastest_direct"]
        lines.append(
            f"  {name:24} {result['ms']:7.1f} ms ({low:.1f} to {high:.1f}) {result['clips_per_second']:7.1f} clips/s "
            f"{result['frames_per_second']:7.0f} frames/s" + (f"  {ratio:.2f}x" if ratio else "")
        )
    return "\n".join([*lines, *(f"  {name:24} not timed, {reason}" for name, reason in row["excluded"].items())])


if __name__ == "__main__":
    sys.exit(run_tool(main))
