"""Frames of a video file through torchcodec, which is not installed with the project."""

from collections.abc import Iterator
from typing import Any

from videoattn.data.readers.base import Image, VideoReader
from videoattn.data.readers.decode_error import DecodeError, LibraryCalls
from videoattn.data.readers.packet_scan import PacketScan
from videoattn.data.readers.stream import VideoSource


class TorchcodecReader(VideoReader):
    """A reader for files in which seeking is safe. Raises DecodeError if it sees more or fewer frames than the scan."""

    backend = "torchcodec"

    def __init__(self, source: VideoSource, scan: PacketScan, *, short_side: int = 0) -> None:
        from torchcodec.decoders import VideoDecoder

        super().__init__(source.name, scan.num_frames, scan.fps, scan.num_present, short_side=short_side)
        self.scan = scan
        with LibraryCalls(f"{self.path}: torchcodec cannot open it"):
            content = source.begin(in_utf8=True)
            self._decoder: Any = VideoDecoder(content, dimension_order="NHWC", num_ffmpeg_threads=1)
            num_frames = len(self._decoder)
        if num_frames != scan.num_frames:
            raise DecodeError(f"{self.path}: torchcodec sees {num_frames} frames, expected {scan.num_frames}")

    def close(self) -> None:
        """Free torchcodec's decoder."""
        self._decoder = None

    def _images(self, wanted: list[int]) -> Iterator[tuple[int, Image]]:
        if self._decoder is None:
            raise DecodeError(f"{self.path}: is closed")
        with LibraryCalls(f"{self.path}: torchcodec cannot read frames {wanted}"):
            images = self._decoder.get_frames_at(wanted).data.numpy()
        if len(images) != len(wanted):
            raise DecodeError(f"{self.path}: torchcodec gives {len(images)} frames for {wanted}")
        yield from zip(wanted, map(self._scaled, images), strict=True)
