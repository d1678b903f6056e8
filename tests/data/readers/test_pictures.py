"""Pictures of every pixel type become upright RGB bytes, or are refused with the reason."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.shared_files import SHARED
from videoattn.data.check.probe import Prober, ProbeTask
from videoattn.data.readers.open_video import DecodeError, open_video

DEEP = 30000  # of 65535: 117 of 255
COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # of png, by channels


def deep_png(pixels: np.ndarray[Any, Any]) -> bytes:
    """A png of 16 bits a colour. Source: PNG specification, 11.2 and 7.2."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, COLOR_TYPES[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    target = io.BytesIO()
    picture.save(target, kind, **options)
    return target.getvalue()


def frame(folder: Path, content: bytes, name: str = "1.png", short_side: int = 0) -> torch.Tensor:
    """The only frame of a folder, or of a range, which may have any ending."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    number, _, ending = name.partition(".")
    with open_video(folder / f"{{{number}..{number}}}.{ending}", short_side=short_side) as reader:
        return reader.read([0])[0]


@pytest.mark.parametrize("short_side", [0, 8])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits_gives_the_upper_eight(tmp_path: Path, channels: int, short_side: int) -> None:
    pixels = np.full((16, 24, channels), DEEP, np.uint16)
    pixels[:, 12:, 0] = 65535
    image = frame(tmp_path, deep_png(pixels), short_side=short_side)
    assert image.shape == ((8, 12, 3) if short_side else (16, 24, 3))
    assert image[0, 0].tolist() == [117] * 3
    assert image[0, -1].tolist() == ([255] * 3 if channels < 3 else [255, 117, 117])


def test_frames_of_16_bits_are_those_of_a_video_of_16_bits(tmp_path: Path) -> None:
    import av

    levels = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (16, 1))
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 16, 64, "gray16le"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(levels, format="gray16le")))
        container.mux(stream.encode())
    picture = frame(tmp_path / "frames", deep_png(levels[..., None]))
    for backend in ("auto", "pyav"):
        with open_video(tmp_path / "a.mkv", backend) as reader:  # type: ignore[arg-type]
            assert (reader.read([0])[0].int() - picture.int()).abs().max() <= 1
    with pytest.raises(DecodeError, match="decord does not support this type of video"):
        open_video(tmp_path / "a.mkv", "decord")


@pytest.mark.parametrize(
    ("codec", "stored"),
    [("ffv1", "yuv420p10le"), ("libx264", "yuv420p10le"), ("libx265", "yuv420p12le"), ("ffv1", "yuv444p12le"),
     ("ffv1", "gray10le"), ("ffv1", "gray12le"), ("ffv1", "gray16le"), ("ffv1", "gbrp12le"), ("ffv1", "gbrp16le")],
)  # fmt: skip
def test_videos_of_more_than_8_bits_are_scaled_or_refused_by_name(tmp_path: Path, codec: str, stored: str) -> None:
    import av

    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, stored
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 117, np.uint8), format="rgb24")))
        container.mux(stream.encode())
    for backend in ("auto", "pyav"):
        for short_side in (0, 24):
            with open_video(tmp_path / "a.mkv", backend, short_side=short_side) as reader:  # type: ignore[arg-type]
                assert (reader.read([0]).int() - 117).abs().max() <= 2
    with pytest.raises(DecodeError, match="a.mkv: decord does not support this type of video; use auto or pyav"):
        open_video(tmp_path / "a.mkv", "decord")


def palette() -> Image.Image:
    picture = Image.new("P", (24, 16), 1)
    picture.putpalette([0, 0, 0, 117, 200, 30])
    return picture


@pytest.mark.parametrize(
    ("picture", "kind", "expected"),
    [
        (Image.new("1", (24, 16), 1), "PNG", (255, 255, 255)),
        (Image.new("L", (24, 16), 117), "PNG", (117, 117, 117)),
        (palette(), "PNG", (117, 200, 30)),
        (palette(), "GIF", (117, 200, 30)),
        (Image.new("LA", (24, 16), (117, 0)), "PNG", (117, 117, 117)),
        (Image.new("RGBA", (24, 16), (117, 200, 30, 0)), "PNG", (117, 200, 30)),
        (Image.new("CMYK", (24, 16), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (Image.new("RGB", (24, 16), (117, 200, 30)), "BMP", (117, 200, 30)),
        (Image.new("RGB", (24, 16), (117, 200, 30)), "TIFF", (117, 200, 30)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_pixels_of_8_bits_are_their_colours(
    tmp_path: Path, picture: Image.Image, kind: str, expected: tuple[int, ...]
) -> None:
    image = frame(tmp_path, encoded(picture, kind), f"1.{kind.lower()}")
    assert image.shape == (16, 24, 3) and image[5, 5].tolist() == list(expected)


@pytest.mark.parametrize(
    ("pixels", "kind", "named"),
    [
        (np.full((16, 24), 0.5, np.float32), "TIFF", "TIFF with pixels F"),
        (np.full((16, 24), 100_000, np.int32), "TIFF", "TIFF with pixels I"),
        (np.full((16, 24), DEEP, np.uint16), "TIFF", "TIFF with pixels I;16"),
    ],
)
def test_pixels_without_a_defined_white_level_are_refused(
    tmp_path: Path, pixels: np.ndarray[Any, Any], kind: str, named: str
) -> None:
    content = encoded(Image.fromarray(pixels), kind)
    for name in ("1.tif", "1.png"):  # Pillow goes by the content
        with pytest.raises(DecodeError, match=f"{name}: is {named}, expected 8 bits a colour, or 16 bits in png"):
            frame(tmp_path, content, name)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF"])
def test_files_with_several_pictures_are_refused(tmp_path: Path, kind: str) -> None:
    pictures = [Image.new("RGB", (24, 16), (level,) * 3) for level in (0, 100, 200)]
    content = encoded(pictures[0], kind, save_all=True, append_images=pictures[1:])
    with pytest.raises(DecodeError, match="1.png: contains 3 pictures, expected one frame of a video"):
        frame(tmp_path, content)


@pytest.mark.parametrize("short_side", [0, 8])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pictures_are_upright_as_their_exif_data_says(
    tmp_path: Path, kind: str, orientation: int, short_side: int
) -> None:
    from PIL import ImageOps

    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :24], pixels[16:, :24], pixels[:16, 24:] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(pixels), kind, exif=exif)
    image = frame(tmp_path, content, f"1.{kind.lower()}", short_side).int()
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    if not short_side:
        assert torch.equal(image, torch.from_numpy(expected.copy()).int())
    height, width = image.shape[:2]
    assert (height, width) == tuple(size // (4 if short_side else 1) for size in expected.shape[:2])
    for row in (1, -2):
        for column in (1, -2):
            assert (image[row, column] - torch.from_numpy(expected[row, column].copy())).abs().max() < 30


def test_damaged_exif_data_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.new("RGB", (24, 16), (117,) * 3), "JPEG", exif=exif)
    start = content.index(b"Exif\0\0") + 6
    image = frame(tmp_path, content[:start] + b"\xff" * 12 + content[start + 12 :], "1.jpg")
    assert image.shape == (16, 24, 3)


def test_frames_of_different_orientations_differ_in_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGB", (24, 16))
    (tmp_path / "1.jpg").write_bytes(encoded(picture, "JPEG"))
    (tmp_path / "2.jpg").write_bytes(encoded(picture, "JPEG", exif=exif))
    with open_video(tmp_path) as reader, pytest.raises(DecodeError, match="2.jpg: is 16x24, expected 24x16"):
        reader.read([0, 1])


def test_a_check_reports_frames_that_training_refuses_as_damaged(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(encoded(Image.fromarray(np.full((16, 24), 0.5, np.float32)), "TIFF"))
    probe = Prober()(ProbeTask(str(tmp_path)))
    assert probe is not None and "expected 8 bits a colour" in probe.detail


@pytest.mark.skipif(not (SHARED / "cases/frames_16bit").is_dir(), reason="the reported frames are not at hand")
def test_reported_frames_keep_their_levels() -> None:
    with open_video(SHARED / "cases/frames_16bit/v0") as reader:
        assert reader.read(range(5))[:, 0, 0, 0].tolist() == [117, 121, 125, 128, 132]


def test_a_gif_is_a_video_whose_pauses_differ(make: Callable[..., Path]) -> None:
    path = make("a.gif", codec="gif", pixels="rgb8", times=[*range(20), *range(20, 120, 5)])
    for backend in ("auto", "pyav"):
        with open_video(path, backend) as reader:  # type: ignore[arg-type]
            assert reader.num_frames == 40 and reader.read([39, 0]).shape == (2, 48, 64, 3)
            assert reader.on_screen([0, 10, 20, 30]) != [0, 10, 20, 30]
