"""Encoding of one video for training: small, without sound, with frequent keyframes, every frame at its time.

The result is H.264 in mp4 as `packet_scan.py` needs it for seeking: closed groups of pictures of one length. Frames are
stored in the order in which they are shown, so no frame after a wanted one is decoded; B-frames would have made three
clips 1 to 7 % smaller.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from videoattn.data.readers.decode_error import DecodeError, LibraryCalls, reason_of
from videoattn.data.readers.frame_times import known_time
from videoattn.data.readers.open_video import open_video
from videoattn.data.readers.packet_scan import PacketScan, scan_packets
from videoattn.data.readers.stream import VideoSource, open_stream, read_packets

if TYPE_CHECKING:
    from av.filter import Graph
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

ENCODER = "libx264"
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
_WORST_QUALITY = 51
_LARGEST_DENOMINATOR = 10_000
# what turns a picture by so many right angles against the clock
_TURNS = {
    0: (),
    1: (("transpose", "cclock"),),
    2: (("hflip", None), ("vflip", None)),
    3: (("transpose", "clock"),),
}


class EncodeError(RuntimeError):
    """A video that can be decoded cannot be encoded, or the encoded file is not as it should be."""

    kind = "not_encoded"


@dataclass(frozen=True)
class EncodeSettings:
    """Settings of encoded videos: frames whose short side exceeds `short_side` are scaled down to it.

    Every `keyint`-th frame is a keyframe. `crf` is x264's quality, 0 the best and 51 the worst; `preset` trades time
    for size.
    """

    short_side: int = 256
    keyint: int = 16
    crf: int = 23
    preset: str = "medium"

    def __post_init__(self) -> None:
        if self.short_side < 2 or self.short_side % 2:
            raise ValueError(f"--short-side expects an even number from 2 on, got {self.short_side}")
        if self.keyint < 1:
            raise ValueError(f"--keyint expects at least 1 frame, got {self.keyint}")
        if not 0 <= self.crf <= _WORST_QUALITY:
            raise ValueError(f"--crf expects 0 to {_WORST_QUALITY}, got {self.crf}")
        if self.preset not in PRESETS:
            raise ValueError(f"--preset expects one of {', '.join(PRESETS)}, got {self.preset!r}")

    def as_options(self) -> dict[str, str]:
        """Return options for the encoder; it runs in one thread, since many processes encode at once."""
        return {
            "crf": str(self.crf), "preset": self.preset, "g": str(self.keyint), "keyint_min": str(self.keyint),
            "sc_threshold": "0", "bf": "0", "threads": "1",
        }  # fmt: skip

    def as_dict(self) -> dict[str, int | str]:
        """Return the settings by name, for a file."""
        return asdict(self)


class _Timing(NamedTuple):
    """The times of frames, `times` in units of `unit` seconds, from 0 on."""

    times: list[int]
    unit: Fraction


def check_encoder() -> None:
    """Raise ValueError if the installed PyAV has no H.264 encoder."""
    import av

    try:
        av.codec.Codec(ENCODER, "w")
    except ValueError as error:
        raise ValueError(f"expected PyAV (av) with the encoder {ENCODER}, as its wheels have it") from error


def encode_video(source: str, target: str | os.PathLike[str], settings: EncodeSettings) -> int:
    """Encode a video file into the mp4 file `target`, check the result, and return the number of frames.

    Frames are turned upright, scaled to even sizes (never up; the aspect is kept to within two pixels), and converted
    to 4:2:0 of 8 bits in their own colour space. They keep their times if the container keeps them well; otherwise they
    follow each other at the average rate. The first is at 0. Raises DecodeError on a source that cannot be decoded as a
    whole, EncodeError, and OSError if `target` cannot be written.
    """
    video = VideoSource(source, source)
    stream = open_stream(video)
    with closing(stream.container):
        scan = scan_packets(source, stream)
    if scan.num_present < scan.num_frames:
        detail = f"its index lists {scan.num_frames} frames, {scan.num_present} are there"
        raise DecodeError(f"{source}: {detail}", "cut_short")
    if not scan.width or not scan.height:
        raise DecodeError(f"{source}: its frames are {scan.width}x{scan.height}", "zero_size")
    times = _encode(video, scan, os.fspath(target), settings)
    try:
        _check(os.fspath(target), times, settings)
    except DecodeError as error:
        raise EncodeError(f"{source}: the encoded video cannot be read: {error}") from error
    return scan.num_frames


def _encode(video: VideoSource, scan: PacketScan, target: str, settings: EncodeSettings) -> _Timing:
    """Encode a scanned video, and return the times of its frames."""
    import av

    source, stream = video.name, open_stream(video)
    with (
        closing(stream.container),
        av.open(target, "w", format="mp4", options={"movflags": "faststart"}) as output,
    ):
        timing = _timing(scan, stream)
        with _encoder_calls(source):
            encoder: Any = output.add_stream(ENCODER, rate=_rate(scan))
            encoder.options = settings.as_options()
            encoder.codec_context.time_base = timing.unit
        count = 0
        for frame in _small_frames(source, _decoded(source, stream, scan), settings.short_side):
            if not count:
                _describe_pictures(encoder.codec_context, frame)
            if count == scan.num_frames:
                raise DecodeError(f"{source}: yields more than its {scan.num_frames} frames")
            with _encoder_calls(source):
                frame.pts, frame.time_base = timing.times[count], timing.unit
                output.mux(encoder.encode(frame))
            count += 1
        if count < scan.num_frames:
            raise DecodeError(f"{source}: yields {count} of its {scan.num_frames} frames")
        with _encoder_calls(source):
            output.mux(encoder.encode())
    return timing


@contextmanager
def _encoder_calls(source: str) -> Iterator[None]:
    """Turn any error of PyAV into EncodeError, except OSError, such as a full disk."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise EncodeError(f"{source}: cannot be encoded: {reason_of(error)}") from error


