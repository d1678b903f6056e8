import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from videoattn.compat import import_timm
from videoattn.data.augment.clip_operations import apply_to_clip
from videoattn.data.augment.rand_augment import Box, Interpolation, Operation, RandAugment, apply_operations

LEVELS = (0.0, 0.4137, 1.0291, 2.6183, 5.0373, 7.3119, 9.0487, 9.99)
NAMES = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "PosterizeIncreasing", "Solarize",
    "SolarizeIncreasing", "SolarizeAdd", "Color", "ColorIncreasing", "Contrast", "ContrastIncreasing", "Brightness",
    "BrightnessIncreasing", "Sharpness", "SharpnessIncreasing", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
)  # fmt: skip
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


def pictures(height: int = 30, width: int = 41) -> Tensor:
    """Two frames: a dull gradient with some noise, and noise alone."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (2, 3, height, width), generator=generator)
    ramp = torch.arange(height).view(-1, 1) * 2 + torch.arange(width) + torch.tensor([20, 50, 80]).view(3, 1, 1)
    return torch.stack([ramp + noise[0] // 16, noise[1]]).to(torch.uint8)


def operations(name: str) -> Iterator[Operation]:
    """An operation at all levels, to both sides where it has two."""
    import_timm()
    from timm.data.auto_augment import LEVEL_TO_ARG

    to_values = LEVEL_TO_ARG[name]
    for level in LEVELS if to_values else (0.0,):
        for seed in (1, 2):  # one negative, one positive
            random.seed(seed)
            values = to_values(level, {}) if to_values else ()
            if "Posterize" not in name or values[0] > 0:  # Pillow refuses to keep no bit
                yield Operation(name.removesuffix("Increasing"), values)


def by_timm(frames: Tensor, transform: object) -> Tensor:
    from PIL import Image

    assert callable(transform)
    images = [np.array(transform(Image.fromarray(frame.permute(1, 2, 0).numpy()))) for frame in frames]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def boxes(height: int, width: int, number: int) -> Iterator[Box]:
    rng = random.Random(5)
    for _ in range(number):
        left, top = rng.randrange(width - 1), rng.randrange(height - 1)
        yield Box(left, top, rng.randint(left + 1, width), rng.randint(top + 1, height))


def inside(frames: Tensor, box: Box) -> Tensor:
    return frames[..., box.top : box.bottom, box.left : box.right]


def test_every_operation_of_timm_is_known() -> None:
    import_timm()
    from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS, _RAND_TRANSFORMS

    assert set(NAMES) == {*_RAND_TRANSFORMS, *_RAND_INCREASING_TRANSFORMS}


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("aa_type", ["rand-m7-n4-mstd0.5-inc1", "rand-m9-n3-p1.0", "rand-m10-n6-mstd1-inc1-p0.9"])
def test_draws_and_pixels_are_those_of_timm(aa_type: str, interpolation: Interpolation) -> None:
    import_timm()
    from PIL import Image
    from timm.data.auto_augment import rand_augment_transform

    resampling = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    reference = rand_augment_transform(aa_type, {"interpolation": resampling, "magnitude_max": 9.99})
    augment, frames = RandAugment(aa_type, interpolation), pictures()
    for seed in range(40):
        expected = []
        for frame in frames.split(1):
            random.seed(seed)
            np.random.seed(seed)
            expected.append(by_timm(frame, reference))
        assert torch.equal(augment(frames, seed), torch.cat(expected))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("name", NAMES)
def test_operation_within_a_box_is_that_of_the_whole_frame(name: str, interpolation: Interpolation) -> None:
    frames = pictures()
    for operation in operations(name):
        whole = apply_operations(frames, [operation], interpolation)
        for box in boxes(30, 41, 6):
            part = apply_operations(frames, [operation], interpolation, box)
            assert part.shape == whole.shape
            assert torch.equal(inside(part, box), inside(whole, box)), (operation, box)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("aa_type", ["rand-m9-n6-mstd0.5-inc1-p1.0", "rand-m9-n3-p1.0", "rand-m10-n3-mstd0.5-p1.0"])
def test_chains_within_a_box_are_those_of_the_whole_frame(aa_type: str, interpolation: Interpolation) -> None:
    augment, frames = RandAugment(aa_type, interpolation), pictures(44, 37)
    for seed, box in enumerate(boxes(44, 37, 60)):
        assert torch.equal(inside(augment(frames, seed, box), box), inside(augment(frames, seed), box)), (seed, box)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("name", NAMES)
def test_operations_on_tensors_are_those_of_pillow(name: str, interpolation: Interpolation) -> None:
    frames, changed = pictures(), False
    for operation in operations(name):
        expected = apply_operations(frames, [operation], interpolation)
        difference = (apply_to_clip(frames, operation, interpolation).int() - expected.int()).abs()
        changed |= not torch.equal(frames, expected)
        if name in GEOMETRIC:  # float32 for Pillow's float64
            assert difference.max() <= 1 and (difference > 0).float().mean() < 0.1, operation
        elif name == "AutoContrast":
            assert difference.max() <= 1
        else:
            assert difference.max() == 0, operation
    assert changed


def test_operations_on_tensors_keep_even_frames_even() -> None:
    frame = torch.full((1, 3, 20, 20), 77, dtype=torch.uint8)
    for name in GEOMETRIC:
        for operation in operations(name):
            assert set(apply_to_clip(frame, operation, "bicubic").unique().tolist()) <= {77, 128}, operation


def test_posterizing_keeps_a_bit_at_every_magnitude() -> None:
    for magnitude in range(11):
        for increasing in (0, 1):
            augment = RandAugment(f"rand-m{magnitude}-n3-mstd1-p1.0-inc{increasing}")
            drawn = [operation for seed in range(60) for operation in augment.draw(seed)]
            bits = {values[0] for name, values in drawn if name == "Posterize"}
            assert bits and bits <= {1, 2, 3, 4}


def test_drawing_depends_on_the_seed_and_leaves_global_generators_alone() -> None:
    augment = RandAugment("rand-m7-n4-mstd0.5-inc1")
    random.seed(3)
    np.random.seed(3)
    before = random.getstate(), str(np.random.get_state())
    draws = [augment.draw(seed) for seed in range(20)]
    assert (random.getstate(), str(np.random.get_state())) == before
    assert draws == [augment.draw(seed) for seed in range(20)]
    assert len(set(draws)) > 10 and {len(draw) for draw in draws} > {1, 2, 3}


def test_clip_without_operations_is_the_given_one() -> None:
    augment, frames = RandAugment("rand-m7-n4-p0.0"), pictures()
    assert augment.draw(0) == () and augment(frames, 0) is frames
