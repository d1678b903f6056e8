"""Builders of a run's loaders and batch preparation from its settings."""

import logging
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from videoattn.config import Config
from videoattn.data.augment.batch_augment import BatchAugment
from videoattn.data.augment.flips import flipped_labels
from videoattn.data.augment.mixing import Mixing
from videoattn.data.augment.transforms import TestTransform, TrainTransform
from videoattn.data.clips.batch import Batch, Prepare, normalize
from videoattn.data.clips.dataset import VideoDataset, ViewDataset
from videoattn.data.clips.plan import EvaluationPlan, SamplePlan, TrainPlan
from videoattn.data.clips.sampling import ClipSampler
from videoattn.data.lists import (
    AnnotationError,
    MissingListError,
    VideoList,
    find_list,
    read_annotations,
    read_class_names,
)
from videoattn.data.lists.oddities import find_oddities
from videoattn.data.loader import Loader, num_cores
from videoattn.data.readers.open_video import DecodeOptions, check_backend

__all__ = [
    "Loader",
    "Split",
    "build_loader",
    "build_prepare",
    "build_sample",
    "class_names",
    "clip_sampler",
    "decode_options",
    "num_cores",
    "read_videos",
]

logger = logging.getLogger("videoattn")

Split = Literal["train", "val", "test"]


