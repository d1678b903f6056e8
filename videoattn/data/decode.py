"""Frames of a video file by number, each of them the right one or an error.

Which frame is number i is defined by decoding the file from its start, in order. A reader may seek instead, only in
files whose packets (read without decoding when the file is opened, in milliseconds) show where a seek lands:

- mp4, mov, mkv or webm with H.264, VP8, VP9, MPEG-4 or Motion JPEG. Other containers (avi, ts) do not keep the times of
  frames well enough; HEVC and AV1 are read in order to be safe;
- every packet has a time of its own, and none is damaged or hidden by an edit list;
- what is stored before a keyframe is shown before it (else the group of pictures is open), keyframes of H.264 are real
  ones (IDR), and none is stored as early as the one before it is shown.

All other files are read in order. Three ways of reading:

- "auto": PyAV, seeking in the files above; each frame is known by its time, and what a seek does not reach is read in
  order. It is the default rather than decord because of damaged data (below), and because it took less processor time
  in 17 of 18 trials (six clips, three samplings, opening included in both; 13 % less at the median).
- "pyav": PyAV in order from the start, the definition.
- "decord": decord, seeking in the files above, in order elsewhere. It does not notice damaged data: it returns what the
  decoder makes up for missing parts, or frames of other times, and not the same in every run. Refused are files that
  it converts to other colours (more than 8 bits, interlaced, 4:2:0 of odd height) or does not read right in order
  either (no keyframe at the start; containers besides mp4, mov, mkv, webm, avi).

All three agree on the number of frames. It counts whole packets that are shown: not those before the first keyframe,
nor one cut off by the end of the file. An mp4 that ends early keeps the number of frames that its index lists; asking
for one that is not there raises DecodeError. So does, through PyAV, asking for one that rests on damaged data.
"""

import bisect
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from videoattn.data.packet_scan import DecodeError, PacketScan, best_video_stream, packet_time, reason_of, scan_packets

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["Backend", "DecodeError", "VideoReader", "open_video"]

Backend = Literal["auto", "decord", "pyav"]
Image = np.ndarray[Any, np.dtype[np.uint8]]

_FEW_FRAMES = 64
_ANY_RECOVERED_FRAME = 1e-9  # decord raises above this share of frames that it replaced by others


