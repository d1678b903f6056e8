"""Videos for benchmarks of decoding, rendered here: ten seconds of 340x256 in the formats of the usual data sets."""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from videoattn.data.readers.open_video import open_video
from videoattn.files import atomic_write

WIDTH, HEIGHT, RATE, SECONDS = 340, 256, 30, 10
KINDS: Mapping[str, dict[str, Any]] = {
    "h264_250.mp4": {"codec": "libx264", "crf": "23", "g": "250"},  # as FFmpeg encodes without further options
    "h264_16.mp4": {"codec": "libx264", "crf": "23", "g": "16", "bf": "0"},  # as tools/prepare_data.py encodes
    "vp9.webm": {"codec": "libvpx-vp9", "crf": "33", "b": "0", "deadline": "realtime", "cpu-used": "6", "g": "128"},
    "mpeg4.avi": {"codec": "mpeg4", "q": "5", "g": "12"},
}


def render(
    folder: Path, kinds: Mapping[str, dict[str, Any]] = KINDS, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> dict[str, Path]:
    """Render the kinds that `folder` lacks and this FFmpeg can encode; returns what is there, by kind."""
    import av

    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    for name, options in kinds.items():
        path = folder / name
        try:
            av.codec.Codec(options["codec"], "w")
        except ValueError:
            continue
        if not path.exists():
            with atomic_write(path) as temporary:
                encode(temporary, name, size, options)
        found[name] = path
    return found


def encode(path: Path, name: str, size: tuple[int, int], options: dict[str, Any]) -> None:
    """One video at `path`, in the container that the ending of `name` means."""
    import av

    formats = {".mp4": "mp4", ".webm": "webm", ".avi": "avi", ".mkv": "matroska"}
    settings = {key: value for key, value in options.items() if key != "codec"}
    with av.open(str(path), "w", format=formats[Path(name).suffix]) as container:
        stream: Any = container.add_stream(options["codec"], rate=RATE, options=settings | {"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, RATE)
        for picture in tqdm(pictures(size), f"rendering {name}", RATE * SECONDS, leave=False, disable=None):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def pictures(size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """A camera that pans over a textured scene in which things move, with the noise of a sensor."""
    width, height = size
    rng = np.random.default_rng(0)
    scene = sum(smooth(rng, 2 * height, 3 * width, cell) / weight for cell, weight in ((64, 1), (16, 2), (4, 4)))
    scene = (scene - scene.min()) / (scene.max() - scene.min()) * 255
    things = rng.uniform((0, 0, -3, -3), (height, width, 3, 3), (6, 4))
    colors, side = rng.uniform(0, 255, (6, 3)), height // 5
    for number in range(RATE * SECONDS):
        y = round(height / 4 * (1 + np.sin(number / 40)))
        x = round(width * (1 + np.sin(number / 60)) / 2)
        picture = scene[y : y + height, x : x + width].copy()
        for (top, left, down, right), color in zip(things, colors, strict=True):
            row, column = int(top + number * down) % (height - side), int(left + number * right) % (width - side)
            part = picture[row : row + side, column : column + side]
            part[:] = 0.3 * part + 0.7 * color
        picture += rng.normal(0, 3, picture.shape[:2])[..., None]
        yield picture.clip(0, 255).astype(np.uint8)


def smooth(rng: np.random.Generator, height: int, width: int, cell: int) -> NDArray[np.float64]:
    """Random colours every `cell` pixels with everything between them interpolated."""
    corners = rng.uniform(0, 1, (height // cell + 2, width // cell + 2, 3))
    rows, columns = np.arange(height) / cell, np.arange(width) / cell
    y, x = rows.astype(int), columns.astype(int)
    fy, fx = (rows - y)[:, None, None], (columns - x)[None, :, None]
    above = corners[y][:, x] * (1 - fx) + corners[y][:, x + 1] * fx
    below = corners[y + 1][:, x] * (1 - fx) + corners[y + 1][:, x + 1] * fx
    return np.asarray(above * (1 - fy) + below * fy)


def extract(video: Path, folder: Path) -> Path:
    """A folder with the frames of a video as jpg, written unless it is there."""
    from PIL import Image

    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.part")
        unfinished.mkdir(exist_ok=True)
        with open_video(video, "pyav") as reader:
            for number, frame in enumerate(reader.read(range(reader.num_frames))):
                Image.fromarray(frame.numpy()).save(unfinished / f"{number:06d}.jpg", quality=95)
        unfinished.rename(folder)
    return folder
