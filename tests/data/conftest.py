"""Small real videos for the tests of this folder."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HEIGHT, WIDTH, NUM_FRAMES, FPS = 48, 64, 20, 30


def write_video(path: Path, seed: int) -> None:
    """A textured picture that drifts by a pixel per frame, as MPEG-4."""
    import av

    picture = np.random.default_rng(seed).integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8)
    picture = picture.repeat(4, axis=0).repeat(4, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for shift in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, shift, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="session")
def rendered_videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    paths = [folder / f"{number}.mp4" for number in range(4)]
    for number, path in enumerate(paths):
        write_video(path, seed=number)
    return paths


@pytest.fixture
def video_folder(rendered_videos: list[Path], tmp_path: Path) -> Callable[..., Path]:
    """Build a folder of `num_videos` files, those in `bad` damaged, with csv files that list them."""

    def build(num_videos: int, bad: tuple[int, ...] = ()) -> Path:
        folder = tmp_path / f"{num_videos}_{len(bad)}"
        folder.mkdir(exist_ok=True)
        for number in range(num_videos):
            source = rendered_videos[number % len(rendered_videos)].read_bytes()
            (folder / f"clip{number}.mp4").write_bytes(source[:100] if number in bad else source)
        rows = "".join(f"clip{number}.mp4 {number % 3}\n" for number in range(num_videos))
        for split in ("train", "val", "test"):
            (folder / f"{split}.csv").write_text(rows)
        return folder

    return build


def pictures(num_frames: int, height: int, width: int) -> Iterator[np.ndarray[Any, Any]]:
    """A drifting texture with the frame's number in blocks of black and white."""
    texture = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    texture = texture.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    for number in range(num_frames):
        picture = np.roll(texture, 2 * number, axis=1)
        for bit in range(6):
            picture[:8, 8 * bit : 8 * bit + 8] = 255 * (number >> bit & 1)
        yield picture


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Encode a small video; `times` of frames are in units of 1/25 s."""

    def encode(
        name: str,
        codec: str = "libx264",
        x264: str = "",
        num_frames: int = 40,
        size: tuple[int, int] = (48, 64),
        pixels: str = "yuv420p",
        times: list[int] | None = None,
        group: int = 12,
        b_frames: int = 0,
        rate: Fraction | int = 25,
        **container_options: str,
    ) -> Path:
        import av

        path = tmp_path / name
        with av.open(str(path), "w", options=container_options) as container:
            options = {"x264-params": f"log-level=none:threads=1:{x264}"} if codec == "libx264" else {}
            stream: Any = container.add_stream(codec, rate=rate, options=options)
            stream.height, stream.width = size
            stream.pix_fmt = pixels
            if codec != "libx264":
                stream.codec_context.gop_size, stream.codec_context.max_b_frames = group, b_frames
            for number, picture in enumerate(pictures(num_frames, *size)):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                if times:
                    frame.pts, frame.time_base = times[number], Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return encode


@pytest.fixture
def csv(tmp_path: Path) -> Callable[..., Path]:
    """Write a list."""

    def write(content: str | bytes, name: str = "train.csv") -> Path:
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return write