class VideoReader(ABC):
    """An open video: `num_frames`, `fps` (the average that the file states), and frames by number.

    `backend` is the library that decodes; `in_order` says that it decodes from the start instead of seeking; `scan` is
    what the file's packets tell.
    """

    backend: str
    in_order: bool

    def __init__(self, path: str, scan: PacketScan) -> None:
        self.path = path
        self.num_frames = scan.num_frames
        self.fps = scan.fps
        self.scan = scan

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
            if index >= self.scan.num_present:
                raise self._cut_short(index)
        images = self._images(sorted(set(wanted)))
        return torch.from_numpy(np.stack([images[index] for index in wanted]))

    def decode_all(self) -> None:
        """Decode every frame, keeping few at a time; raises DecodeError where `read` does for one of them."""
        if self.scan.num_present < self.num_frames:
            raise self._cut_short(self.scan.num_present)
        for start in range(0, self.num_frames, _FEW_FRAMES):
            self._images(list(range(start, min(start + _FEW_FRAMES, self.num_frames))))

    def _cut_short(self, index: int) -> DecodeError:
        return DecodeError(
            f"{self.path}: frame {index} of {self.num_frames} is missing: the file is cut short, "
            f"only the first {self.scan.num_present} frames are there",
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


def open_video(path: str | os.PathLike[str], backend: Backend = "auto") -> VideoReader:
    """Open a video file, in the process that reads it: readers are neither pickled nor shared by threads.

    Raises DecodeError where the file is missing, is no video, or has no video stream or no frame.
    """
    if backend not in ("auto", "decord", "pyav"):
        raise ValueError(f"decoding backend {backend!r}, expected auto, decord or pyav")
    file = os.path.abspath(path)
    if not os.path.exists(file):
        raise DecodeError(f"{file}: does not exist", "missing")
    scan = scan_packets(file)
    if backend == "decord":
        return _DecordReader(file, scan)
    return _PyavReader(file, scan, seek=backend == "auto" and scan.is_seekable)


class _PyavReader(VideoReader):
    backend = "pyav"

    def __init__(self, path: str, scan: PacketScan, *, seek: bool) -> None:
        super().__init__(path, scan)
        self.in_order = not seek

    def close(self) -> None:
        """Nothing stays open between reads."""

    def decode_all(self) -> None:
        if self.scan.num_present < self.num_frames:
            raise self._cut_short(self.scan.num_present)
        self.in_order = True  # the definition, and each frame is wanted anyway
        for _ in self._decode(list(range(self.num_frames))):
            pass

    def _images(self, wanted: list[int]) -> dict[int, Image]:
        try:
            return dict(self._decode(wanted))
        except DecodeError:
            if self.in_order:
                raise
        self.in_order = True  # the definition decides about what a seek did not reach
        return dict(self._decode(wanted))

    def _decode(self, wanted: list[int]) -> Iterator[tuple[int, Image]]:
        """The wanted frames with their numbers, in order."""
        import av

        num_found = 0
        reason = "it yields no picture"
        try:
            with av.open(self.path) as container:
                stream = best_video_stream(self.path, container)
                group, frames = -1, self._numbered(container, stream)
                for target in wanted:
                    if not self.in_order and (needed := bisect.bisect_right(self.scan.keyframes, target) - 1) != group:
                        assert self.scan.times is not None
                        container.seek(self.scan.times[self.scan.keyframes[needed]], stream=stream)
                        group, frames = needed, self._numbered(container, stream)
                    number, frame = next((found for found in frames if found[0] >= target), (-1, None))
                    if frame is None or number > target:
                        break
                    yield target, self._image(target, frame)
                    num_found += 1
        except (av.FFmpegError, OSError) as error:
            reason = reason_of(error)
        if num_found < len(wanted):
            raise DecodeError(
                f"{self.path}: frame {wanted[num_found]} of {self.num_frames} cannot be decoded: {reason}"
            )

    def _numbered(self, container: "InputContainer", stream: "VideoStream") -> Iterator[tuple[int, "VideoFrame"]]:
        """Decoded frames from where the container stands, with their numbers."""
        times, count = self.scan.times, 0
        for packet in container.demux(stream):
            if packet.size and (packet.is_corrupt or packet_time(packet.pts) < self.scan.start):
                continue
            for frame in packet.decode():
                number, count = count, count + 1
                if times is not None:
                    time = packet_time(frame.pts)
                    number = bisect.bisect_left(times, time)
                    if number == len(times) or times[number] != time:
                        raise DecodeError(f"{self.path}: a decoded frame has time {frame.time} s, which no packet has")
                yield number, frame

    def _image(self, number: int, frame: "VideoFrame") -> Image:
        if frame.is_corrupt:
            raise DecodeError(f"{self.path}: frame {number} of {self.num_frames} is damaged")
        if frame.rotation % 90:
            raise DecodeError(
                f"{self.path}: is to be rotated by {frame.rotation} degrees, expected a multiple of 90", "odd_rotation"
            )
        # one thread: others would be started and waited for anew at every frame
        return np.rot90(frame.to_ndarray(format="rgb24", threads=1), frame.rotation // 90)


class _DecordReader(VideoReader):
    backend = "decord"

    def __init__(self, path: str, scan: PacketScan) -> None:
        super().__init__(path, scan)
        if not scan.suits_decord:
            raise DecodeError(
                f"{path}: decord does not read this kind of video right; use auto or pyav", "wrong_backend"
            )
        self._reader = self._open()
        self._position = 0
        self.in_order = not scan.is_seekable or len(self._reader) != scan.num_frames

    def close(self) -> None:
        """Free decord's decoder."""
        self._reader = None

    def _open(self) -> Any:
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        try:
            return decord.VideoReader(self.path, ctx=decord.cpu(0), num_threads=1, fault_tol=_ANY_RECOVERED_FRAME)
        except (RuntimeError, decord.DECORDError, AssertionError) as error:
            raise DecodeError(f"{self.path}: decord cannot open it: {reason_of(error)}", "wrong_backend") from error

    def _images(self, wanted: list[int]) -> dict[int, Image]:
        import decord
        from decord._ffi.base import DECORDLimitReachedError

        if self._reader is None:
            raise DecodeError(f"{self.path}: is closed")
        try:
            return self._read_in_order(wanted) if self.in_order else self._seek(wanted)
        except (RuntimeError, IndexError, StopIteration, decord.DECORDError, DECORDLimitReachedError) as error:
            if isinstance(error, DecodeError):
                raise
            raise DecodeError(f"{self.path}: decord cannot read frames {wanted}: {reason_of(error)}") from error

    def _seek(self, wanted: list[int]) -> dict[int, Image]:
        return dict(zip(wanted, self._reader.get_batch(wanted).asnumpy(), strict=True))

    def _read_in_order(self, wanted: list[int]) -> dict[int, Image]:
        if self._position:
            self._reader, self._position = self._open(), 0
        images: dict[int, Image] = {}
        for number in range(wanted[-1] + 1):  # not skip_frames, which skips too few where pictures are reordered
            image = self._reader.next()
            self._position = number + 1
            if number in wanted:
                images[number] = image.asnumpy()
        return images
