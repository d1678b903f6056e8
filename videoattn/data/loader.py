"""Batches of a run: which videos come in which order to which process, and the workers that decode them."""

import atexit
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from videoattn.config import Config
from videoattn.data.annotations import AnnotationError, VideoList, read_annotations, read_class_names
from videoattn.data.batch import Batch, collate_copies, collate_views
from videoattn.data.dataset import Draw, VideoDataset, ViewDataset
from videoattn.data.decode import DecodeError, check_backend, open_video
from videoattn.data.plan import EvaluationPlan, TrainPlan
from videoattn.data.sampling import ClipSampler
from videoattn.data.transforms import TestTransform, TrainTransform
from videoattn.data.video_reader import VideoReader
from videoattn.data.worker_signals import ignore_signals, signals_held

Split = Literal["train", "val", "test"]
STALL_SECONDS = 600.0


class _EpochBatches(Sampler[list[Any]]):
    """What torch's DataLoader iterates over; the loader sets epoch and start before it begins."""

    def __init__(self, plan: TrainPlan | EvaluationPlan) -> None:
        self.plan = plan
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[list[Any]]:
        yield from self.plan.batches(self.epoch, self.start)


class Loader:
    """Batches of one process, epoch after epoch, decoded by worker processes that live until `close`.

    `num_batches` counts this process's batches of an epoch, of which `accumulate` make an optimizer step;
    `batch_size` is the number of videos in each (all but the last, in evaluation); `videos` is the whole list with its
    `num_videos` and `class_names`. The bytes do not depend on the number of workers, of which no more are started than
    there are batches or processor cores.

    Workers are forked where the system forks safely (Linux): that shares the list of videos and takes no time, and
    decoders are opened only in the worker. They leave Ctrl-C to the main process and end with it, however it ends.
    """

    def __init__(
        self,
        dataset: VideoDataset | ViewDataset,
        plan: TrainPlan | EvaluationPlan,
        *,
        batch_size: int,
        accumulate: int = 1,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        pin_memory: bool = False,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self.videos: VideoList = dataset.videos
        self.num_videos = len(dataset.videos)
        self.class_names = dataset.videos.class_names
        self.num_batches = len(plan)
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.stall_seconds = stall_seconds
        self._training = isinstance(dataset, VideoDataset)
        self._batches = _EpochBatches(plan)
        self._iterator: Any = None
        self._num_begun = 0
        num_workers = min(num_workers, self.num_batches, num_cores())
        if num_workers:
            atexit.register(_close_at_exit, weakref.ref(self))
        self._loader = DataLoader(
            cast(Dataset[Any], dataset),
            batch_sampler=self._batches,
            collate_fn=collate_copies if self._training else collate_views,
            num_workers=num_workers,
            prefetch_factor=prefetch_factor if num_workers else None,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            timeout=stall_seconds if num_workers else 0,
            worker_init_fn=ignore_signals,
            multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
            generator=torch.Generator(),  # else each epoch would draw from the global one, which dropout uses
        )

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """This process's batches of an epoch, from number `start_batch` on without decoding those before it.

        Raises ValueError on a start beyond the epoch, and DecodeError where a training clip could not be replaced or
        no batch arrived for ten minutes; both name the videos. An epoch ends where the next one begins: RuntimeError if
        it is asked for more.
        """
        if not 0 <= start_batch <= self.num_batches:
            raise ValueError(f"start_batch expects 0 to {self.num_batches}, the batches of an epoch, got {start_batch}")
        return self._iterate(epoch, start_batch)

    def _iterate(self, epoch: int, start: int) -> Iterator[Batch]:
        if start == self.num_batches:
            return
        self._batches.epoch, self._batches.start = epoch, start
        with signals_held():
            self._iterator = iter(self._loader)
        self._num_begun += 1
        number = self._num_begun
        for keys in self._batches.plan.batches(epoch, start):
            try:
                batch: Batch = next(self._iterator)
            except RuntimeError as error:
                if not str(error).startswith("DataLoader timed out"):
                    raise
                paths = [self.videos.path(key.index if isinstance(key, Draw) else key) for key in keys]
                raise DecodeError(
                    f"no batch arrived for {self.stall_seconds:.0f} s; one of these hangs the decoder, or the disk "
                    "does not answer: " + ", ".join(paths)
                ) from error
            if self._training and len(batch.labels) < batch.draws:
                raise DecodeError(
                    "a clip and those drawn to replace it could not be decoded: "
                    + "; ".join(f"{failure.path} ({failure.reason})" for failure in batch.failures)
                )
            yield batch
            if number != self._num_begun:
                raise RuntimeError(f"epoch {epoch} cannot go on: another one has begun on the same workers")

    def close(self) -> None:
        """End the worker processes; a later epoch starts new ones."""
        iterator, self._iterator, self._loader._iterator = self._iterator, None, None
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()  # what torch does when the iterator is collected, but now
            for worker in iterator._workers:
                worker.kill()  # one that hangs in a decoder: it does not see the request to end
                worker.join()


def build_loader(cfg: Config, split: Split, *, rank: int = 0, world_size: int = 1, local_world_size: int = 1) -> Loader:
    """The loader of one process: random clips for "train", one centred view for "val", all views for "test".

    "val" is for evaluation during training, at the size trained with; "test" is the TEST section's protocol, on the
    list that TEST.SPLIT names. `local_world_size` processes share a machine. Raises AnnotationError on a bad list, and
    ValueError, naming the settings, where they do not fit each other, the list or the number of processes.
    """
    if world_size % local_world_size or not 0 <= rank < world_size:
        raise ValueError(
            "rank, world_size and local_world_size expect 0 <= rank < world_size, a multiple of local_world_size, got "
            f"{rank}, {world_size} and {local_world_size}"
        )
    names = class_names(cfg) if cfg.data.class_names else None
    videos = read_annotations(
        cfg.test.dataset if split == "test" else cfg.train.dataset,
        cfg.data.path_to_data_dir,
        cfg.test.split if split == "test" else split,
        separator=cfg.data.path_label_separator,
        prefix=cfg.data.path_prefix,
        num_classes=cfg.model.num_classes,
        class_names=names,
    )
    workers: dict[str, Any] = {
        "num_workers": cfg.data_loader.num_workers,
        "prefetch_factor": cfg.data_loader.prefetch_factor,
        "pin_memory": cfg.data_loader.pin_memory and cfg.device != "cpu" and torch.cuda.is_available(),
    }
    if names is not None:
        videos = replace(videos, class_names=names)
    if split != "test" and not videos.is_labelled:
        first = next(index for index in range(len(videos)) if videos.label(index) < 0)
        raise AnnotationError(
            f"{videos.source}:{first + 1}: {videos.path(first)} has no label, expected one in split {split}"
        )
    if split == "train":
        plan = _train_plan(cfg, videos, rank, world_size, world_size // local_world_size)
        size = plan.last - plan.first
        return Loader(_train_dataset(cfg, videos), plan, batch_size=size, accumulate=plan.accumulate, **workers)
    size = 1 if split == "test" else max(1, cfg.train.batch_size // local_world_size)
    dataset = _test_dataset(cfg, videos) if split == "test" else _val_dataset(cfg, videos)
    return Loader(dataset, EvaluationPlan(len(videos), size, rank, world_size), batch_size=size, **workers)


def _train_plan(cfg: Config, videos: VideoList, rank: int, world_size: int, num_machines: int) -> TrainPlan:
    micro_batch = cfg.train.batch_size * num_machines
    named = f"TRAIN.BATCH_SIZE {cfg.train.batch_size} on {num_machines} machine{'s' if num_machines > 1 else ''}"
    if micro_batch % world_size:
        raise ValueError(f"{named} expects a multiple of {world_size // num_machines}, the processes of a machine")
    if cfg.global_batch_size % micro_batch:
        raise ValueError(
            f"GLOBAL_BATCH_SIZE {cfg.global_batch_size} expects 0 or a multiple of {named}, {micro_batch} clips at once"
        )
    share = micro_batch // world_size
    if cfg.mixup.enable and share % 2:
        raise ValueError(f"{named} gives each process {share} videos; MIXUP.ENABLE expects an even number")
    accumulate = max(1, cfg.global_batch_size // micro_batch)
    if len(videos) < micro_batch * accumulate:
        raise ValueError(
            f"{videos.source}: {len(videos)} videos do not fill an optimizer step of {micro_batch * accumulate} clips "
            f"({named}, GLOBAL_BATCH_SIZE {cfg.global_batch_size})"
        )
    return TrainPlan(len(videos), micro_batch, accumulate, rank * share, (rank + 1) * share, cfg.rng_seed)


def _train_dataset(cfg: Config, videos: VideoList) -> VideoDataset:
    data, aug = cfg.data, cfg.aug
    transform = TrainTransform(
        crop_size=data.train_crop_size,
        jitter_scales=data.train_jitter_scales,
        inverse_jitter=data.inv_uniform_sample,
        relative_scales=data.train_jitter_scales_relative,
        relative_aspect=data.train_jitter_aspect_relative,
        flip=data.random_flip,
        color_jitter=aug.color_jitter if aug.enable else 0.0,
        aa_type=aug.aa_type if aug.enable else "",
        interpolation=aug.interpolation,
        erase_prob=aug.re_prob if aug.enable else 0.0,
        erase_mode=aug.re_mode,
        erase_count=aug.re_count,
        mean=data.mean,
        std=data.std,
    )
    return VideoDataset(
        videos,
        clip_sampler(cfg, cfg.train.dataset, use_offset=data.use_offset_sampling),
        transform,
        seed=cfg.rng_seed,
        num_copies=aug.num_sample if aug.enable else 1,
        backend=data.decoding_backend,
        opener=video_opener(cfg),
    )


def _val_dataset(cfg: Config, videos: VideoList) -> ViewDataset:
    crop_size = cfg.data.train_crop_size
    short_side = crop_size if cfg.train.dataset == "ssv2" else max(crop_size, cfg.data.train_jitter_scales[0])
    transform = TestTransform(short_side=short_side, crop_size=crop_size)
    sampler = clip_sampler(cfg, cfg.train.dataset, use_offset=True)
    return ViewDataset(videos, sampler, transform, backend=cfg.data.decoding_backend, opener=video_opener(cfg))


def _test_dataset(cfg: Config, videos: VideoList) -> ViewDataset:
    crop_size, num_crops = cfg.data.test_crop_size, cfg.test.num_spatial_crops
    short_side = crop_size
    if num_crops == 1 and cfg.test.dataset == "kinetics":  # as published: PySlowFast and TimeSformer
        short_side = cfg.data.train_jitter_scales[0]
    if crop_size > short_side:
        raise ValueError(
            f"DATA.TEST_CROP_SIZE {crop_size} with TEST.NUM_SPATIAL_CROPS 1 expects at most the short side that frames "
            f"are resized to, DATA.TRAIN_JITTER_SCALES[0], which is {short_side}"
        )
    transform = TestTransform(short_side=short_side, crop_size=crop_size, num_crops=num_crops)
    sampler = clip_sampler(cfg, cfg.test.dataset, use_offset=cfg.data.use_offset_sampling)
    return ViewDataset(
        videos,
        sampler,
        transform,
        num_clips=cfg.test.num_ensemble_views,
        backend=cfg.data.decoding_backend,
        opener=video_opener(cfg),
    )


def clip_sampler(cfg: Config, dataset: str, use_offset: bool) -> ClipSampler:
    """How clips are cut; DATA.SAMPLING auto depends on the data set."""
    data = cfg.data
    kind = data.sampling if data.sampling != "auto" else "segments" if dataset == "ssv2" else "dense"
    return ClipSampler(kind, data.num_frames, data.sampling_rate, data.target_fps, use_offset)


def video_opener(cfg: Config) -> Callable[..., VideoReader]:
    """Opens videos as the settings say. Raises ValueError where the decoder's library is missing."""
    check_backend(cfg.data.decoding_backend)
    return partial(open_video, frames_fps=cfg.data.frames_fps or cfg.data.target_fps)


def class_names(cfg: Config) -> tuple[str, ...]:
    """The names in DATA.CLASS_NAMES. Raises AnnotationError where they are not MODEL.NUM_CLASSES."""
    names = read_class_names(cfg.data.class_names)
    if len(names) != cfg.model.num_classes:
        raise AnnotationError(
            f"{cfg.data.class_names}: {len(names)} class names, expected MODEL.NUM_CLASSES {cfg.model.num_classes}"
        )
    return names


def num_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _close_at_exit(loader: "weakref.ref[Loader]") -> None:
    """End workers before multiprocessing asks them to, by a signal that they leave to the main process."""
    alive = loader()
    if alive is not None:
        alive.close()
