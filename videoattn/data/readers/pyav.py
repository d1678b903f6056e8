"""Frames of a video file through PyAV: sequentially from the start, or from the keyframe before each of them."""

import bisect
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from videoattn.data.readers.base import Image, VideoReader
from videoattn.data.readers.decode_error import DecodeError, LibraryCalls
from videoattn.data.readers.frame_times import known_time
from videoattn.data.readers.packet_scan import PacketScan
from videoattn.data.readers.stream import VideoSource, open_stream, read_packets

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_NEAR = 4  # frames: reading the packets of so many takes no longer than a seek


class PyavReader(VideoReader):
    """A reader that seeks, unless `sequential_reason` is set; frames that a seek misses are decoded sequentially.

    `stream` is the opened file as the scan left it. It stays open for seeking, and is closed at once for sequential
    decoding, which begins with a newly opened file.
    """

    backend = "pyav"

    def __init__(
        self,
        source: VideoSource,
        scan: PacketScan,
        stream: "VideoStream",
        *,
        sequential_reason: str,
        short_side: int = 0,
    ) -> None:
        super().__init__(source.name, scan.num_frames, scan.fps, scan.num_present, short_side=short_side)
        self._source = source
        self.scan: PacketScan = scan
        self.sequential_reason = sequential_reason
        self._stream: VideoStream | None = stream
        self._awaited = 0  # the frame that is being decoded
        self._calls = LibraryCalls(self._failure)
        if sequential_reason or source.is_shared:
            self.close()

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        if self._stream is not None:
            self._stream.container.close()
        self._stream = None

    def decode_all(self) -> None:
        if self.scan.num_present < self.num_frames:
            raise self._cut_short(self.scan.num_present)
        self._start_sequential("all frames are decoded")
        for _ in self._decode(list(range(self.num_frames))):
            pass

    def _images(self, wanted: list[int]) -> Iterator[tuple[int, Image]]:
        try:
            yield from self._decode(wanted)
            return
        except DecodeError:
            if self.sequential:
                raise
        self._start_sequential("a seek did not reach every frame")  # the definition decides about those
        yield from self._decode(wanted)

    def _start_sequential(self, reason: str) -> None:
        self.close()
        self.sequential_reason = self.sequential_reason or reason

    def _decode(self, wanted: list[int]) -> Iterator[tuple[int, Image]]:
        """Yield the wanted frames with their numbers, in order."""
        read = self._read_sequentially if self.sequential else self._seek
        stream = self._stream or open_stream(self._source)
        with nullcontext() if self._stream else closing(stream.container), closing(read(stream, wanted)) as frames:
            for awaited in wanted:
                self._awaited = awaited
                number, frame = next(frames, (-1, None))
                if frame is None or number != awaited:
                    raise DecodeError(f"{self._failure()}: it yields no picture")
                yield number, self._image(number, frame)

    def _failure(self) -> str:
        return f"{self.path}: frame {self._awaited} of {self.num_frames} cannot be decoded"

    def _read_sequentially(self, stream: "VideoStream", wanted: list[int]) -> Generator[tuple[int, "VideoFrame"]]:
        chosen = set(wanted)
        for number, frame in self._numbered(stream):
            if number in chosen:
                yield number, frame
            if number >= wanted[-1]:
                return

    def _numbered(self, stream: "VideoStream") -> Iterator[tuple[int, "VideoFrame"]]:
        """Yield all frames from the start, with their numbers."""
        count = 0
        with closing(read_packets(stream, self._calls)) as packets:
            for packet in packets:
                if packet.size and (packet.is_corrupt or known_time(packet.pts) < self.scan.start):
                    continue
                with self._calls:
                    frames = packet.decode()
                for frame in frames:
                    yield count if self.scan.times is None else self._number(frame), frame
                    count += 1

    def _seek(self, stream: "VideoStream", wanted: list[int]) -> Generator[tuple[int, "VideoFrame"]]:
        keyframes = self.scan.keyframes
        runs: list[tuple[int, list[int]]] = []  # a keyframe, and the wanted frames that are reached from there
        for number in wanted:
            keyframe = keyframes[self._group(number)]
            if runs and keyframe - runs[-1][1][-1] <= _NEAR:
                runs[-1][1].append(number)
            else:
                runs.append((keyframe, [number]))
        for keyframe, numbers in runs:
            yield from self._read_run(stream, keyframe, numbers)

    def _read_run(self, stream: "VideoStream", keyframe: int, wanted: list[int]) -> Iterator[tuple[int, "VideoFrame"]]:
        """Yield wanted frames from `keyframe` on.

        Of H.264, pictures that are neither wanted nor referenced by others (a third to a half of the usual ones) are
        skipped. Other codecs carry more than pictures from frame to frame. After the last wanted packet the decoder is
        flushed, so that none of the following packets has to be decoded.
        """
        times = self.scan.times
        assert times is not None
        context, leaves_out, chosen = stream.codec_context, self.scan.codec == "h264", set(wanted)
        unsent: dict[int, set[int]] = {}  # wanted frames by group of pictures
        for number in wanted:
            unsent.setdefault(self._group(number), set()).add(number)
        container: Any = stream.container
        with self._calls:
            container.seek(times[keyframe], stream=stream)
        with closing(read_packets(stream, self._calls)) as packets:
            for packet in packets:
                if packet.size:
                    number = self._number(packet)
                    if (packet.pos or 0) != self.scan.places[number]:
                        raise DecodeError(f"{self.path}: a seek leads to packets with the times of other packets")
                    left = unsent.get(self._group(number), set())
                    if not left:
                        continue  # the next keyframe looks at nothing before it
                    if leaves_out:
                        context.skip_frame = "DEFAULT" if number in left else "NONREF"
                    left.discard(number)
                is_last = not any(unsent.values())
                with self._calls:
                    frames = packet.decode()
                    if is_last and packet.size:
                        frames += context.decode(None)
                for number, frame in ((self._number(frame), frame) for frame in frames):
                    if number in chosen:
                        yield number, frame
                if is_last:
                    return

    def _group(self, number: int) -> int:
        return bisect.bisect_right(self.scan.keyframes, number) - 1

    def _number(self, timed: "VideoFrame | Packet[VideoStream]") -> int:
        """Return the number of a decoded frame, or of a packet's, by its time."""
        times, time = self.scan.times, known_time(timed.pts)
        assert times is not None
        number = bisect.bisect_left(times, time)
        if number == len(times) or times[number] != time:
            raise DecodeError(f"{self.path}: decoding yields a frame at time {time}, which no packet has")
        return number

    def _image(self, number: int, frame: "VideoFrame") -> Image:
        from av.video.reformatter import Interpolation

        if frame.is_corrupt:
            raise DecodeError(f"{self.path}: frame {number} of {self.num_frames} is damaged")
        with self._calls:
            rotation = frame.rotation
        if rotation % 90:
            raise DecodeError(
                f"{self.path}: has a rotation of {rotation} degrees, expected a multiple of 90", "odd_rotation"
            )
        turn = -1 if rotation % 180 else 1  # a quarter turn swaps height and width
        stored = (frame.height, frame.width)
        height, width = self._scaled_size(*stored[::turn])[::turn]
        options: dict[str, Any] = {}
        if (height, width) != stored:
            # colours at full width, else those of an even width would be blurred
            filters = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT
            options = {"width": width, "height": height, "interpolation": filters}
        with self._calls:
            # one thread: others would be started and waited for anew at every frame
            image = frame.to_ndarray(format="rgb24", threads=1, **options)
        return np.rot90(image, rotation // 90)
