"""Frames of a video file through decord, checked against the numbers of a packet scan."""

import shutil
import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np

from videoattn.data.readers.base import Image, VideoReader
from videoattn.data.readers.decode_error import DecodeError, LibraryCalls
from videoattn.data.readers.packet_scan import PacketScan
from videoattn.data.readers.stream import VideoSource

_ANY_RECOVERED_FRAME = 1e-9  # decord raises above this share of frames that it replaced by others


class DecordReader(VideoReader):
    """A reader that seeks if the scan says that it is safe, and decodes sequentially otherwise."""

    backend = "decord"

    def __init__(self, source: VideoSource, scan: PacketScan, *, short_side: int = 0) -> None:
        super().__init__(source.name, scan.num_frames, scan.fps, scan.num_present, short_side=short_side)
        self._source = source
        self.scan: PacketScan = scan
        if not scan.decord_supported:
            raise DecodeError(
                f"{self.path}: decord does not support this type of video; use auto or pyav", "wrong_backend"
            )
        self._reader = self._open()
        self._position = 0
        self.sequential_reason = scan.sequential_reason or "decord does not seek reliably in avi" * scan.only_pyav_seeks
        if len(self._reader) != scan.num_frames:
            self.sequential_reason = f"decord sees {len(self._reader)} frames, expected {scan.num_frames}"

    def close(self) -> None:
        """Free decord's decoder."""
        self._reader = None

    def _open(self) -> Any:
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        options = {"ctx": decord.cpu(0), "num_threads": 1, "fault_tol": _ANY_RECOVERED_FRAME}
        with LibraryCalls(f"{self.path}: decord cannot open it", "wrong_backend"):
            content = self._source.begin(in_utf8=True)
            if isinstance(content, str):
                return decord.VideoReader(content, **options)
            with tempfile.NamedTemporaryFile() as file:  # decord crashes on damaged files in memory
                shutil.copyfileobj(content, file)
                file.flush()
                return decord.VideoReader(file.name, **options)

    def _images(self, wanted: list[int]) -> Iterable[tuple[int, Image]]:
        if self._reader is None:
            raise DecodeError(f"{self.path}: is closed")
        calls = LibraryCalls(f"{self.path}: decord cannot read frames {wanted}")
        return (self._read_sequentially(wanted, calls) if self.sequential else self._seek(wanted, calls)).items()

    def _seek(self, wanted: list[int], calls: LibraryCalls) -> dict[int, Image]:
        with calls:
            images = _as_array(self._reader.get_batch(wanted))
        if len(images) != len(wanted):
            raise DecodeError(f"{self.path}: decord gives {len(images)} frames for {wanted}")
        return {number: self._scaled(image) for number, image in zip(wanted, images, strict=True)}

    def _read_sequentially(self, wanted: list[int], calls: LibraryCalls) -> dict[int, Image]:
        if self._position:
            self._reader, self._position = self._open(), 0
        images: dict[int, Image] = {}
        for number in range(wanted[-1] + 1):  # not skip_frames, which skips too few where pictures are reordered
            with calls:
                frame = self._reader.next()
            self._position = number + 1
            if number in wanted:
                with calls:
                    image = _as_array(frame)
                images[number] = self._scaled(image)
        return images


def _as_array(frames: Any) -> Image:
    """Convert frames of decord's own type, or of torch's if `decord.bridge` has been set in this process."""
    return np.asarray(frames.asnumpy() if hasattr(frames, "asnumpy") else frames)