def _timing(scan: PacketScan, stream: "VideoStream") -> _Timing:
    if scan.times is not None and stream.time_base is not None:
        return _Timing([time - scan.times[0] for time in scan.times], stream.time_base)
    return _Timing(list(range(scan.num_frames)), 1 / _rate(scan))


def _rate(scan: PacketScan) -> Fraction:
    """Return the frames per second as the fraction that is meant, such as 30000/1001."""
    return max(Fraction(scan.fps).limit_denominator(_LARGEST_DENOMINATOR), Fraction(1, _LARGEST_DENOMINATOR))


def _decoded(source: str, stream: "VideoStream", scan: PacketScan) -> Iterator["VideoFrame"]:
    """Yield all frames that a reader counts, in order."""
    count = 0
    calls = LibraryCalls(lambda: f"{source}: frame {count} of {scan.num_frames} cannot be decoded")
    for packet in read_packets(stream, calls):
        if packet.size and (packet.is_corrupt or known_time(packet.pts) < scan.start):
            continue
        with calls:
            frames = packet.decode()
        for frame in frames:
            if frame.is_corrupt:
                raise DecodeError(f"{source}: frame {count} of {scan.num_frames} is damaged")
            yield frame
            count += 1


def _small_frames(source: str, frames: Iterator["VideoFrame"], short_side: int) -> Iterator["VideoFrame"]:
    """Yield frames upright, scaled and as 4:2:0 of 8 bits; their times are not set."""
    from av.video.frame import PictureType

    graph, shape = None, ""
    for count, frame in enumerate(frames):
        with LibraryCalls(f"{source}: frame {count} cannot be decoded"):
            rotation = frame.rotation
        found = f"{frame.width}x{frame.height} {frame.format.name} turned by {rotation} degrees"
        if graph is None:
            graph, shape = _scaler(source, frame, rotation, short_side), found
        if found != shape:
            raise DecodeError(f"{source}: frame {count} is {found}, expected {shape} as the first")
        with _encoder_calls(source):
            frame.pts = count  # the filters want rising times, and keep one frame for one
            graph.push(frame)
            small: VideoFrame = graph.pull()  # type: ignore[assignment]  # a graph of pictures yields no sound
            small.pict_type = PictureType.NONE  # else the encoder would repeat the source's keyframes
        yield small


