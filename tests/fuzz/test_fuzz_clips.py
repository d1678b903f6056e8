"""Damaged clips and pictures through every reader: frames of the right shape, or DecodeError that names the file.

They are read as training and evaluation read them, in processes that may hang or crash at the cost of one clip.
"""

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av  # before decord, whose own libvpx would otherwise take the place of the one that PyAV encodes with
import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import pictures
from tests.shared_files import CLIPS
from videoattn.data.augment.transforms import TestTransform, TrainTransform
from videoattn.data.clips.dataset import Draw, VideoDataset, ViewDataset
from videoattn.data.clips.sampling import ClipSampler
from videoattn.data.lists.video_list import pack
from videoattn.data.prepare.video import EncodeError, EncodeSettings, encode_video
from videoattn.data.readers.open_video import DecodeError, DecodeOptions, check_backend, open_video
from videoattn.data.workers.worker_pool import Failed, map_with_timeout

NUM_CLIPS, NUM_REAL, NUM_PICTURES, LIMIT_SECONDS = 200, 50, 400, 20.0
LARGEST = 700_000  # bytes of a real clip
NUM_FRAMES, HEIGHT, WIDTH, SIDE = 30, 48, 64, 32
CODECS = [  # file, encoder, pixels, largest number of pictures that are shown before others
    ("h264.mp4", "libx264", "yuv420p", 2), ("h264.mkv", "libx264", "yuv420p", 2),
    ("h264.mov", "libx264", "yuv444p", 0), ("h264.ts", "libx264", "yuv420p", 2),
    ("deep.mp4", "libx264", "yuv420p10le", 0), ("hevc.mp4", "libx265", "yuv420p", 2),
    ("vp9.webm", "libvpx-vp9", "yuv420p", 0), ("vp8.webm", "libvpx", "yuv420p", 0),
    ("mpeg4.avi", "mpeg4", "yuv420p", 0), ("reordered.avi", "mpeg4", "yuv420p", 2),
    ("mpeg4.mp4", "mpeg4", "yuv420p", 0), ("mjpeg.avi", "mjpeg", "yuvj420p", 0), ("moving.gif", "gif", "rgb8", 0),
    ("flash.flv", "flv", "yuv420p", 0), ("windows.wmv", "wmv2", "yuv420p", 0),
    ("lossless.mkv", "ffv1", "gray16le", 0),
]  # fmt: skip


def has_encoder(name: str) -> bool:
    try:
        av.codec.Codec(name, "w")
    except ValueError:
        return False
    return True


def has_backend(backend: Any) -> bool:
    try:
        check_backend(backend)
    except ValueError:
        return False
    return True


BACKENDS = [backend for backend in ("auto", "pyav", "decord", "torchcodec") if has_backend(backend)]


def encode(path: Path, codec: str, pixels: str, num_reordered: int) -> None:
    with av.open(str(path), "w") as container:
        options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pixels
        if codec != "libvpx-vp9":  # its shortest distance of keyframes is longer
            stream.codec_context.gop_size = 12
        if num_reordered:
            stream.codec_context.max_b_frames = num_reordered
        for number, picture in enumerate(pictures(NUM_FRAMES, HEIGHT, WIDTH)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def some_bits(content: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 3, 10, 100])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def truncated(content: bytearray, rng: random.Random) -> bytes:
    return bytes(content[: rng.randrange(len(content))])


def zeroed(content: bytearray, rng: random.Random) -> bytes:
    start, size = rng.randrange(len(content)), rng.choice([16, 256, 4096])
    content[start : start + size] = bytes(len(content[start : start + size]))
    return bytes(content)


