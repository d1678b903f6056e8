"""Video files opened with PyAV, and their packets; any error that the library raises here becomes DecodeError."""

import io
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from videoattn.data.readers.decode_error import DecodeError, LibraryCalls

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream


@dataclass(frozen=True)
class VideoSource:
    """The source of a video: a path, bytes or a binary file that can seek, with a name for messages."""

    name: str
    content: str | bytes | BinaryIO

    @property
    def is_shared(self) -> bool:
        """True for a file that the caller opened, whose position others may move."""
        return not isinstance(self.content, str | bytes)

    def begin(self, *, in_utf8: bool = False) -> str | BinaryIO:
        """Return the path, or a file at its beginning, for a decoder to open.

        `in_utf8` is for decoders that do not open paths in other encodings.
        """
        if isinstance(self.content, str) and in_utf8 and not _is_utf8(self.content):
            with open(self.content, "rb") as file:
                return io.BytesIO(file.read())
        if isinstance(self.content, bytes):
            return io.BytesIO(self.content)
        if not isinstance(self.content, str):
            self.content.seek(0)
        return self.content


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def not_a_video(name: str) -> LibraryCalls:
    """Return a context in which an error means that `name` cannot be opened as a video."""
    return LibraryCalls(f"{name}: cannot be opened as a video", "not_a_video")


def open_stream(source: VideoSource) -> "VideoStream":
    """Open a video with PyAV: the stream that players show, set to decode in one thread and to fail on damage.

    The caller closes its container. Raises DecodeError if the source is no video, has no video stream, or has one in a
    codec without a decoder.
    """
    import av
    from av.stream import Disposition

    with not_a_video(source.name):
        # titles and the like are of no use here, so their encoding does not matter
        container = av.open(source.begin(), "r", metadata_errors="replace")
    try:
        with not_a_video(source.name):
            stream: Any = container.streams.best("video")
            is_cover = stream is not None and bool(stream.disposition & Disposition.attached_pic)
        if stream is None or is_cover:
            raise DecodeError(
                f"{source.name}: has no video stream" + ", only a cover picture" * is_cover, "no_video_stream"
            )
        if stream.codec_context is None:
            raise DecodeError(
                f"{source.name}: cannot be opened as a video: there is no decoder for its codec", "not_a_video"
            )
        with not_a_video(source.name):
            stream.codec_context.thread_count = 1  # workers are processes already
            stream.codec_context.options = {"err_detect": "explode"}  # an error where a picture would be made up
    except DecodeError:
        container.close()
        raise
    return stream


def read_packets(stream: "VideoStream", calls: LibraryCalls) -> Generator["Packet[VideoStream]"]:
    """Yield the packets of a stream from the position of its container, each read within `calls`.

    PyAV leaks memory unless they are read to the end: a caller that stops earlier has to close the iterator.
    """
    container: Any = stream.container
    with calls:
        packets = container.demux(stream)
    with closing(packets):
        while True:
            with calls:
                packet = next(packets, None)
            if packet is None:
                return
            yield packet