def build_loader(cfg: Config, split: Split, *, rank: int = 0, world_size: int = 1, local_world_size: int = 1) -> Loader:
    """Build the loader of one process: random clips for "train", one centred view for "val", all views for "test".

    "val" is for evaluation during training, at the training size; "test" follows the protocol of the TEST section on
    the list that TEST.SPLIT names. `local_world_size` processes share a machine. Raises AnnotationError on an invalid
    list, and ValueError, naming the settings, if they contradict each other, the list or the number of processes.
    """
    if world_size % local_world_size or not 0 <= rank < world_size:
        raise ValueError(
            "rank, world_size and local_world_size expect 0 <= rank < world_size, a multiple of local_world_size, got "
            f"{rank}, {world_size} and {local_world_size}"
        )
    videos = read_videos(cfg, split)
    if rank == 0:
        for oddity in find_oddities(videos, cfg.model.num_classes if split == "train" else None):
            logger.warning("%s", oddity)
    workers: dict[str, Any] = {
        "num_workers": cfg.data_loader.num_workers,
        "prefetch_factor": cfg.data_loader.prefetch_factor,
        "pin_memory": cfg.data_loader.pin_memory and cfg.device != "cpu" and torch.cuda.is_available(),
        "limit_seconds": cfg.data_loader.limit_seconds,
    }
    if split == "train":
        plan = _train_plan(cfg, videos, rank, world_size, world_size // local_world_size)
        size = plan.last - plan.first
        return Loader(_train_dataset(cfg, videos), plan, batch_size=size, accumulate=plan.accumulate, **workers)
    size = 1 if split == "test" else max(1, cfg.train.batch_size // local_world_size)
    dataset = _test_dataset(cfg, videos) if split == "test" else _val_dataset(cfg, videos)
    return Loader(dataset, EvaluationPlan(len(videos), size, rank, world_size), batch_size=size, **workers)


def build_sample(cfg: Config, split: Split, num_videos: int) -> Loader:
    """Build a loader of one centred view of up to `num_videos` videos, drawn from the whole list."""
    videos = read_videos(cfg, split)
    plan = SamplePlan(len(videos), num_videos, cfg.train.batch_size, cfg.rng_seed)
    return Loader(
        _val_dataset(cfg, videos),
        plan,
        batch_size=cfg.train.batch_size,
        num_workers=cfg.data_loader.num_workers,
        limit_seconds=cfg.data_loader.limit_seconds,
    )


def read_videos(cfg: Config, split: Split) -> VideoList:
    """Read the list of videos of `split` and check its labels against the model; no video is opened.

    Raises AnnotationError if the list is missing, naming the setting that says where it is, or contradicts the
    settings.
    """
    names = class_names(cfg) if cfg.data.class_names else None
    read = partial(
        read_annotations,
        cfg.test.dataset if split == "test" else cfg.train.dataset,
        cfg.data.path_to_data_dir,
        separator=cfg.data.path_label_separator,
        prefix=cfg.data.path_prefix,
        num_classes=cfg.model.num_classes,
        class_names=names,
    )
    try:
        videos = read(cfg.test.split if split == "test" else split)
    except MissingListError as error:
        raise MissingListError(f"{error}; {_where_lists_are(cfg, split)}") from error
    if names is not None:
        videos = replace(videos, class_names=names)
    if split != "test" and not videos.is_labelled:
        first = next(index for index in range(len(videos)) if videos.label(index) < 0)
        raise AnnotationError(
            f"{videos.source}:{first + 1}: {videos.path(first)} has no label, expected one in split {split}"
        )
    return videos


def _where_lists_are(cfg: Config, split: Split) -> str:
    """Return the settings that locate a missing list and, for a test, name another list that exists."""
    where = f"DATA.PATH_TO_DATA_DIR is {cfg.data.path_to_data_dir!r}"
    if split != "test":
        return where
    others = [
        other for other in ("val", "train")
        if find_list(cfg.test.dataset, cfg.data.path_to_data_dir, other, prefix=cfg.data.path_prefix)
    ]  # fmt: skip
    there = f"; TEST.SPLIT {others[0]} selects the one that exists" if others else ""
    return f"{where}, TEST.SPLIT {cfg.test.split}{there}"


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
            f"({named}, GLOBAL_BATCH_SIZE {cfg.global_batch_size}): lower these"
        )
    first, last, block = rank * share, (rank + 1) * share, cfg.data.shuffle_block
    return TrainPlan(len(videos), micro_batch, accumulate, first, last, cfg.rng_seed, block)


def _train_dataset(cfg: Config, videos: VideoList) -> VideoDataset:
    data, aug = cfg.data, cfg.aug
    colors = aug.enable and aug.device == "cpu"
    exchange = data.flip_labels == "exchange"
    transform = TrainTransform(
        crop_size=data.train_crop_size,
        jitter_scales=data.train_jitter_scales,
        inverse_jitter=data.inv_uniform_sample,
        relative_scales=data.train_jitter_scales_relative,
        relative_aspect=data.train_jitter_aspect_relative,
        flip=data.random_flip,
        flipped_labels=flipped_labels(videos.class_names, videos.source, data.flip_pairs) if exchange else None,
        color_jitter=aug.color_jitter if colors else 0.0,
        aa_type=aug.aa_type if colors else "",
        interpolation=aug.interpolation,
        erase_prob=aug.re_prob if colors else 0.0,
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
        decoding=decode_options(cfg),
    )


def _val_dataset(cfg: Config, videos: VideoList) -> ViewDataset:
    crop_size = cfg.data.train_crop_size
    short_side = crop_size if cfg.train.dataset == "ssv2" else max(crop_size, cfg.data.train_jitter_scales[0])
    transform = TestTransform(short_side=short_side, crop_size=crop_size)
    sampler = clip_sampler(cfg, cfg.train.dataset, use_offset=True)
    return ViewDataset(videos, sampler, transform, decoding=decode_options(cfg))


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
    if num_crops == 1 and cfg.test.crop_rounding != "up":
        raise ValueError(f"TEST.CROP_ROUNDING {cfg.test.crop_rounding} expects TEST.NUM_SPATIAL_CROPS 3, got 1")
    transform = TestTransform(
        short_side=short_side, crop_size=crop_size, num_crops=num_crops, rounding=cfg.test.crop_rounding
    )
    sampler = clip_sampler(cfg, cfg.test.dataset, use_offset=cfg.data.use_offset_sampling)
    return ViewDataset(
        videos,
        sampler,
        transform,
        num_clips=cfg.test.num_ensemble_views,
        decoding=decode_options(cfg),
    )


def build_prepare(cfg: Config, split: Split, device: torch.device | str, *, videos_before: int = 0) -> Prepare:
    """Return the function that maps a batch of `split` and a seed to normalised clips and their targets on `device`.

    For "train", clips are also augmented and mixed as `cfg` says. `videos_before` is the number of videos of the whole
    batch that belong to earlier processes, so that processes which share a batch give the result of a single one.
    """
    augment = mixing = None
    aug, mixup, training = cfg.aug, cfg.mixup, split == "train"
    if training and aug.enable and aug.device == "model":
        augment = BatchAugment(
            color_jitter=aug.color_jitter,
            aa_type=aug.aa_type,
            interpolation=aug.interpolation,
            erase_prob=aug.re_prob,
            erase_mode=aug.re_mode,
            erase_count=aug.re_count,
            mean=cfg.data.mean,
            std=cfg.data.std,
        )
    if training and mixup.enable:
        mixing = Mixing(
            alpha=mixup.alpha,
            cutmix_alpha=mixup.cutmix_alpha,
            prob=mixup.prob,
            switch_prob=mixup.switch_prob,
            label_smoothing=mixup.label_smooth_value,
            num_classes=cfg.model.num_classes,
        )
    clips_before = videos_before * (aug.num_sample if aug.enable else 1)

    def prepare(batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
        batch = batch.to(device, non_blocking=True)
        clips = batch.clips if augment is None else augment(batch.clips, seed, clips_before)
        clips = normalize(clips, cfg.data.mean, cfg.data.std, cfg.data.reverse_input_channel)
        return (clips, batch.labels) if mixing is None else mixing(clips, batch.labels, seed, clips_before // 2)

    return prepare


def clip_sampler(cfg: Config, dataset: str, use_offset: bool) -> ClipSampler:
    """Return the sampler of clips; DATA.SAMPLING auto depends on the data set."""
    data = cfg.data
    kind = data.sampling if data.sampling != "auto" else "segments" if dataset == "ssv2" else "dense"
    shifted = cfg.test.segment_clips == "shifted"
    if shifted and kind in ("by_index", "interleaved"):
        raise ValueError(f"TEST.SEGMENT_CLIPS shifted expects DATA.SAMPLING segments, got {kind}")
    return ClipSampler(
        kind, data.num_frames, data.sampling_rate, data.target_fps, use_offset, shifted, data.num_segments
    )


def decode_options(cfg: Config) -> DecodeOptions:
    """Return the decoding options of the settings. Raises ValueError if the decoder's library is missing."""
    data = cfg.data
    check_backend(data.decoding_backend)
    return DecodeOptions(data.decoding_backend, data.frames_fps or data.target_fps, data.decoding_short_size)


def class_names(cfg: Config) -> tuple[str, ...]:
    """Read the class names in DATA.CLASS_NAMES. Raises AnnotationError unless there are MODEL.NUM_CLASSES of them."""
    names = read_class_names(cfg.data.class_names)
    if len(names) != cfg.model.num_classes:
        raise AnnotationError(
            f"{cfg.data.class_names}: {len(names)} class names, expected MODEL.NUM_CLASSES {cfg.model.num_classes}"
        )
    return names
