"""Frames of a video file by number, each of them the right one or an error; extracted frames likewise.

Frame number i is defined by sequential decoding from the start of the file. A reader may seek instead, but only in
files whose packets (read without decoding when the file is opened, in milliseconds) show where a seek lands:

- mp4, mov, mkv or webm with H.264, VP8, VP9, MPEG-4 or Motion JPEG; avi with MPEG-4 whose pictures are stored in the
  order in which they are shown. Otherwise avi and ts do not keep the times of frames well enough. HEVC and AV1 are
  decoded sequentially to be safe;
- every packet has a time of its own, and none is damaged or hidden by an edit list;
- pictures stored before a keyframe are shown before it (else the group of pictures is open), keyframes of H.264 are
  real ones (IDR), and none is stored as early as the one before it is shown.

All other files are decoded sequentially. The backends:

- "auto": PyAV, seeking in the files above. Each packet after a seek has to be one that was there, at that place, when
  the file was opened; each frame is identified by its time; and frames that a seek does not reach are decoded
  sequentially. Of H.264, pictures are skipped that are neither wanted nor referenced by others. It is the default
  rather than decord because of damaged data (below), and because it needs less processor time
  (`benchmarks/data_readers.py`).
- "pyav": PyAV, always sequential; this is the definition.
- "decord": decord, seeking in the files above except avi, sequential in others. It does not notice damaged data: it
  returns what the decoder makes up for missing parts, or frames of other times, and results differ from run to run. It
  refuses files that it would convert to other colours (more than 8 bits, interlaced, 4:2:0 of odd height) or does not
  decode right even sequentially (no keyframe at the start; containers besides mp4, mov, mkv, webm, avi).
- "torchcodec": torchcodec, not installed with the project, in the files above, except avi, that decord would not
  refuse; PyAV in all others, as "auto" does. It does not notice all damaged data either.

All agree on the number of frames. It counts whole packets that are shown: neither those before the first keyframe nor
one cut off by the end of the file. An mp4 that ends early keeps the number of frames that its index lists; reading one
that is missing raises DecodeError. So does, through PyAV, reading one that depends on damaged data.
"""

import importlib
import os
from dataclasses import dataclass
from typing import BinaryIO, Literal, get_args

from videoattn.data.readers.base import VideoReader
from videoattn.data.readers.decode_error import DecodeError, reason_of
from videoattn.data.readers.decord import DecordReader
from videoattn.data.readers.frame_files import FrameReader, is_frame_range
from videoattn.data.readers.packed import is_url, parse_packed, read_packed
from videoattn.data.readers.packet_scan import scan_packets
from videoattn.data.readers.pyav import PyavReader
from videoattn.data.readers.stream import VideoSource, open_stream
from videoattn.data.readers.torchcodec import TorchcodecReader

__all__ = ["Backend", "DecodeError", "DecodeOptions", "VideoReader", "check_backend", "open_video"]

Backend = Literal["auto", "decord", "pyav", "torchcodec"]


@dataclass(frozen=True)
class DecodeOptions:
    """Options for opening and decoding videos.

    `frames_fps` is the frame rate of extracted frames, with any backend. Frames whose short side is longer than
    `short_side` are scaled down to it while they are decoded; 0 keeps all sizes. Raises ValueError on an unknown
    backend or a negative size.
    """

    backend: Backend = "auto"
    frames_fps: float = 30.0
    short_side: int = 0

    def __post_init__(self) -> None:
        if self.backend not in get_args(Backend):
            raise ValueError(f"decoding backend {self.backend!r}, expected auto, decord, pyav or torchcodec")
        if self.short_side < 0:
            raise ValueError(f"short_side {self.short_side}, expected 0 or a number of pixels")

    def open(self, video: str | os.PathLike[str] | bytes | BinaryIO) -> VideoReader:
        """Open a video, in the process that reads it: readers are neither pickled nor shared by threads.

        `video` is a file, its bytes, an open binary file that can seek (which stays open), a member of a tar by its
        place (`packed.py`), a folder of extracted frames, or a range of them, `folder/img_{00001..00120}.jpg`. Raises
        DecodeError if the file is missing, is no video, or has no video stream or no frame.
        """
        if isinstance(video, bytes):
            source = VideoSource(f"a video of {len(video)} bytes", video)
        elif not isinstance(video, str | os.PathLike):
            source = VideoSource(str(getattr(video, "name", f"a {type(video).__name__}")), video)
        elif (packed := parse_packed(os.fspath(video))) is not None:
            source = VideoSource(os.fspath(video), read_packed(packed))
        elif is_url(os.fspath(video)):
            message = f"{video}: is a URL, expected a member of a tar (URL.tar/MEMBER@OFFSET+SIZE)"
            raise DecodeError(message, "missing")
        else:
            file = os.path.abspath(video)
            if os.path.isdir(file):
                return FrameReader(file, self.frames_fps, short_side=self.short_side)
            if not os.path.exists(file):
                if is_frame_range(file):
                    return FrameReader(file, self.frames_fps, short_side=self.short_side)
                raise DecodeError(f"{file}: does not exist", "missing")
            if not os.path.isfile(file):  # opening a pipe would wait for somebody who writes to it
                raise DecodeError(f"{file}: is a pipe or a device, expected a file", "not_a_video")
            source = VideoSource(file, file)
        stream = open_stream(source)
        try:
            scan = scan_packets(source.name, stream)
        except DecodeError:
            stream.container.close()
            raise
        others_seek = scan.is_seekable and scan.decord_supported and not scan.only_pyav_seeks
        if self.backend in ("auto", "pyav") or (self.backend == "torchcodec" and not others_seek):
            reason = "pyav is always sequential" if self.backend == "pyav" else scan.sequential_reason
            return PyavReader(source, scan, stream, sequential_reason=reason, short_side=self.short_side)
        stream.container.close()
        reader = DecordReader if self.backend == "decord" else TorchcodecReader
        return reader(source, scan, short_side=self.short_side)


def open_video(
    video: str | os.PathLike[str] | bytes | BinaryIO,
    backend: Backend = "auto",
    *,
    frames_fps: float = 30.0,
    short_side: int = 0,
) -> VideoReader:
    """Open one video with options given as keywords; see `DecodeOptions.open`."""
    return DecodeOptions(backend, frames_fps, short_side).open(video)


def check_backend(backend: Backend) -> None:
    """Raise ValueError if the library of a backend cannot be imported."""
    if backend in ("auto", "pyav"):
        return
    try:
        importlib.import_module("torchcodec.decoders" if backend == "torchcodec" else "decord")
    except (ImportError, RuntimeError, OSError) as error:
        hint = ", which also needs the shared libraries of FFmpeg" if backend == "torchcodec" else ""
        raise ValueError(
            f"DATA.DECODING_BACKEND {backend} expects the library {backend}{hint}: {reason_of(error)}"
        ) from error
