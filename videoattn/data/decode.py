"""Frames of a video file by number, each of them the right one or an error; extracted frames likewise.

Which frame is number i is defined by decoding the file from its start, in order. A reader may seek instead, only in
files whose packets (read without decoding when the file is opened, in milliseconds) show where a seek lands:

- mp4, mov, mkv or webm with H.264, VP8, VP9, MPEG-4 or Motion JPEG. Other containers (avi, ts) do not keep the times of
  frames well enough; HEVC and AV1 are read in order to be safe;
- every packet has a time of its own, and none is damaged or hidden by an edit list;
- what is stored before a keyframe is shown before it (else the group of pictures is open), keyframes of H.264 are real
  ones (IDR), and none is stored as early as the one before it is shown.

All other files are read in order. Four ways of reading:

- "auto": PyAV, seeking in the files above; each frame is known by its time, and what a seek does not reach is read in
  order. It is the default rather than decord because of damaged data (below), and because it took less processor time
  in 17 of 18 trials (six clips, three samplings, opening included in both; 13 % less at the median).
- "pyav": PyAV in order from the start, the definition.
- "decord": decord, seeking in the files above, in order elsewhere. It does not notice damaged data: it returns what the
  decoder makes up for missing parts, or frames of other times, and not the same in every run. Refused are files that
  it converts to other colours (more than 8 bits, interlaced, 4:2:0 of odd height) or does not read right in order
  either (no keyframe at the start; containers besides mp4, mov, mkv, webm, avi).
- "torchcodec": torchcodec, not installed with the project, in the files above that decord would not refuse; PyAV in all
  others, as "auto" does. It does not notice all damaged data either.

All agree on the number of frames. It counts whole packets that are shown: not those before the first keyframe,
nor one cut off by the end of the file. An mp4 that ends early keeps the number of frames that its index lists; asking
for one that is not there raises DecodeError. So does, through PyAV, asking for one that rests on damaged data.
"""

import bisect
import importlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, get_args

import numpy as np

from videoattn.data.frame_files import FrameReader, is_frame_range
from videoattn.data.packet_scan import (
    DecodeError,
    PacketScan,
    VideoSource,
    best_video_stream,
    packet_time,
    reason_of,
    scan_packets,
)
from videoattn.data.video_reader import Image, VideoReader

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["Backend", "DecodeError", "VideoReader", "open_video"]

Backend = Literal["auto", "decord", "pyav", "torchcodec"]

_ANY_RECOVERED_FRAME = 1e-9  # decord raises above this share of frames that it replaced by others


def open_video(
    video: str | os.PathLike[str] | bytes | BinaryIO, backend: Backend = "auto", *, frames_fps: float = 30.0
) -> VideoReader:
    """Open a video, in the process that reads it: readers are neither pickled nor shared by threads.

    `video` is a file, its bytes, an open binary file that can seek (which stays open), a folder of extracted frames, or
    a range of them, `folder/img_{00001..00120}.jpg`. Extracted frames are taken to have `frames_fps`, whatever the
    backend. Raises DecodeError where the file is missing, is no video, or has no video stream or no frame.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"decoding backend {backend!r}, expected auto, decord, pyav or torchcodec")
    if isinstance(video, bytes):
        source = VideoSource(f"a video of {len(video)} bytes", video)
    elif not isinstance(video, str | os.PathLike):
        source = VideoSource(str(getattr(video, "name", f"a {type(video).__name__}")), video)
    else:
        file = os.path.abspath(video)
        if os.path.isdir(file):
            return FrameReader(file, frames_fps)
        if not os.path.exists(file):
            if is_frame_range(file):
                return FrameReader(file, frames_fps)
            raise DecodeError(f"{file}: does not exist", "missing")
        source = VideoSource(file, file)
    scan = scan_packets(source)
    if backend == "decord":
        return _DecordReader(source, scan)
    if backend == "torchcodec" and scan.is_seekable and scan.suits_decord:
        return _TorchcodecReader(source, scan)
    return _PyavReader(source, scan, seek=backend != "pyav" and scan.is_seekable)


def check_backend(backend: Backend) -> None:
    """Raise ValueError where the library that a backend needs cannot be imported."""
    if backend in ("auto", "pyav"):
        return
    try:
        importlib.import_module("torchcodec.decoders" if backend == "torchcodec" else "decord")
    except (ImportError, RuntimeError, OSError) as error:
        hint = ", which also needs the shared libraries of FFmpeg" if backend == "torchcodec" else ""
        raise ValueError(
            f"DATA.DECODING_BACKEND {backend} expects the library {backend}{hint}: {reason_of(error)}"
        ) from error


class _PyavReader(VideoReader):
    backend = "pyav"

    def __init__(self, source: VideoSource, scan: PacketScan, *, seek: bool) -> None:
        super().__init__(source.name, scan.num_frames, scan.fps, scan.num_present)
        self._source = source
        self.scan: PacketScan = scan
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
            with av.open(self._source.begin(), "r") as container:
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

    def __init__(self, source: VideoSource, scan: PacketScan) -> None:
        super().__init__(source.name, scan.num_frames, scan.fps, scan.num_present)
        self._source, self.scan = source, scan
        if not scan.suits_decord:
            raise DecodeError(
                f"{self.path}: decord does not read this kind of video right; use auto or pyav", "wrong_backend"
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
            return decord.VideoReader(
                self._source.begin(), ctx=decord.cpu(0), num_threads=1, fault_tol=_ANY_RECOVERED_FRAME
            )
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


class _TorchcodecReader(VideoReader):
    backend = "torchcodec"
    in_order = False

    def __init__(self, source: VideoSource, scan: PacketScan) -> None:
        from torchcodec.decoders import VideoDecoder

        super().__init__(source.name, scan.num_frames, scan.fps, scan.num_present)
        self.scan = scan
        try:
            self._decoder: Any = VideoDecoder(source.begin(), dimension_order="NHWC", num_ffmpeg_threads=1)
            num_frames = len(self._decoder)
        except (RuntimeError, ValueError) as error:
            raise DecodeError(f"{self.path}: torchcodec cannot open it: {reason_of(error)}") from error
        if num_frames != scan.num_frames:
            raise DecodeError(f"{self.path}: torchcodec sees {num_frames} frames, expected {scan.num_frames}")

    def close(self) -> None:
        """Free torchcodec's decoder."""
        self._decoder = None

    def _images(self, wanted: list[int]) -> dict[int, Image]:
        if self._decoder is None:
            raise DecodeError(f"{self.path}: is closed")
        try:
            frames = self._decoder.get_frames_at(wanted).data
        except (RuntimeError, IndexError) as error:
            raise DecodeError(f"{self.path}: torchcodec cannot read frames {wanted}: {reason_of(error)}") from error
        return dict(zip(wanted, frames.numpy(), strict=True))