def swapped(content: bytearray, rng: random.Random) -> bytes:
    size = min(rng.choice([32, 512, 2048]), len(content) // 3)
    first, second = rng.randrange(len(content) // 2 - size), rng.randrange(len(content) // 2, len(content) - size)
    left, right = content[first : first + size], content[second : second + size]
    content[first : first + size], content[second : second + size] = right, left
    return bytes(content)


def header(content: bytearray, rng: random.Random) -> bytes:
    """Bytes of the description at the beginning or, of mp4, at the end, set to extremes."""
    start = max(0, content.find(b"moov"))
    for _ in range(rng.choice([1, 4, 16])):
        place = min(len(content) - 1, start + rng.randrange(700))
        content[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return bytes(content)


def removed(content: bytearray, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    del content[start : start + rng.choice([1, 7, 188, 1000])]
    return bytes(content)


def inserted(content: bytearray, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    content[place:place] = rng.randbytes(rng.choice([1, 7, 188, 1000]))
    return bytes(content)


DAMAGES: list[Callable[[bytearray, random.Random], bytes]] = [
    some_bits, truncated, zeroed, swapped, header, removed, inserted,
]  # fmt: skip


def damaged_clips(folder: Path, seed: int) -> list[Path]:
    """Seeded: the same files each time, as far as encoders are the same."""
    rng = random.Random(seed)
    originals, real = [], []
    for name, codec, pixels, num_reordered in CODECS:
        if has_encoder(codec):
            encode(folder / name, codec, pixels, num_reordered)
            originals.append(folder / name)
    if CLIPS.is_dir():
        found = (path for path in sorted(CLIPS.rglob("*")) if path.suffix in (".mp4", ".avi", ".mkv", ".webm", ".mov"))
        real = [path for path in found if 5000 < path.stat().st_size < LARGEST]
    clips = []
    for number in range(NUM_CLIPS):
        sources = real if real and number < NUM_REAL else originals
        source = sources[number % len(sources)]
        damage = DAMAGES[number // len(sources) % len(DAMAGES)] if number < NUM_REAL else rng.choice(DAMAGES)
        content = damage(bytearray(source.read_bytes()), rng)
        clips.append(folder / f"{number:03d}_{damage.__name__}{source.suffix}")
        clips[-1].write_bytes(content)
    return clips


class Task(NamedTuple):
    clip: Path
    reader: str


def outcomes(task: Task) -> list[str]:
    """Return what a clip gives: read as bytes, as evaluation and training read files, whole, and encoded anew."""
    if task.reader == "encoder":
        try:
            encode_video(
                str(task.clip), task.clip.with_suffix(f".{os.getpid()}.small"), EncodeSettings(preset="ultrafast")
            )
        except (DecodeError, EncodeError) as error:
            return [named(str(error), task)]
        return ["frames"]
    videos = pack([task.clip.name], [0], str(task.clip.parent), "a list")
    found, decoding = [], DecodeOptions(task.reader)  # type: ignore[arg-type]
    for sampler in (ClipSampler("dense", 4, 4), ClipSampler("segments", 4)):
        views = ViewDataset(videos, sampler, TestTransform(short_side=SIDE, crop_size=SIDE), decoding=decoding)
        draws = VideoDataset(videos, sampler, TrainTransform(crop_size=SIDE, jitter_scales=(SIDE, 40)), seed=0,
                             decoding=decoding)  # fmt: skip
        for sample in (views[0], draws[Draw(0, 0)]):
            if len(sample.clips):
                assert sample.clips.shape == (1, 3, 4, SIDE, SIDE) and not sample.failures
                found.append("frames")
            else:
                found += [named(failure.reason, task) for failure in sample.failures]
    try:
        with open_video(task.clip.read_bytes(), task.reader) as reader:  # type: ignore[arg-type]
            frames = reader.read([0, reader.num_frames - 1, reader.num_frames // 2])
            assert frames.ndim == 4 and frames.shape[::3] == (3, 3) and frames.dtype.itemsize == 1
            reader.decode_all()
        found.append("frames")
    except DecodeError as error:
        assert str(error).startswith("a video of ")
        found.append("refused")
    return found


def named(message: str, task: Task) -> str:
    assert str(task.clip) in message and "\n" not in message, message
    return "refused"


def tasks(clips: list[Path]) -> Iterator[Task]:
    for clip in clips:
        for reader in (*BACKENDS, "encoder"):
            yield Task(clip, reader)


@pytest.mark.slow
def test_damaged_clips_give_frames_or_a_decode_error_that_names_them(tmp_path: Path) -> None:
    clips = damaged_clips(tmp_path, seed=15)
    answers = list(map_with_timeout(outcomes, tasks(clips), num_workers=1, limit_seconds=LIMIT_SECONDS))
    counts: Counter[tuple[str, str]] = Counter()
    unexpected = []
    for task, answer in answers:
        if isinstance(answer, Failed):
            counts[task.reader, answer.kind] += 1
            unexpected.append(f"{task.clip.name}, {task.reader}: {answer.reason}\n{answer.trace}")
        else:
            counts.update((task.reader, outcome) for outcome in answer)
    print(*(f"{reader:10} {outcome:8} {count}" for (reader, outcome), count in sorted(counts.items())), sep="\n")
    assert len(answers) == NUM_CLIPS * (len(BACKENDS) + 1)
    assert not unexpected, "\n".join(unexpected)
    for reader in BACKENDS:
        assert counts[reader, "frames"] + counts[reader, "refused"] == 5 * NUM_CLIPS
        assert min(counts[reader, "frames"], counts[reader, "refused"]) > NUM_CLIPS  # or nothing was tried


def damaged_pictures(folder: Path, seed: int) -> Iterator[Path]:
    rng = random.Random(seed)
    exif = Image.Exif()
    exif[0x0112] = 6
    options: dict[str, dict[str, Any]] = {
        "png": {"exif": exif},
        "jpg": {"exif": exif},
        "webp": {},
        "tif": {},
        "bmp": {},
    }
    picture = Image.fromarray(next(pictures(1, HEIGHT, WIDTH)))
    originals = {}
    for ending, extra in options.items():
        picture.save(folder / f"original.{ending}", **extra)
        originals[ending] = (folder / f"original.{ending}").read_bytes()
    Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH)).save(folder / "deep.png")
    originals["deep.png"] = (folder / "deep.png").read_bytes()
    for number in range(NUM_PICTURES):
        kind = rng.choice(list(originals))
        damage = rng.choice(DAMAGES)
        path = folder / f"{damage.__name__}_{number}.{kind.rpartition('.')[2]}"
        path.write_bytes(damage(bytearray(originals[kind]), rng))
        yield path


def picture_outcome(path: Path) -> str:
    name, _, number = path.stem.rpartition("_")
    try:
        with open_video(path.with_name(f"{name}_{{{number}..{number}}}{path.suffix}"), short_side=SIDE) as reader:
            frames = reader.read([0, 0])
        assert frames.ndim == 4 and frames.shape[::3] == (2, 3)
        return "frames"
    except DecodeError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return "refused"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Pillow's, about damaged data
def test_damaged_pictures_give_frames_or_a_decode_error_that_names_them(tmp_path: Path) -> None:
    answers = map_with_timeout(
        picture_outcome, damaged_pictures(tmp_path, seed=16), num_workers=1, limit_seconds=LIMIT_SECONDS
    )
    counts = Counter(answer if isinstance(answer, str) else f"{path.name}: {answer}" for path, answer in answers)
    print(counts)
    assert counts["frames"] + counts["refused"] == NUM_PICTURES and min(counts.values()) > NUM_PICTURES / 10