def _scaler(source: str, frame: "VideoFrame", rotation: int, short_side: int) -> "Graph":
    """Return FFmpeg's filters for all frames of a video, as its first frame requires."""
    if rotation % 90:
        raise DecodeError(f"{source}: has a rotation of {rotation} degrees", "odd_rotation")
    turns = rotation // 90 % 4
    width, height = small_size(frame.width, frame.height, short_side)
    if turns % 2:
        width, height = height, width
    scale = ("scale", f"{width}:{height}:flags=bicubic:out_range=limited")
    with _encoder_calls(source):
        return _connected(frame, (*_TURNS[turns], scale, ("format", "yuv420p"), ("buffersink", None)))


def _connected(frame: "VideoFrame", filters: Iterable[tuple[str, str | None]]) -> "Graph":
    """Return a chain of FFmpeg's filters for frames like `frame`."""
    import av

    graph = av.filter.Graph()
    graph.threads = 1  # set before the first filter
    # the colour space is said here: left out, pictures would be converted to another one
    last = graph.add(
        "buffer", video_size=f"{frame.width}x{frame.height}", pix_fmt=frame.format.name, time_base="1/1",
        colorspace=str(int(frame.colorspace)), range=str(int(frame.color_range)),
    )  # fmt: skip
    for name, arguments in filters:
        following = graph.add(name, arguments)
        last.link_to(following)
        last = following
    graph.configure()
    return graph


def small_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return even sizes with a short side of at most `short_side`, none enlarged (but 2 for a single pixel)."""
    short = min(width, height)
    target = max(2, min(short, short_side) // 2 * 2)
    small_width, small_height = (
        target if side == short else max(2, side * target // short // 2 * 2) for side in (width, height)
    )
    return small_width, small_height


def _describe_pictures(context: Any, frame: "VideoFrame") -> None:
    context.width, context.height, context.pix_fmt = frame.width, frame.height, frame.format.name
    context.colorspace, context.color_range = frame.colorspace, frame.color_range
    context.color_primaries, context.color_trc = frame.color_primaries, frame.color_trc


def _check(target: str, timing: _Timing, settings: EncodeSettings) -> None:
    """Check an encoded file.

    Raises EncodeError unless it has the frames at their times and allows seeking, DecodeError unless its ends decode.
    """
    import av

    num_frames = len(timing.times)
    with open_video(target) as reader:
        scan = reader.scan
        assert scan is not None
        reader.read([0, scan.num_frames - 1])
    if scan.num_frames != num_frames:
        raise EncodeError(f"{target}: has {scan.num_frames} frames, expected {num_frames}")
    if scan.times is None or not scan.is_seekable:
        raise EncodeError(f"{target}: does not support seeking: {scan.sequential_reason}")
    if scan.keyframes != list(range(0, num_frames, settings.keyint)):
        some = f"{scan.keyframes[:5]}..."
        raise EncodeError(f"{target}: keyframes are at {some}, expected one every {settings.keyint} frames")
    with av.open(target, "r") as container:
        unit = container.streams.video[0].time_base or Fraction(0)
    for found, time in zip(scan.times, timing.times, strict=True):
        if abs((found - scan.times[0]) * unit - time * timing.unit) > unit:
            seconds = float((found - scan.times[0]) * unit), float(time * timing.unit)
            raise EncodeError(f"{target}: a frame has time {seconds[0]:g} s, expected {seconds[1]:g} s")
