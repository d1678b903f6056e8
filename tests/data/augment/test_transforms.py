import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from videoattn.data.augment.flips import NEVER_FLIPPED
from videoattn.data.augment.rand_augment import RandAugment
from videoattn.data.augment.transforms import TestTransform, TrainTransform, resize_short_side
from videoattn.data.clips.batch import normalize
from videoattn.seeding import derive_seed

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "jitter and flip": {},
    "inverse jitter": {"inverse_jitter": True},
    "random-resized crop": {"relative_scales": (0.08, 1.0), "relative_aspect": (0.75, 1.3333)},
    "RandAugment": {"aa_type": "rand-m7-n4-mstd0.5-inc1"},
    "RandAugment, bilinear": {"aa_type": "rand-m9-n2", "interpolation": "bilinear"},
    "colour jitter": {"color_jitter": 0.4},
    "constant erasing": {"erase_prob": 1.0, "erase_mode": "const", "erase_count": 3},
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def train_transform(**options: Any) -> TrainTransform:
    return TrainTransform(**{"crop_size": 24, "jitter_scales": (28, 36), **options})


def augmentation(**options: Any) -> Callable[[Tensor, int], Tensor]:
    """A transform without its labels."""
    transform = train_transform(**options)
    return lambda frames, seed: transform(frames, seed)[0]


def global_states() -> list[str]:
    return [str(state) for state in (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state())]


def columns(height: int, width: int) -> Tensor:
    """Two frames whose value is the number of the column."""
    return torch.arange(width, dtype=torch.uint8).expand(2, 3, height, width)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_clip_of_one_repeated_frame_stays_so_under_every_augmentation(name: str) -> None:
    transform = augmentation(**AUGMENTATIONS[name])
    frame = noise(1, 3, 40, 52)
    for seed in range(8):
        clip = transform(frame.expand(5, 3, 40, 52), seed)
        assert clip.shape == (5, 3, 24, 24) and clip.dtype == torch.uint8
        assert (clip == clip[:1]).all()


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_is_a_function_of_the_seed_and_leaves_global_generators_alone(name: str) -> None:
    transform = augmentation(**AUGMENTATIONS[name])
    frames = noise(3, 3, 40, 52)
    before = global_states()
    first = [transform(frames, seed) for seed in range(6)]
    after = global_states()
    torch.rand(5), random.random(), np.random.rand()
    again = [transform(frames, seed) for seed in range(6)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(first[0], other) for other in first[1:])
    assert before == after


def test_flip_happens_about_half_the_time_and_only_if_asked() -> None:
    frames = columns(24, 24)
    for flip, expected in ((True, {"as is", "flipped"}), (False, {"as is"})):
        transform = augmentation(jitter_scales=(24, 24), flip=flip)
        clips = [transform(frames, seed) for seed in range(40)]
        kinds = ["as is" if torch.equal(clip, frames) else "flipped" for clip in clips]
        assert all(torch.equal(clip, frames) or torch.equal(clip, frames.flip(-1)) for clip in clips)
        assert set(kinds) == expected
        assert kinds.count("flipped") in (range(10, 31) if flip else (0,))


def test_flipped_clip_has_the_class_of_its_flip_and_others_keep_theirs() -> None:
    frames = columns(24, 24)
    transform = train_transform(jitter_scales=(24, 24), flipped_labels=(1, 0, 2, NEVER_FLIPPED))
    for label, other in ((0, 1), (1, 0), (2, 2)):
        results = [transform(frames, seed, label) for seed in range(40)]
        assert {torch.equal(clip, frames) for clip, _ in results} == {True, False}
        assert all(found == (label if torch.equal(clip, frames) else other) for clip, found in results)
    assert all(torch.equal(clip, frames) and found == 3 for clip, found in (transform(frames, s, 3) for s in range(40)))


@pytest.mark.parametrize(
    "crop", [{}, {"relative_scales": (0.08, 1.0), "relative_aspect": (0.75, 1.3333)}], ids=["jitter", "random-resized"]
)
@pytest.mark.parametrize("shape", [(40, 52), (71, 46), (36, 36), (21, 26)])
def test_clip_is_that_of_whole_augmented_frames(shape: tuple[int, int], crop: dict[str, Any]) -> None:
    aa_type, frames = "rand-m9-n4-mstd0.5-inc1-p0.8", noise(2, 3, *shape)
    plain, augmented = augmentation(**crop), augmentation(aa_type=aa_type, **crop)
    whole = RandAugment(aa_type)
    for seed in range(20):
        expected = plain(whole(frames, derive_seed(seed, "rand_augment")), seed)
        assert torch.equal(augmented(frames, seed), expected)


