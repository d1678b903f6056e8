"""Small real videos for the tests of this folder."""

from collections.abc import Callable
from pathlib import Path

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
    """Builds a folder of `num_videos` files, those in `bad` damaged, with csv files that list them."""

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
