"""Frames scaled while they are decoded are, to a few grey levels, what scaling them afterwards gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.data.readers.test_decode import BACKENDS
from tests.shared_files import CLIPS, needs_clips
from videoattn.config.load import load_config
from videoattn.data.augment.transforms import resize_short_side
from videoattn.data.build import decode_options
from videoattn.data.readers.open_video import DecodeError, open_video

REAL = [
    ("uniformer_det_demo.mp4", 256),  # 1280x720
    ("moviepy_big_buck_bunny_432_433.webm", 200),
    ("moviepy_chaplin.mp4", 256),
    ("made/rot90.mp4", 128),  # upright 256x340
    ("decord_video_180.mov", 100),
    ("made/odd444_340x255.mp4", 128),
    ("mmaction2_demo_arm_wrestling.mp4", 160),
    pytest.param("mmaction2_S001C001P001R001A001_rgb.avi", 256, marks=pytest.mark.slow),  # 1920x1080
]


def read(video: Path, indices: list[int], backend: str = "auto", **options: Any) -> Tensor:
    with open_video(video, backend, **options) as reader:  # type: ignore[arg-type]
        return reader.read(indices)


def scaled_by_pillow(frames: Tensor, size: tuple[int, int]) -> Tensor:
    from PIL import Image

    height, width = size
    pictures = [Image.fromarray(frame.numpy()).resize((width, height), Image.Resampling.BILINEAR) for frame in frames]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))


def assert_alike(frames: Tensor, expected: Tensor) -> None:
    """The same to a few grey levels.

    FFmpeg's conversion without scaling rounds down by one level on average; and it scales colours, which are stored at
    half size, on their own.
    """
    assert frames.dtype == torch.uint8 and frames.shape == expected.shape
    difference = (frames.int() - expected.int()).abs()
    assert difference.float().mean() < 1.6
    assert np.percentile(difference, 99) <= 8


@needs_clips
@pytest.mark.parametrize(("name", "short_side"), REAL)
def test_every_reader_scales_as_pillow_would(name: str, short_side: int) -> None:
    with open_video(CLIPS / name) as reader:
        wanted = [reader.num_frames // 2, 0]
    whole = read(CLIPS / name, wanted)
    size = resize_short_side(whole.permute(0, 3, 1, 2), short_side).shape[2:]
    expected = scaled_by_pillow(whole, tuple(size))
    for backend in BACKENDS:
        assert_alike(read(CLIPS / name, wanted, backend, short_side=short_side), expected)


@needs_clips
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_extracted_frames_are_scaled_as_the_video_is(tmp_path: Path, ending: str) -> None:
    from PIL import Image

    video = CLIPS / "uniformer_det_demo.mp4"
    for number, frame in enumerate(read(video, [0, 40])):
        Image.fromarray(frame.numpy()).save(tmp_path / f"{number}.{ending}", quality=95)
    for short_side in (400, 128):  # Pillow decodes jpg at half size for the second
        frames = read(tmp_path, [0, 1], short_side=short_side)
        assert_alike(frames, read(video, [0, 40], short_side=short_side))
        assert_alike(frames, scaled_by_pillow(read(tmp_path, [0, 1]), tuple(frames.shape[1:3])))


@pytest.mark.parametrize("size", [(48, 66), (100, 64), (50, 50), (66, 64)], ids=str)
def test_short_side_is_as_asked_and_the_long_one_rounded_as_in_transforms(
    make: Callable[..., Path], tmp_path: Path, size: tuple[int, int]
) -> None:
    from PIL import Image

    video = make("b.mp4", size=size, num_frames=4)
    whole = read(video, [0, 3])
    Image.fromarray(whole[0].numpy()).save(tmp_path / "1.png")
    for short_side in (7, 31, min(size) - 1):
        expected = resize_short_side(whole.permute(0, 3, 1, 2), short_side).shape[2:]
        for backend in BACKENDS:
            assert read(video, [0, 3], backend, short_side=short_side).shape[1:3] == expected
        assert read(tmp_path, [0], short_side=short_side).shape[1:3] == expected


def test_frames_are_never_enlarged_and_small_ones_stay_bit_for_bit(make: Callable[..., Path]) -> None:
    video = make("b.mp4", size=(48, 64))
    for backend in BACKENDS:
        for short_side in (48, 100):
            scaled = read(video, [3, 30], backend, short_side=short_side)
            assert torch.equal(scaled, read(video, [3, 30], backend))


def test_pictures_of_other_sizes_are_refused_even_where_scaling_would_hide_it(tmp_path: Path) -> None:
    from PIL import Image

    for number, width in enumerate((40, 80)):
        Image.new("RGB", (width, width)).save(tmp_path / f"{number}.jpg")
    with pytest.raises(DecodeError, match=r"1.jpg: is 80x80, expected 40x40 as .*0.jpg"):
        read(tmp_path, [0, 1], short_side=20)


def test_the_setting_reaches_the_reader_and_is_off_by_default(make: Callable[..., Path]) -> None:
    video = make("b.mp4", size=(48, 64))
    for overrides, height in (([], 48), (["DATA.DECODING_SHORT_SIZE", "24"], 24)):
        with decode_options(load_config(None, overrides)).open(str(video)) as reader:
            assert reader.read([0]).shape == (1, height, height * 4 // 3, 3)


def test_a_negative_size_is_refused(make: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="short_side -1, expected 0 or a number of pixels"):
        open_video(make("b.mp4"), short_side=-1)