def test_changing_labels_changes_no_draw() -> None:
    options = {"aa_type": "rand-m7-n4-mstd0.5-inc1", "erase_prob": 0.5}
    keeps, changes = train_transform(**options), train_transform(**options, flipped_labels=(1, 0, NEVER_FLIPPED))
    frames = noise(2, 3, 40, 52)
    for seed in range(10):
        assert torch.equal(keeps(frames, seed, 0)[0], changes(frames, seed, 0)[0])


def test_jitter_draws_every_short_side_and_prefers_small_ones_in_inverse() -> None:
    sides = {}
    for inverse in (False, True):
        transform = train_transform(jitter_scales=(24, 72), inverse_jitter=inverse)
        torch.manual_seed(0)
        sides[inverse] = [transform._draw_short_side() for _ in range(2000)]
        assert min(sides[inverse]) in (24, 25) and max(sides[inverse]) in (71, 72)
    assert abs(sum(sides[False]) / 2000 - 48) < 1
    assert abs(sum(sides[True]) / 2000 - 36 * np.log(3)) < 1  # the mean of 1 / U(1/72, 1/24)


def test_crops_reach_every_corner() -> None:
    transform = augmentation(jitter_scales=(24, 24), flip=False)
    lefts = {int(transform(columns(24, 28), seed)[0, 0, 0, 0]) for seed in range(60)}
    assert lefts == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("height, width, expected", [(30, 41, (20, 27)), (41, 30, (27, 20)), (20, 33, (20, 33))])
def test_resizing_keeps_the_aspect_and_interpolates_without_antialiasing(
    height: int, width: int, expected: tuple[int, int]
) -> None:
    frames = noise(2, 3, height, width)
    resized = resize_short_side(frames, 20)
    exact = functional.interpolate(frames.float(), expected, mode="bilinear", align_corners=False)
    assert tuple(resized.shape[-2:]) == expected
    assert (resized - exact).abs().max() <= 1.01


def test_three_crops_lie_left_centre_and_right() -> None:
    crops = TestTransform(short_side=24, crop_size=24, num_crops=3)(columns(24, 31))
    assert crops.shape == (3, 2, 3, 24, 24)
    assert [int(crop[0, 0, 5, 0]) for crop in crops] == [0, 4, 7]  # ceil((31 - 24) / 2) = 4


def test_three_crops_of_an_upright_clip_lie_top_centre_and_bottom() -> None:
    frames = columns(24, 31).transpose(-1, -2)
    crops = TestTransform(short_side=24, crop_size=24, num_crops=3)(frames)
    assert [int(crop[0, 0, 0, 5]) for crop in crops] == [0, 4, 7]


