from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from videoattn.config import Config
from videoattn.data import BatchAugment, build_loader, build_prepare, normalize
from videoattn.data.augment.rand_augment import RandAugment, apply_operations
from videoattn.seeding import derive_seed

OPTIONS: dict[str, dict[str, Any]] = {
    "RandAugment": {"aa_type": "rand-m7-n4-mstd0.5-inc1"},
    "colour jitter": {"color_jitter": 0.4},
    "erasing": {"erase_prob": 1.0, "erase_count": 2},
    "all": {"aa_type": "rand-m9-n2-mstd0.5-inc1", "interpolation": "bilinear", "color_jitter": 0.4, "erase_prob": 0.5},
}


def batch(num_clips: int = 6) -> Tensor:
    """Return clips that are one frame three times."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (num_clips, 3, 1, 24, 24), dtype=torch.uint8, generator=generator)
    return frames.expand(-1, -1, 3, -1, -1).contiguous()


@pytest.mark.parametrize("name", OPTIONS)
def test_clip_alone_is_augmented_as_in_any_batch(name: str) -> None:
    augment, clips = BatchAugment(**OPTIONS[name]), batch()
    whole = augment(clips, seed=5)
    assert whole.shape == clips.shape and whole.dtype == torch.uint8
    assert torch.equal(torch.cat([augment(clips[i : i + 1], 5, first_clip=i) for i in range(6)]), whole)
    assert torch.equal(torch.cat([augment(clips[:2], 5), augment(clips[2:], 5, first_clip=2)]), whole)


@pytest.mark.parametrize("name", OPTIONS)
def test_result_depends_on_the_seed_and_leaves_generator_and_clips_alone(name: str) -> None:
    augment, clips = BatchAugment(**OPTIONS[name]), batch()
    kept, state = clips.clone(), torch.get_rng_state()
    first = augment(clips, 1)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(clips, kept)
    torch.rand(3)
    assert torch.equal(augment(clips, 1), first)
    assert not torch.equal(augment(clips, 2), first)


@pytest.mark.parametrize("name", ["RandAugment", "colour jitter"])
def test_all_frames_of_a_clip_are_augmented_alike(name: str) -> None:
    result = BatchAugment(**OPTIONS[name])(batch(), 3)
    assert torch.equal(result, result[:, :, :1].expand_as(result))
    assert not torch.equal(result, batch())


def test_rand_augment_is_that_of_workers_on_the_crop() -> None:
    aa_type, clips = OPTIONS["RandAugment"]["aa_type"], batch(12)
    result = BatchAugment(aa_type=aa_type)(clips, 7)
    for number, clip in enumerate(clips):
        drawn = RandAugment(aa_type).draw(derive_seed(derive_seed(7, "augment", number), "rand_augment"))
        if len(drawn) == 1:  # a second operation may magnify what the first one differs by
            expected = apply_operations(clip.transpose(0, 1), drawn, "bicubic").transpose(0, 1)
            assert (result[number].int() - expected.int()).abs().max() <= 1
        elif not drawn:
            assert torch.equal(result[number], clip)


def test_erased_boxes_lie_at_one_place_in_all_frames_and_hold_the_mean() -> None:
    clips = torch.full((8, 3, 4, 24, 24), 7, dtype=torch.uint8)
    result = BatchAugment(erase_prob=1.0, erase_mode="const", mean=(0.2, 0.4, 0.6))(clips, 0)
    erased = result != 7
    assert torch.equal(erased, erased[:, :1, :1].expand_as(erased))
    assert all(torch.unique(result[:, c][erased[:, c]]).tolist() == [51 * (c + 1)] for c in range(3))
    assert len({clip.numpy().tobytes() for clip in erased}) > 4


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["RandAugment", "colour jitter"])
def test_a_gpu_augments_as_a_cpu_does(name: str) -> None:
    augment, clips = BatchAugment(**OPTIONS[name]), batch(12)
    difference = (augment(clips.cuda(), 3).cpu().int() - augment(clips, 3).int()).abs()
    assert (difference > 1).float().mean() < 1e-3


def test_only_a_batch_of_bytes_is_augmented() -> None:
    for clips in (torch.zeros(2, 3, 4, 5, 6), torch.zeros(3, 4, 5, 6, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="expected uint8 clips"):
            BatchAugment()(clips, 0)


def settings(folder: Path, device: str) -> Config:
    return Config.model_validate(
        {
            "DATA": {
                "PATH_TO_DATA_DIR": str(folder), "PATH_PREFIX": str(folder), "NUM_FRAMES": 4, "SAMPLING_RATE": 2,
                "TRAIN_JITTER_SCALES": (36, 44), "TRAIN_CROP_SIZE": 32,
            },
            "AUG": {"ENABLE": True, "NUM_SAMPLE": 2, "DEVICE": device},
            "TRAIN": {"BATCH_SIZE": 4}, "MODEL": {"NUM_CLASSES": 3}, "DATA_LOADER": {"NUM_WORKERS": 0},
        }
    )  # fmt: skip


def prepared(cfg: Config, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
    """Return clips as workers leave them, and as the model gets them."""
    with closing(build_loader(cfg, "train", rank=rank, world_size=world_size, local_world_size=world_size)) as loader:
        prepare = build_prepare(cfg, "train", "cpu", videos_before=rank * loader.batch_size)
        first = next(iter(loader.epoch(0)))
        return first.clips, prepare(first, 11)[0]


def test_workers_only_crop_and_flip_if_the_model_device_does_the_rest(video_folder: Callable[..., Path]) -> None:
    cfg = settings(video_folder(4), "model")
    plain = cfg.model_copy(
        update={"aug": cfg.aug.model_copy(update={"re_prob": 0.0, "aa_type": "", "color_jitter": 0})}
    )
    clips, given = prepared(cfg)
    assert torch.equal(clips, prepared(plain)[0])
    augment = BatchAugment(aa_type=cfg.aug.aa_type, erase_prob=cfg.aug.re_prob)
    assert torch.equal(given, normalize(augment(clips, 11), cfg.data.mean, cfg.data.std))
    assert not torch.equal(given, normalize(clips, cfg.data.mean, cfg.data.std))


def test_evaluation_neither_augments_nor_mixes(video_folder: Callable[..., Path]) -> None:
    cfg = settings(video_folder(4), "model")
    cfg = cfg.model_copy(update={"mixup": cfg.mixup.model_copy(update={"enable": True})})
    with closing(build_loader(cfg, "train")) as loader:
        batch = next(iter(loader.epoch(0)))
    plain = normalize(batch.clips, cfg.data.mean, cfg.data.std)
    for split in ("val", "test"):
        clips, labels = build_prepare(cfg, split, "cpu", videos_before=2)(batch, 11)
        assert torch.equal(clips, plain) and torch.equal(labels, batch.labels)
    clips, labels = build_prepare(cfg, "train", "cpu")(batch, 11)
    assert not torch.equal(clips, plain) and labels.shape == (len(batch.labels), 3)


def test_workers_do_everything_by_default(video_folder: Callable[..., Path]) -> None:
    cfg = settings(video_folder(4), "cpu")
    clips, given = prepared(cfg)
    assert torch.equal(given, normalize(clips, cfg.data.mean, cfg.data.std))
    assert not torch.equal(clips, prepared(settings(video_folder(4), "model"))[0])


def test_processes_that_share_a_batch_augment_as_one_would(video_folder: Callable[..., Path]) -> None:
    cfg = settings(video_folder(4), "model")
    whole = prepared(cfg)[1]
    assert torch.equal(torch.cat([prepared(cfg, rank, 2)[1] for rank in range(2)]), whole)
