"""Base class of the readers of a video, whatever its frames are stored in."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from videoattn.data.readers.decode_error import DecodeError, LibraryCalls
from videoattn.data.readers.packet_scan import PacketScan

Image = np.ndarray[Any, np.dtype[np.uint8]]
_FEW_FRAMES = 64


class VideoReader(ABC):
    """An open video: `num_frames`, `fps` (the average), and frames by number.

    `path` is its name in messages and `backend` the library that decodes. `sequential_reason` is the reason for
    decoding sequentially, from the start, "" if the reader seeks. `scan` is the result of scanning the packets of a
    video file. Only the first `num_present` frames, by default all, are available. Frames whose short side is longer
    than `short_side`, unless that is 0, are scaled down to it.
    """

    backend: str
    sequential_reason = ""
    scan: PacketScan | None = None

    def __init__(
        self, path: str, num_frames: int, fps: float, num_present: int | None = None, *, short_side: int = 0
    ) -> None:
        self.path = path
        self.num_frames = num_frames
        self.fps = fps
        self.num_present = num_frames if num_present is None else num_present
        self.short_side = short_side

    @property
    def sequential(self) -> bool:
        """True if the reader decodes from the start instead of seeking."""
        return bool(self.sequential_reason)

    def on_screen(self, indices: Sequence[int]) -> list[int]:
        """Return the frames on the screen when a video of the same length and average rate shows frames `indices`.

        They differ from `indices` only if the times of frames show that the rate varies.
        """
        return list(indices) if self.scan is None else self.scan.on_screen(indices)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return frames as uint8 RGB [T, H, W, 3], upright; indices may be in any order and repeat.

        Raises ValueError without indices, IndexError outside the video, and DecodeError if one of the frames cannot be
        decoded.
        """
        wanted = [int(index) for index in indices]
        if not wanted:
            raise ValueError(f"{self.path}: read expects at least one frame index, got none")
        for index in wanted:
            if not 0 <= index < self.num_frames:
                raise IndexError(f"frame {index} of {self.path}, which has {self.num_frames}")
            if index >= self.num_present:
                raise self._cut_short(index)
        places: dict[int, list[int]] = {}
        for place, index in enumerate(wanted):
            places.setdefault(index, []).append(place)
        frames: Image | None = None
        for number, image in self._images(sorted(places)):  # each copied while it is in the processor's cache
            if frames is None:
                with LibraryCalls(f"{self.path}: {len(wanted)} frames do not fit into memory"):
                    frames = np.empty((len(wanted), *image.shape), np.uint8)
            if image.shape != frames.shape[1:]:
                height, width = image.shape[:2]
                raise DecodeError(
                    f"{self.path}: frame {number} is {width}x{height}, expected {frames.shape[2]}x{frames.shape[1]} "
                    f"as frame {min(places)}"
                )
            for place in places[number]:
                frames[place] = image
        return torch.from_numpy(frames)

    def decode_all(self) -> None:
        """Decode every frame, keeping few at a time. Raises DecodeError if `read` would for one of them."""
        if self.num_present < self.num_frames:
            raise self._cut_short(self.num_present)
        for start in range(0, self.num_frames, _FEW_FRAMES):
            for _ in self._images(list(range(start, min(start + _FEW_FRAMES, self.num_frames)))):
                pass

    def _scaled_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of an upright frame after scaling; the long side is rounded down."""
        size = self.short_side
        if not size or min(height, width) <= size:
            return height, width
        if width < height:
            return math.floor(height / width * size), size
        return size, math.floor(width / height * size)

    def _scaled(self, image: Image) -> Image:
        """Scale a decoded frame with antialiasing, as the bilinear filters of swscale and Pillow do."""
        size = self._scaled_size(*image.shape[:2])
        if size == image.shape[:2]:
            return image
        pixels = rearrange(torch.from_numpy(image), "h w c -> 1 c h w")
        scaled = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
        return np.asarray(rearrange(scaled, "1 c h w -> h w c").numpy())

    def _cut_short(self, index: int) -> DecodeError:
        return DecodeError(
            f"{self.path}: frame {index} of {self.num_frames} is missing: the file is cut short, "
            f"only the first {self.num_present} frames are there",
            "cut_short",
        )

    @abstractmethod
    def _images(self, wanted: list[int]) -> Iterable[tuple[int, Image]]:
        """Yield the wanted frames, which are in rising order, with their numbers; some may come twice."""

    @abstractmethod
    def close(self) -> None:
        """Free the decoder; more than once is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