@pytest.mark.parametrize("size", [(224, 298), (298, 224), (256, 341), (384, 511), (224, 224), (225, 224)])
def test_three_crops_begin_where_each_project_puts_them(size: tuple[int, int]) -> None:
    short, long = sorted(size)
    places = torch.stack([torch.arange(long) % 256, torch.arange(long) // 256, torch.zeros(long)]).to(torch.uint8)
    frames = places[None, :, None].expand(1, 3, short, long)
    frames = frames if size[0] <= size[1] else frames.transpose(-1, -2)
    begins = {
        rounding: [
            int(crop[0, 0, 0, 0]) + 256 * int(crop[0, 1, 0, 0])
            for crop in TestTransform(short_side=short, crop_size=short, num_crops=3, rounding=rounding)(frames)
        ]
        for rounding in ("up", "down", "whole_steps")
    }
    assert begins["down"] == [int(crop * ((long - short) / 2)) for crop in range(3)]  # VideoMAE
    assert begins["whole_steps"] == [crop * ((long - short) // 2) for crop in range(3)]  # V-JEPA 2
    assert begins["up"] == [0, -((short - long) // 2), long - short]  # SlowFast


def test_one_crop_is_the_centre_of_the_resized_frame() -> None:
    (crop,) = TestTransform(short_side=32, crop_size=24)(columns(32, 41))
    assert int(crop[0, 0, 0, 0]) == 9 and int(crop[0, 0, 0, -1]) == 32  # ceil((41 - 24) / 2) = 9


def test_erasing_puts_one_box_at_the_same_place_in_every_frame() -> None:
    transform = augmentation(
        jitter_scales=(24, 24), flip=False, erase_prob=1.0, mean=(0.2, 0.4, 0.6), erase_mode="const"
    )
    for seed in range(20):
        clip = transform(torch.full((4, 3, 24, 24), 7, dtype=torch.uint8), seed)
        erased = clip != 7  # [T, 3, H, W]
        assert (erased == erased[:1, :1]).all()
        rows, cols = erased[0, 0].any(1), erased[0, 0].any(0)
        assert erased.sum() == 12 * rows.sum() * cols.sum()  # a full rectangle
        assert 0.01 <= float(erased.float().mean()) <= 0.36
        assert torch.unique(clip[:, 0][erased[:, 0]]).tolist() == [51]
        assert torch.unique(clip[:, 1][erased[:, 1]]).tolist() == [102]
        assert torch.unique(clip[:, 2][erased[:, 2]]).tolist() == [153]


def test_erased_pixels_are_noise_around_the_mean_and_differ_between_frames() -> None:
    transform = augmentation(crop_size=64, jitter_scales=(64, 64), flip=False, erase_prob=1.0, std=(0.1, 0.1, 0.1))
    clip = transform(torch.zeros(4, 3, 64, 64, dtype=torch.uint8), seed=3).float()
    values = clip[clip > 0]
    assert abs(values.mean() - 0.45 * 255) < 2 and abs(values.std() - 25.5) < 2
    assert not torch.equal(clip[0], clip[1])


def test_erasing_leaves_the_decoded_frames_as_they_are() -> None:
    frames = noise(2, 3, 24, 24)
    kept = frames.clone()
    train_transform(jitter_scales=(24, 24), erase_prob=1.0)(frames, 0)
    assert torch.equal(frames, kept)


def test_colour_jitter_gives_way_to_rand_augment() -> None:
    frames = noise(2, 3, 40, 40)
    both = augmentation(aa_type="rand-m9-n2-inc1", color_jitter=0.4)
    alone = augmentation(aa_type="rand-m9-n2-inc1")
    assert all(torch.equal(both(frames, seed), alone(frames, seed)) for seed in range(5))


def test_the_strongest_magnitude_works_in_every_operation():
    augment = augmentation(aa_type="rand-m10-n6-mstd0.5-inc1-p1.0")
    frames = torch.randint(0, 256, (1, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert all(augment(frames, seed).dtype == torch.uint8 for seed in range(40))


@pytest.mark.parametrize(
    "aa_type, token", [("rand-m7-zz3", "zz3"), ("augmix-m3", "augmix"), ("rand-mq", "mq"), ("rand--m7", "")]
)
def test_unknown_rand_augment_token_is_named(aa_type: str, token: str) -> None:
    with pytest.raises(ValueError, match=f"AUG.AA_TYPE '{aa_type}': '{token}' is unknown"):
        train_transform(aa_type=aa_type)


def test_contradictory_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"TRAIN_CROP_SIZE 32 expects at most DATA.*SCALES\[0\], which is 28"):
        train_transform(crop_size=32)
    with pytest.raises(ValueError, match="TRAIN_JITTER_ASPECT_RELATIVE"):
        train_transform(relative_scales=(0.1, 1.0))
    with pytest.raises(ValueError, match="crop size 32 expects at most"):
        TestTransform(short_side=24, crop_size=32)
    with pytest.raises(ValueError, match="NUM_SPATIAL_CROPS expects 1 or 3, got 2"):
        TestTransform(short_side=24, crop_size=24, num_crops=2)


@pytest.mark.parametrize("shape", [(2, 24, 24, 3), (0, 3, 24, 24), (2, 3, 0, 24), (3, 24, 24)])
def test_frames_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected uint8 frames"):
        TestTransform(short_side=24, crop_size=24)(torch.zeros(shape, dtype=torch.uint8))


def test_normalised_values_are_those_of_the_formula() -> None:
    clips = noise(2, 3, 4, 5, 6)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    expected = torch.stack([(clips[:, c].double() / 255 - mean[c]) / std[c] for c in range(3)], dim=1)
    normalized = normalize(clips, mean, std)
    assert normalized.dtype == torch.float32
    torch.testing.assert_close(normalized.double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(normalize(clips, mean, std, reverse_channels=True), normalized.flip(1), rtol=0, atol=0)


def test_normalising_refuses_anything_but_a_batch_of_bytes() -> None:
    for clips in (torch.zeros(2, 3, 4, 5, 6), torch.zeros(3, 4, 5, 6, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="expected uint8 clips"):
            normalize(clips, (0.45,) * 3, (0.225,) * 3)
