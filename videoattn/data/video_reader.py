"""What every reader of a video offers, whatever the frames are stored in."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from videoattn.data.packet_scan import DecodeError, PacketScan

Image = np.ndarray[Any, np.dtype[np.uint8]]
_FEW_FRAMES = 64


class VideoReader(ABC):
    """An open video: `num_frames`, `fps` (the average that the file states), and frames by number.

    `path` is its name in messages. `backend` is the library that decodes; `in_order` says that it decodes from the
    start instead of seeking; `scan` is what the packets of a video file tell. Only the first `num_present` frames, by
    default all, are there.
    """

    backend: str
    in_order: bool
    scan: PacketScan | None = None

    def __init__(self, path: str, num_frames: int, fps: float, num_present: int | None = None) -> None:
        self.path = path
        self.num_frames = num_frames
        self.fps = fps
        self.num_present = num_frames if num_present is None else num_present

    def read(self, indices: Sequence[int]) -> Tensor:
        """Frames as uint8 RGB [T, H, W, 3], upright; indices in any order, repeated or not.

        Raises IndexError outside the video, and DecodeError when one of the frames cannot be decoded.
        """
        wanted = [int(index) for index in indices]
        if not wanted:
            raise ValueError(f"{self.path}: read expects at least one frame index, got none")
        for index in wanted:
            if not 0 <= index < self.num_frames:
                raise IndexError(f"frame {index} of {self.path}, which has {self.num_frames}")
            if index >= self.num_present:
                raise self._cut_short(index)
        images = self._images(sorted(set(wanted)))
        return torch.from_numpy(np.stack([images[index] for index in wanted]))

    def decode_all(self) -> None:
        """Decode every frame, keeping few at a time; raises DecodeError where `read` does for one of them."""
        if self.num_present < self.num_frames:
            raise self._cut_short(self.num_present)
        for start in range(0, self.num_frames, _FEW_FRAMES):
            self._images(list(range(start, min(start + _FEW_FRAMES, self.num_frames))))

    def _cut_short(self, index: int) -> DecodeError:
        return DecodeError(
            f"{self.path}: frame {index} of {self.num_frames} is missing: the file is cut short, "
            f"only the first {self.num_present} frames are there",
            "cut_short",
        )

    @abstractmethod
    def _images(self, wanted: list[int]) -> dict[int, Image]:
        """The wanted frames, which are in rising order."""

    @abstractmethod
    def close(self) -> None:
        """Free the decoder; more than once is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
