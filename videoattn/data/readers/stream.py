"""A video file opened with PyAV, and its packets; whatever the library raises here becomes DecodeError."""

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
    """What a video is read from, a path, bytes or a binary file that can seek, with a name for messages."""

    name: str
    content: str | bytes | BinaryIO

    @property
    def is_shared(self) -> bool:
        """Whether others may move the place where it is read: it is a file that the caller opened."""
        return not isinstance(self.content, str | bytes)

    def begin(self, *, in_utf8: bool = False) -> str | BinaryIO:
        """What decoders open: the path, or a file that stands at its beginning.

        With `in_utf8` for those that do not open paths in other encodings.
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
    """A context in which an error means that `name` cannot be opened as a video."""
    return LibraryCalls(f"{name}: cannot be opened as a video", "not_a_video")


def open_stream(source: VideoSource) -> "VideoStream":
    """Open a video with PyAV: the stream that players show, set to decode in one thread and to fail on damage.

    Who asked for it closes its container. Raises DecodeError where the source is no video, has no video stream, or one
    in a codec for which there is no decoder.
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
    """The packets of a stream from where its container stands, each read within `calls`.

    PyAV loses memory where they are not read to the end: whoever stops earlier closes the iterator.
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
