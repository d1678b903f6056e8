import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from videoattn.config import Config
from videoattn.data import build_loader
from videoattn.data.augment.transforms import TestTransform
from videoattn.data.build import Split, clip_sampler, read_videos
from videoattn.data.clips.batch import Batch
from videoattn.data.clips.dataset import ViewDataset
from videoattn.data.clips.plan import EvaluationPlan, SamplePlan, TrainPlan
from videoattn.data.lists import AnnotationError
from videoattn.data.readers.open_video import DecodeError, open_video

ROOT = Path(__file__).parents[2]


def settings(folder: Path, batch_size: int = 2, **sections: Any) -> Config:
    values: dict[str, Any] = {
        "DATA": {
            "PATH_TO_DATA_DIR": str(folder),
            "PATH_PREFIX": str(folder),
            "NUM_FRAMES": 4,
            "SAMPLING_RATE": 2,
            "TRAIN_JITTER_SCALES": (36, 44),
            "TRAIN_CROP_SIZE": 32,
            "TEST_CROP_SIZE": 32,
        },
        "TRAIN": {"BATCH_SIZE": batch_size},
        "TEST": {"NUM_ENSEMBLE_VIEWS": 2, "NUM_SPATIAL_CROPS": 3},
        "MODEL": {"NUM_CLASSES": 3},
        "DATA_LOADER": {"NUM_WORKERS": 0},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return Config.model_validate(values)


def contents(batches: list[Batch]) -> list[tuple[Any, ...]]:
    tensors = [[t.numpy().tobytes() for t in (b.clips, b.labels, b.videos, b.views)] for b in batches]
    return [(t, b.failures, b.num_short, b.draws) for t, b in zip(tensors, batches, strict=True)]


def epoch(cfg: Config, number: int = 0, start: int = 0, split: Any = "train", **processes: int) -> list[Batch]:
    with closing(build_loader(cfg, split, **processes)) as loader:
        return list(loader.epoch(number, start))


def test_training_clips_are_the_same_with_any_number_of_workers(video_folder: Callable[..., Path]) -> None:
    folder = video_folder(8, bad=(3,))
    augmented = {"ENABLE": True, "NUM_SAMPLE": 2}
    runs = [
        contents(epoch(settings(folder, AUG=augmented, DATA_LOADER={"NUM_WORKERS": workers}), 1))
        for workers in (0, 1, 2)
    ]
    assert len(runs[0]) == 4 and runs[0] == runs[1] == runs[2]


def test_views_are_the_same_with_any_number_of_workers(video_folder: Callable[..., Path]) -> None:
    folder = video_folder(3, bad=(1,))
    runs = [contents(epoch(settings(folder, DATA_LOADER={"NUM_WORKERS": workers}), split="test")) for workers in (0, 2)]
    assert len(runs[0]) == 3 and runs[0] == runs[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_start_in_the_middle_gives_the_rest_of_the_epoch(video_folder: Callable[..., Path], workers: int) -> None:
    cfg = settings(video_folder(9), DATA_LOADER={"NUM_WORKERS": workers})
    whole = contents(epoch(cfg, 2))
    assert len(whole) == 4
    for start in (1, 3, 4):
        assert contents(epoch(cfg, 2, start)) == whole[start:]


@pytest.mark.parametrize("local_world_size", [1, 2])
def test_shares_of_processes_make_up_the_batches_of_one(
    video_folder: Callable[..., Path], local_world_size: int
) -> None:
    folder = video_folder(9)
    alone = epoch(settings(folder, batch_size=4), 1)
    per_machine = 4 * local_world_size // 2
    shared = [
        epoch(settings(folder, batch_size=per_machine), 1, rank=rank, world_size=2, local_world_size=local_world_size)
        for rank in (0, 1)
    ]
    assert len(alone) == len(shared[0]) == len(shared[1]) == 2
    for whole, first, second in zip(alone, *shared, strict=True):
        assert torch.equal(torch.cat([first.clips, second.clips]), whole.clips)
        assert torch.cat([first.videos, second.videos]).tolist() == whole.videos.tolist()


def test_epochs_are_permutations_in_whole_steps(video_folder: Callable[..., Path]) -> None:
    cfg = settings(video_folder(11), batch_size=2, GLOBAL_BATCH_SIZE=4)
    loader = build_loader(cfg, "train")
    assert (loader.num_batches, loader.accumulate, loader.batch_size, loader.num_videos) == (4, 2, 2, 11)
    orders = [[int(video) for batch in loader.epoch(number) for video in batch.videos] for number in range(3)]
    assert all(len(order) == len(set(order)) == 8 for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert orders[0] == [int(video) for batch in epoch(cfg) for video in batch.videos]
    assert all(batch.draws == 2 and batch.failures == () for batch in loader.epoch(0))


def test_plans_deal_out_every_video_once() -> None:
    plans = [TrainPlan(103, 8, 2, first, first + 4, seed=0) for first in (0, 4)]
    shares = [[draw.index for batch in plan.batches(5) for draw in batch] for plan in plans]
    assert [len(plan) for plan in plans] == [12, 12] and len(set(shares[0] + shares[1])) == 96
    evaluations = [EvaluationPlan(7, 2, rank, 3) for rank in range(3)]
    assert [len(plan) for plan in evaluations] == [2, 1, 1]
    assert [list(plan.batches(0)) for plan in evaluations] == [[[0, 3], [6]], [[1, 4]], [[2, 5]]]
    assert len(EvaluationPlan(1, 2, 1, 2)) == 0 and list(EvaluationPlan(1, 2, 1, 2).batches(0)) == []


def test_a_sample_has_videos_of_all_parts_and_of_all_classes_of_a_list() -> None:
    """Lists are sorted by class, or go round in the classes, where every n-th video would leave some out."""
    plan = SamplePlan(1200, 64, 16, seed=3)
    batches = list(plan.batches(0))
    videos = sorted(video for batch in batches for video in batch)
    assert len(plan) == 4 == len(batches) and len(set(videos)) == 64 and 0 <= videos[0] and videos[-1] < 1200
    assert all(min(batch) < 300 and max(batch) >= 900 for batch in batches)
    assert {video % 6 for video in videos} == {*range(6)} == {video // 200 for video in videos}
    assert list(plan.batches(5)) == batches == list(SamplePlan(1200, 64, 16, seed=3).batches(0))
    assert list(SamplePlan(1200, 64, 16, seed=4).batches(0)) != batches and list(plan.batches(0, 2)) == batches[2:]
    assert sorted(sum(SamplePlan(5, 64, 2, seed=0).batches(0), [])) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("num_videos", "block"), [(1003, 10), (320, 8), (5, 10), (100, 1)])
def test_blocks_keep_neighbours_close_and_every_video_once(num_videos: int, block: int) -> None:
    plan = TrainPlan(num_videos, 1, 1, 0, 1, seed=3, block=block)
    orders = [[draws[0].index for draws in plan.batches(epoch)] for epoch in (0, 1)]
    assert all(sorted(order) == list(range(num_videos)) for order in orders) and orders[0] != orders[1]
    for start in range(0, num_videos if num_videos % block == 0 else 0, 8 * block):
        some = orders[0][start : start + 8 * block]
        assert len({index // block for index in some}) == len(some) // block and some != sorted(some)
    assert [draws[0].index for draws in plan.batches(1, 3)] == orders[1][3:]


def test_damaged_training_video_is_replaced_and_listed(video_folder: Callable[..., Path]) -> None:
    batches = epoch(settings(video_folder(6, bad=(4,))))
    failures = [failure for batch in batches for failure in batch.failures]
    assert [failure.index for failure in failures] == [4] and failures[0].path.endswith("clip4.mp4")
    assert all(len(batch.labels) == 2 and 4 not in batch.videos for batch in batches)


def test_nothing_decodable_is_one_error_naming_the_files(video_folder: Callable[..., Path]) -> None:
    folder = video_folder(4, bad=(0, 1, 2, 3))
    for workers in (0, 1):
        with pytest.raises(DecodeError, match=r"could not be decoded: .*clip\d.mp4.*; .*clip"):
            epoch(settings(folder, DATA_LOADER={"NUM_WORKERS": workers}))


def test_damaged_video_is_left_out_of_evaluation_and_listed(video_folder: Callable[..., Path]) -> None:
    cfg = settings(video_folder(5, bad=(2,)))
    batches = [epoch(cfg, split="test", rank=rank, world_size=2) for rank in (0, 1)]
    videos = [[sorted(set(batch.videos.tolist())) for batch in part] for part in batches]
    assert videos == [[[0], [], [4]], [[1], [3]]]
    assert [failure.index for part in batches for batch in part for failure in batch.failures] == [2]
    assert all(batch.views.tolist() == list(range(6)) for part in batches for batch in part if not batch.failures)
    assert batches[0][1].draws == 1 and batches[0][1].clips.shape == (0, 3, 4, 32, 32)


def test_val_is_one_centred_view_of_every_video(video_folder: Callable[..., Path]) -> None:
    cfg = settings(video_folder(5), DATA={"TEST_CROP_SIZE": 48})
    batches = epoch(cfg, split="val")
    assert [batch.videos.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert [batch.clips.shape[-1] for batch in batches] == [32, 32, 32]
    centred = settings(
        video_folder(5),
        DATA={"USE_OFFSET_SAMPLING": True},
        TEST={"NUM_ENSEMBLE_VIEWS": 1, "NUM_SPATIAL_CROPS": 1, "SPLIT": "val"},
    )
    tested = torch.cat([batch.clips for batch in epoch(centred, split="test")])
    assert torch.equal(torch.cat([batch.clips for batch in batches]), tested)


def test_one_test_crop_follows_the_dataset_in_its_short_side(video_folder: Callable[..., Path]) -> None:
    folder = video_folder(2)
    loader = build_loader(settings(folder, TEST={"NUM_SPATIAL_CROPS": 1}), "test")
    three = build_loader(settings(folder), "test")
    assert [cast(ViewDataset, x.dataset).transform.short_side for x in (loader, three)] == [36, 32]


def test_copies_multiply_the_clips_of_a_batch(video_folder: Callable[..., Path]) -> None:
    cfg = settings(video_folder(4), AUG={"ENABLE": True, "NUM_SAMPLE": 2, "AA_TYPE": "", "RE_PROB": 0.0})
    (first, _) = epoch(cfg)
    a, b = first.videos.tolist()[:2]
    assert first.videos.tolist() == [a, b, a, b] and first.draws == 2
    assert not torch.equal(first.clips[0], first.clips[2])


def test_more_workers_than_videos_start_no_idle_ones(video_folder: Callable[..., Path]) -> None:
    cfg = settings(video_folder(1), batch_size=1, DATA_LOADER={"NUM_WORKERS": 16})
    loader = build_loader(cfg, "train")
    assert len(list(loader.epoch(0))) == 1
    assert len(multiprocessing.active_children()) == 1
    loader.close()
    assert multiprocessing.active_children() == []


def test_loader_starts_anew_after_an_abandoned_epoch_and_after_close(video_folder: Callable[..., Path]) -> None:
    folder = video_folder(8)
    expected = contents(epoch(settings(folder), 1))
    loader = build_loader(settings(folder, DATA_LOADER={"NUM_WORKERS": 1}), "train")
    abandoned = loader.epoch(0)
    next(abandoned)
    assert contents(list(loader.epoch(1))) == expected
    with pytest.raises(RuntimeError, match="epoch 0 has ended"):
        next(abandoned)
    loader.close()
    assert contents(list(loader.epoch(1))) == expected
    loader.close()
    loader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_draws_nothing_from_global_generators(video_folder: Callable[..., Path], workers: int) -> None:
    cfg = settings(video_folder(4), AUG={"ENABLE": True}, DATA_LOADER={"NUM_WORKERS": workers})
    loader = build_loader(cfg, "train")
    before = torch.get_rng_state(), random.getstate()
    list(loader.epoch(0))
    loader.close()
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()


def test_contradictory_settings_are_refused_by_name(video_folder: Callable[..., Path]) -> None:
    folder = video_folder(4)

    def refused(match: str, split: Any = "train", processes: dict[str, int] | None = None, **sections: Any) -> None:
        with pytest.raises(ValueError, match=match):
            build_loader(settings(folder, **sections), split, **processes or {})

    refused("GLOBAL_BATCH_SIZE expects 0 or a multiple of TRAIN.BATCH_SIZE 2, got 3", GLOBAL_BATCH_SIZE=3)
    refused(
        "TRAIN.BATCH_SIZE 2 on 1 machine expects a multiple of 3", processes={"world_size": 3, "local_world_size": 3}
    )
    refused(r"train.csv: 4 videos do not fill an optimizer step of 8 clips \(TRAIN.BATCH_SIZE 2", GLOBAL_BATCH_SIZE=8)
    refused("TRAIN.BATCH_SIZE expects an even number with MIXUP.ENABLE", batch_size=3, MIXUP={"ENABLE": True})
    refused("world_size and local_world_size expect", processes={"rank": 2, "world_size": 2})
    refused("DATA.TEST_CROP_SIZE 48", "test", DATA={"TEST_CROP_SIZE": 48}, TEST={"NUM_SPATIAL_CROPS": 1})
    refused("AUG.AA_TYPE", AUG={"ENABLE": True, "AA_TYPE": "rand-x3"})
    with pytest.raises(ValueError, match="start_batch expects 0 to 2.*got 3"):
        build_loader(settings(folder), "train").epoch(0, 3)


def test_unlabelled_video_is_refused_except_in_test(video_folder: Callable[..., Path]) -> None:
    folder = video_folder(3)
    for split in ("train", "val", "test"):
        (folder / f"{split}.csv").write_text("clip0.mp4\nclip1.mp4\nclip2.mp4\n")
    splits: tuple[Split, ...] = ("train", "val")
    for split in splits:
        with pytest.raises(AnnotationError, match=rf"{split}.csv:1: .*clip0.mp4 has no label"):
            build_loader(settings(folder), split)
    assert [batch.labels.tolist() for batch in epoch(settings(folder), split="test")] == [[-1] * 6] * 3


def test_class_names_come_from_their_file(video_folder: Callable[..., Path]) -> None:
    folder = video_folder(2)
    names = folder / "names.txt"
    names.write_text("a\nb\nc\n")
    cfg = settings(folder, DATA={"CLASS_NAMES": str(names)})
    assert build_loader(cfg, "val").class_names == ("a", "b", "c")
    names.write_text("a\nb\n")
    with pytest.raises(AnnotationError, match="names.txt: 2 class names, expected MODEL.NUM_CLASSES 3"):
        build_loader(cfg, "val")


def test_segments_are_the_default_of_ssv2_alone(video_folder: Callable[..., Path]) -> None:
    folder = video_folder(2)
    kinds = {
        (dataset, sampling): clip_sampler(settings(folder, DATA={"SAMPLING": sampling}), dataset, use_offset=False).kind
        for dataset in ("kinetics", "ssv2")
        for sampling in ("auto", "dense", "segments")
    }
    assert [kinds["kinetics", name] for name in ("auto", "dense", "segments")] == ["dense", "dense", "segments"]
    assert [kinds["ssv2", name] for name in ("auto", "dense", "segments")] == ["segments", "dense", "segments"]


def test_clips_by_segments_differ_only_if_shifted(video_folder: Callable[..., Path]) -> None:
    folder = video_folder(2)
    clips = {}
    for place in ("same", "shifted"):
        cfg = settings(folder, DATA={"SAMPLING": "segments"}, TEST={"SEGMENT_CLIPS": place, "NUM_SPATIAL_CROPS": 1})
        clips[place] = epoch(cfg, split="test")[0].clips
        clips["val " + place] = epoch(cfg, split="val")[0].clips
    assert torch.equal(clips["same"][0], clips["same"][1])
    assert not torch.equal(clips["shifted"][0], clips["shifted"][1])
    assert torch.equal(clips["val same"], clips["val shifted"])


def test_settings_of_views_without_effect_are_refused(video_folder: Callable[..., Path]) -> None:
    folder = video_folder(2)
    cfg = settings(folder, DATA={"SAMPLING": "by_index"}, TEST={"SEGMENT_CLIPS": "shifted"})
    with pytest.raises(ValueError, match=r"TEST\.SEGMENT_CLIPS shifted expects DATA\.SAMPLING segments, got by_index"):
        build_loader(cfg, "test")
    cfg = settings(folder, TEST={"CROP_ROUNDING": "down", "NUM_SPATIAL_CROPS": 1})
    with pytest.raises(ValueError, match=r"TEST\.CROP_ROUNDING down expects TEST\.NUM_SPATIAL_CROPS 3, got 1"):
        build_loader(cfg, "test")


def test_views_of_several_segments_show_their_windows_in_turn(video_folder: Callable[..., Path]) -> None:
    folder = video_folder(2)
    cfg = settings(
        folder,
        DATA={"SAMPLING": "by_index", "SAMPLING_RATE": 1, "NUM_SEGMENTS": 2},
        TEST={"NUM_ENSEMBLE_VIEWS": 1, "CROP_ROUNDING": "whole_steps"},
    )
    (clips, *_) = [batch.clips for batch in epoch(cfg, split="test")]
    assert clips.shape == (3, 3, 4, 32, 32)
    with open_video(folder / "clip0.mp4") as reader:
        indices = clip_sampler(cfg, "kinetics", use_offset=False).test(reader.num_frames, reader.fps)
        frames = reader.read(indices)
    assert indices[1] - indices[0] <= 1 < indices[2] - indices[1]
    transform = TestTransform(short_side=32, crop_size=32, num_crops=3, rounding="whole_steps")
    assert torch.equal(clips, transform(frames.permute(0, 3, 1, 2)).transpose(1, 2))


SCRIPT = """
import multiprocessing, signal, time
from pathlib import Path
from tests.data.test_loader import settings
from videoattn.data import build_loader
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
{before}
loader = build_loader(settings(Path({folder!r}), DATA_LOADER={{"NUM_WORKERS": 2}}), "train")
batches = loader.epoch(0)
next(batches)
try:
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    {then}
except KeyboardInterrupt:
    print("interrupted", len(list(batches)), flush=True)
    loader.close()
"""


# The second worker takes long to start.
SLOW_START = """
from videoattn.data.workers import worker_pool as module
start = module.ignore_signals
module.ignore_signals = lambda: (time.sleep(3 * multiprocessing.current_process().name.endswith("-2")), start())
"""


def start_script(
    folder: Path, then: str = "time.sleep(600)", before: str = ""
) -> tuple["subprocess.Popen[str]", list[int]]:
    script = SCRIPT.format(folder=str(folder), then=then, before=before)
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    return process, [int(pid) for pid in process.stdout.readline().split()]


@pytest.mark.parametrize("layout", ["csv", "folders"])
def test_a_missing_test_list_names_the_settings_and_the_split_that_is_there(tmp_path: Path, layout: str) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "1.mp4").touch()
        if layout == "csv":
            (tmp_path / f"{split}.csv").write_text(f"{split}/a/1.mp4 0\n")
    cfg = settings(tmp_path, MODEL={"NUM_CLASSES": 1})
    message = "test.csv does not exist.*DATA.PATH_TO_DATA_DIR is '.*', TEST.SPLIT test; TEST.SPLIT val selects"
    with pytest.raises(AnnotationError, match=message):
        build_loader(cfg, "test")
    assert len(read_videos(settings(tmp_path, MODEL={"NUM_CLASSES": 1}, TEST={"SPLIT": "val"}), "test")) == 1
    with pytest.raises(AnnotationError, match="train.csv does not exist.*DATA.PATH_TO_DATA_DIR is ''"):
        read_videos(settings(tmp_path, DATA={"PATH_TO_DATA_DIR": "", "PATH_PREFIX": ""}), "train")


def test_lists_that_contradict_the_model_are_found_without_it(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a.mp4 0\nb.mp4 3\n")
    with pytest.raises(AnnotationError, match="train.csv:2: label '3' of 'b.mp4', .* 0 to 2.*labels count from 0"):
        read_videos(settings(tmp_path), "train")
    with pytest.raises(AnnotationError, match="train.csv:1: .*DATA.PATH_LABEL_SEPARATOR"):
        read_videos(settings(tmp_path, DATA={"PATH_LABEL_SEPARATOR": ","}), "train")


def test_oddities_of_lists_are_logged_once_by_the_first_process(
    video_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = video_folder(4)
    (folder / "train.csv").write_text("clip0.mp4 0\nclip1.mp4 2\nclip0.mp4 2\nclip3.mp4 0\n")
    for rank in (0, 1):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "videoattn"):
            build_loader(settings(folder), "train", rank=rank, world_size=2, local_world_size=2).close()
        told = [record.getMessage() for record in caplog.records]
        assert [text.partition(": ")[2][:12] for text in told] == (
            ["1 of MODEL.N", "1 of 4 entri"] if rank == 0 else []
        )


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc to see processes")
def test_an_uncaught_error_ends_the_workers_too(video_folder: Callable[..., Path]) -> None:
    process, workers = start_script(video_folder(8), then="raise OSError('nobody closes the loader')")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "nobody closes the loader" in errors
    assert workers and all(gone(worker) for worker in workers)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc to see processes")
def test_workers_end_with_a_killed_main_process(video_folder: Callable[..., Path]) -> None:
    process, workers = start_script(video_folder(8))
    assert workers and not any(gone(worker) for worker in workers)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while not all(gone(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert all(gone(worker) for worker in workers)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc to see processes")
@pytest.mark.parametrize("before", ["", SLOW_START], ids=["running", "starting"])
def test_interrupt_is_left_to_the_main_process(video_folder: Callable[..., Path], before: str) -> None:
    process, workers = start_script(video_folder(8), before=before)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and output == "interrupted 3\n" and "Traceback" not in errors
    assert all(gone(worker) for worker in workers)
