from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.openers import Opening
from videoattn.data.augment.transforms import TestTransform, TrainTransform
from videoattn.data.clips.batch import Batch, ClipSample, collate_copies, collate_views
from videoattn.data.clips.dataset import MAX_REPLACEMENTS, Draw, VideoDataset, ViewDataset
from videoattn.data.clips.sampling import ClipSampler
from videoattn.data.lists import VideoList, read_annotations
from videoattn.data.readers.open_video import Backend, open_video


class CountingOpener:
    """An opener of real videos that counts openings and reads."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.read: list[list[int]] = []

    def __call__(self, path: str, backend: Backend) -> Any:
        self.opened.append(path)
        reader: Any = open_video(path, backend)
        read = reader.read

        def counted(indices: list[int]) -> Any:
            self.read.append(list(indices))
            return read(indices)

        reader.read = counted
        return reader


class EmptyVideo:
    num_frames, fps = 0, 30.0

    def __enter__(self) -> "EmptyVideo":
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture
def listed(video_folder: Callable[..., Path]) -> Callable[..., VideoList]:
    def build(num_videos: int, bad: tuple[int, ...] = ()) -> VideoList:
        folder = video_folder(num_videos, bad)
        return read_annotations("kinetics", str(folder), "train", separator=" ", prefix=str(folder), num_classes=3)

    return build


def sampler(num_frames: int = 4, rate: int = 2) -> ClipSampler:
    return ClipSampler("dense", num_frames, rate, 30.0, False)


def train(videos: VideoList, **options: Any) -> VideoDataset:
    transform = TrainTransform(crop_size=32, jitter_scales=(32, 40), flip=options.pop("flip", True))
    return VideoDataset(videos, options.pop("sampler", sampler()), transform, **{"seed": 1, **options})


def views(videos: VideoList, **options: Any) -> ViewDataset:
    transform = TestTransform(short_side=32, crop_size=32, num_crops=options.pop("num_crops", 1))
    return ViewDataset(videos, options.pop("sampler", sampler()), transform, **options)


def same(a: ClipSample, b: ClipSample) -> bool:
    return torch.equal(a.clips, b.clips) and (a.label, a.video, a.views) == (b.label, b.video, b.views)


def test_draw_gives_a_clip_with_its_label(listed: Callable[..., VideoList]) -> None:
    sample = train(listed(4))[Draw(0, 2)]
    assert sample.clips.shape == (1, 3, 4, 32, 32) and sample.clips.dtype == torch.uint8
    assert (sample.label, sample.video, sample.views, sample.failures, sample.num_short) == (2, 2, (0,), (), 0)


def test_clip_is_a_function_of_seed_epoch_and_index(listed: Callable[..., VideoList]) -> None:
    videos = listed(4)
    first, second = train(videos), train(videos)
    kept = first[Draw(3, 1)]
    for draw in (Draw(3, 0), Draw(2, 1), Draw(0, 3)):
        second[draw]
    assert same(kept, second[Draw(3, 1)])
    assert not torch.equal(kept.clips, first[Draw(4, 1)].clips)
    assert not torch.equal(kept.clips, train(videos, seed=2)[Draw(3, 1)].clips)


def test_copies_share_the_decoded_clip_and_differ_in_augmentation(listed: Callable[..., VideoList]) -> None:
    opener = CountingOpener()
    clips = train(listed(2), num_copies=3, decoding=Opening(opener=opener))[Draw(0, 1)].clips
    assert len(opener.opened) == len(opener.read) == 1
    assert clips.shape[0] == 3 and len({clip.numpy().tobytes() for clip in clips}) == 3
    fixed = TrainTransform(
        crop_size=48, jitter_scales=(48, 48), relative_scales=(1, 1), relative_aspect=(4 / 3, 4 / 3), flip=False
    )
    plain = VideoDataset(listed(2), sampler(), fixed, seed=1, num_copies=2)[Draw(0, 1)].clips
    assert torch.equal(plain[0], plain[1])


def test_undecodable_clip_is_replaced_and_listed(listed: Callable[..., VideoList]) -> None:
    videos = listed(6, bad=(1, 4))
    dataset = train(videos)
    for epoch in range(6):
        sample = dataset[Draw(epoch, 1)]
        assert sample.video in (0, 2, 3, 5) and sample.label == videos.label(sample.video)
        assert [failure.index for failure in sample.failures] in ([1], [1, 4])
        assert all(f.path == videos.path(f.index) and f.path in f.reason for f in sample.failures)
        assert same(sample, dataset[Draw(epoch, 1)])
    assert len({dataset[Draw(epoch, 1)].video for epoch in range(6)}) > 1


def test_sample_has_no_clip_when_no_replacement_decodes(listed: Callable[..., VideoList]) -> None:
    videos = listed(MAX_REPLACEMENTS + 3, bad=tuple(range(MAX_REPLACEMENTS + 3)))
    sample = train(videos)[Draw(0, 5)]
    indices = [failure.index for failure in sample.failures]
    assert sample.clips.shape == (0, 3, 4, 32, 32)
    assert indices[0] == 5 and len(set(indices)) == len(indices) == MAX_REPLACEMENTS + 1


def test_video_without_frames_fails_as_an_undecodable_one(listed: Callable[..., VideoList]) -> None:
    videos = listed(2)

    def opener(path: str, backend: Backend) -> Any:
        return EmptyVideo() if path == videos.path(0) else open_video(path, backend)

    sample = train(videos, decoding=Opening(opener=opener))[Draw(0, 0)]
    assert sample.video == 1 and sample.failures[0].index == 0
    assert sample.failures[0].reason == f"{videos.path(0)}: expected at least one frame, the video has none"
    assert views(videos, decoding=Opening(opener=opener))[0].failures == sample.failures


def test_clips_longer_than_the_video_are_counted(listed: Callable[..., VideoList]) -> None:
    videos = listed(2)
    long = sampler(num_frames=8, rate=4)  # 32 of 20 frames
    assert train(videos, sampler=long, num_copies=2)[Draw(0, 0)].num_short == 2
    assert views(videos, sampler=long, num_clips=2, num_crops=3)[0].num_short == 6
    assert views(videos, num_clips=2, num_crops=3)[0].num_short == 0


def test_views_are_the_clips_times_the_crops_from_one_reading(listed: Callable[..., VideoList]) -> None:
    videos, opener = listed(2), CountingOpener()
    dataset = views(videos, num_clips=3, num_crops=3, decoding=Opening(opener=opener))
    sample = dataset[1]
    assert opener.opened == [videos.path(1)] and len(opener.read) == 1
    assert opener.read[0] == sorted(set(opener.read[0]))
    assert dataset.num_views == 9 and sample.views == tuple(range(9)) and (sample.label, sample.video) == (1, 1)
    with open_video(videos.path(1)) as reader:
        for view in range(9):
            indices = sampler().test(reader.num_frames, reader.fps, view // 3, 3)
            frames = reader.read(indices).permute(0, 3, 1, 2)
            expected = TestTransform(short_side=32, crop_size=32, num_crops=3)(frames)[view % 3]
            assert torch.equal(sample.clips[view], expected.transpose(0, 1))


def test_undecodable_video_is_never_replaced_in_evaluation(listed: Callable[..., VideoList]) -> None:
    videos = listed(3, bad=(1,))
    sample = views(videos, num_clips=2)[1]
    assert sample.clips.shape == (0, 3, 4, 32, 32) and sample.views == ()
    assert [(failure.index, failure.path) for failure in sample.failures] == [(1, videos.path(1))]


def test_batch_of_views_holds_what_decoded_and_lists_the_rest(listed: Callable[..., VideoList]) -> None:
    dataset = views(listed(3, bad=(1,)), num_clips=2)
    batch = collate_views([dataset[index] for index in range(3)])
    assert batch.clips.shape == (4, 3, 4, 32, 32)
    assert batch.videos.tolist() == [0, 0, 2, 2] and batch.labels.tolist() == [0, 0, 2, 2]
    assert batch.views.tolist() == [0, 1, 0, 1]
    assert batch.draws == 3 and [failure.index for failure in batch.failures] == [1]
    empty = collate_views([dataset[1]])
    assert empty.clips.shape == (0, 3, 4, 32, 32) and empty.labels.tolist() == [] and empty.labels.dtype == torch.int64


def test_neighbours_of_a_batch_of_copies_are_different_videos(listed: Callable[..., VideoList]) -> None:
    dataset = train(listed(5), num_copies=2)
    samples = [dataset[Draw(0, index)] for index in range(5)]
    batch = collate_copies(samples)
    assert batch.videos.tolist() == [0, 1, 0, 1, 2, 3, 2, 3, 4, 4]
    assert torch.equal(batch.clips[2], samples[0].clips[1]) and torch.equal(batch.clips[5], samples[3].clips[0])
    assert batch.draws == 5


def test_batch_moves_as_a_whole() -> None:
    ones = torch.ones(1, dtype=torch.int64)
    batch = Batch(torch.zeros(1, 3, 1, 2, 2, dtype=torch.uint8), ones, ones, ones, draws=1)
    moved = batch.to("meta")
    assert {t.device.type for t in (moved.clips, moved.labels, moved.videos, moved.views)} == {"meta"}
    assert moved.draws == 1
