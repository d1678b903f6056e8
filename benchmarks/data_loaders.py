"""Whole loaders that take turns: ours, torch's around our dataset, pytorchvideo's, and decoders called directly.

Each contender decodes one random clip of every video a round, in as many processes as it is given. What is called
directly only decodes: no resizing, no crop, no batch, and the frames stay in the process that decoded them.
"""

import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from videoattn.compat import import_pytorchvideo, import_torchvision
from videoattn.config import Config
from videoattn.data import build_loader
from videoattn.data.clips.batch import collate_copies
from videoattn.data.clips.sampling import ClipSampler
from videoattn.data.loader import Loader

BATCH_SIZE = 4
CROP_SIZE, JITTER = 224, (256, 320)
Decode = Callable[[str, Callable[[int, float], list[int]]], Any]


class Contender(Protocol):
    """Something that decodes a clip of each video."""

    def run(self, number: int) -> int:
        """Round `number`; returns how many clips it made."""

    def close(self) -> None:
        """End its processes."""


class OurLoader:
    """The loader of a training run: decoded, resized, cropped, flipped and in batches."""

    def __init__(self, folder: Path, sampler: ClipSampler, num_workers: int) -> None:
        self.loader: Loader = build_loader(settings(folder, sampler, num_workers), "train")

    def run(self, number: int) -> int:
        return sum(len(batch.labels) for batch in self.loader.epoch(number))

    def close(self) -> None:
        self.loader.close()


class TorchLoader:
    """torch's DataLoader around our dataset: the same work without a guard against what hangs."""

    def __init__(self, folder: Path, sampler: ClipSampler, num_workers: int) -> None:
        ours = build_loader(settings(folder, sampler, 0), "train")
        self._plan = ours._plan
        self._batches: list[Any] = []
        self._loader: DataLoader[Any] = DataLoader(
            ours.dataset, batch_sampler=self._batches, collate_fn=collate_copies, num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )  # fmt: skip

    def run(self, number: int) -> int:
        self._batches[:] = self._plan.batches(number)
        return sum(len(batch.labels) for batch in self._loader)

    def close(self) -> None:
        self._loader._iterator = None


class PytorchvideoLoader:
    """pytorchvideo's Kinetics dataset with its own transforms, in torch's DataLoader."""

    def __init__(self, folder: Path, sampler: ClipSampler, num_workers: int, decoder: str) -> None:
        data, transforms = import_pytorchvideo("data"), import_pytorchvideo("transforms")
        torchvision = import_torchvision().transforms
        steps = [
            transforms.UniformTemporalSubsample(sampler.num_frames),
            torchvision.Lambda(lambda clip: clip / 255.0),
            transforms.Normalize((0.45,) * 3, (0.225,) * 3),
            transforms.RandomShortSideScale(*JITTER),
            torchvision.RandomCrop(CROP_SIZE),
            torchvision.RandomHorizontalFlip(),
        ]
        transform = transforms.ApplyTransformToKey("video", torchvision.Compose(steps))
        seconds = sampler.num_frames * sampler.sampling_rate / sampler.target_fps
        dataset = data.Kinetics(
            str(folder / "train.csv"), data.make_clip_sampler("random", seconds), transform=transform,
            decode_audio=False, decoder=decoder, video_path_prefix=str(folder),
        )  # fmt: skip
        self._loader = DataLoader(dataset, BATCH_SIZE, num_workers=num_workers, persistent_workers=num_workers > 0)

    def run(self, number: int) -> int:
        return sum(len(batch["video"]) for batch in self._loader)

    def close(self) -> None:
        self._loader._iterator = None


class Direct:
    """A decoder called directly for every video, in this process or in a pool of processes."""

    def __init__(self, folder: Path, sampler: ClipSampler, num_workers: int, decode: Decode) -> None:
        self._paths = [str(folder / line.split(" ")[0]) for line in (folder / "train.csv").read_text().splitlines()]
        self._sampler, self._decode = sampler, decode
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        self._pool = context.Pool(num_workers, torch.set_num_threads, (1,)) if num_workers else None

    def run(self, number: int) -> int:
        work = partial(decode_one, self._decode, self._sampler, number)
        if self._pool is None:
            return sum(map(work, self._paths))
        return sum(self._pool.imap_unordered(work, self._paths))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()


def decode_one(decode: Decode, sampler: ClipSampler, number: int, path: str) -> int:
    rng = random.Random(f"{number} {path}")
    decode(path, lambda num_frames, fps: sampler.train(num_frames, fps, rng))
    return 1


def settings(folder: Path, sampler: ClipSampler, num_workers: int) -> Config:
    """A run on a folder of videos, with the crops of TimeSformer's published settings."""
    return Config.model_validate({
        "DATA": {
            "PATH_TO_DATA_DIR": str(folder), "NUM_FRAMES": sampler.num_frames, "SAMPLING_RATE": sampler.sampling_rate,
            "TRAIN_JITTER_SCALES": JITTER, "TRAIN_CROP_SIZE": CROP_SIZE,
        },
        "TRAIN": {"BATCH_SIZE": BATCH_SIZE},
        "DATA_LOADER": {"NUM_WORKERS": num_workers},
    })  # fmt: skip


def take_turns(contenders: Mapping[str, Contender], rounds: int, limit: float, title: str) -> dict[str, list[float]]:
    """Clips per second by the clock, of every contender in each round after one that warms up.

    Each round begins with another contender. There are fewer rounds, but three, beyond `limit` seconds.
    """
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    names, started = list(contenders), time.perf_counter()
    for number in tqdm(range(1 + rounds), desc=title, leave=False, disable=None):
        for name in (*names[number % len(names) :], *names[: number % len(names)]):
            begun = time.perf_counter()
            num_clips = contenders[name].run(number)
            if number:
                rates[name].append(num_clips / (time.perf_counter() - begun))
        if number >= 3 and time.perf_counter() - started > limit:
            break
    return rates
