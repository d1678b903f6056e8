"""What the packets of a video file tell about it, read without decoding: length, times, keyframes, safe seeking."""

import bisect
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

_TIMED_CONTAINERS = ("mov", "matroska")
_SEEKABLE_CODECS = ("h264", "vp8", "vp9", "libvpx", "libvpx-vp9", "mpeg4", "mjpeg")
_NO_TIME = -(2**63)
_MPEG4_PICTURE = b"\0\0\1\xb6"
_INTRA, _PREDICTED = 0, 1  # types of MPEG-4 pictures
_FEWEST_BYTES = 16  # an MPEG-4 packet of no more may say that its picture is that before
_SLICE, _IDR = 1, 5  # types of H.264 units that hold picture data
_DECORD_CONTAINERS = ("mov", "matroska", "avi")
_DECORD_FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p")
_PROGRESSIVE = (0, 1)  # field orders: not stated, progressive


class DecodeError(RuntimeError):
    """A video, or a frame of it, cannot be decoded; the message names the file and the reason.

    `kind` is what is wrong, in one word for programs: missing, unreadable, not_a_video, no_video_stream, cut_short,
    odd_rotation, wrong_backend (another one might read it), or else damaged.
    """

    def __init__(self, message: str, kind: str = "damaged") -> None:
        super().__init__(message.encode(errors="backslashreplace").decode())  # names may not be UTF-8; results are
        self.kind = kind


@dataclass(frozen=True)
class VideoSource:
    """What a video is read from, a path, bytes or a binary file that can seek, with a name for messages."""

    name: str
    content: str | bytes | BinaryIO

    @property
    def is_shared(self) -> bool:
        """Whether others may move the place where it is read: it is a file that the caller opened."""
        return not isinstance(self.content, str | bytes)

    def begin(self) -> str | BinaryIO:
        """What decoders open: the path, or a file that stands at its beginning."""
        if isinstance(self.content, bytes):
            return io.BytesIO(self.content)
        if not isinstance(self.content, str):
            self.content.seek(0)
        return self.content


@dataclass(frozen=True)
class PacketScan:
    """What the packets of a file tell; times are in the stream's own unit.

    `in_order_because` says why a seek might not land where it should; it is empty where seeking is safe. `fps` is the
    average that the file states or, where `has_variable_rate`, that of the times. Width and height are those stored,
    before any rotation; `codec` is FFmpeg's name of the decoder.
    """

    num_frames: int
    num_present: int  # frames whose number is certain: fewer than num_frames where the file ends early
    fps: float
    start: int  # packets shown before it are not decoded
    times: list[int] | None  # of the frames, rising; None where they do not tell frames apart
    places: list[int]  # where the frames are stored, in bytes, in the order of their times; empty without times
    keyframes: list[int]
    in_order_because: str
    suits_decord: bool  # decord, too, is right about it when reading in order
    codec: str
    width: int
    height: int
    has_variable_rate: bool = False
    only_pyav_seeks: bool = False  # decord now and then gave frames of other times from such files (avi)

    @property
    def is_seekable(self) -> bool:
        """Whether a seek to a keyframe lands on it, and what follows needs nothing before it."""
        return not self.in_order_because

    def on_screen(self, indices: Sequence[int]) -> list[int]:
        """The frames that are shown when a video of as many frames, at the same average rate, shows frames `indices`.

        That is the frames themselves where the rate is constant or the times are not known.
        """
        if not self.has_variable_rate:
            return list(indices)
        assert self.times is not None
        first, interval = self.times[0], _mean_interval(self.times)
        # the middle of the time that a frame is shown: no rounding of times leads to a neighbour
        return [bisect.bisect_right(self.times, first + (index + 0.5) * interval) - 1 for index in indices]


class _PacketFacts(NamedTuple):
    shown: int  # a time
    stored: int  # a time
    is_key: bool
    is_hidden: bool
    is_corrupt: bool
    is_restart: bool  # a keyframe that nothing after it looks behind
    is_lone: bool  # one picture, which is shown before those stored after it; known of MPEG-4 in avi only
    place: int  # in bytes


def open_stream(source: VideoSource) -> "VideoStream":
    """A video opened with PyAV: the stream that players show, set to decode in one thread and to fail on damage.

    Who asked for it closes its container. Raises DecodeError where the source is no video or has no video stream.
    """
    import av

    try:
        container = av.open(source.begin(), "r")
    except (av.FFmpegError, OSError) as error:
        raise _not_a_video(source.name, error) from error
    stream: Any = container.streams.best("video")
    if stream is None:
        container.close()
        raise DecodeError(f"{source.name}: has no video stream", "no_video_stream")
    stream.codec_context.thread_count = 1  # workers are processes already
    stream.codec_context.options = {"err_detect": "explode"}  # an error where the decoder would make up a picture
    return stream


def scan_packets(file: str, stream: "VideoStream") -> PacketScan:
    """Scan a video from its beginning to its end. Raises DecodeError where it has no frame or cannot be read."""
    import av
    from av.stream import Discard

    container: Any = stream.container
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all  # sound need not be read
    context = stream.codec_context
    describe = partial(
        _packet_facts, container=container.format.name, codec=context.name, configuration=context.extradata
    )
    try:
        packets = [describe(packet) for packet in container.demux(stream) if packet.size]
    except (av.FFmpegError, OSError) as error:
        raise _not_a_video(file, error) from error
    return _conclude(file, stream, container.format.name, packets)


def _conclude(file: str, stream: "VideoStream", container: str, packets: Sequence[_PacketFacts]) -> PacketScan:
    """What all packets of a stream tell."""
    codec, context = stream.codec_context.name, stream.codec_context
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    num_listed = len(stream.index_entries) if container.startswith("mov") else len(packets)
    is_timed = container.startswith(_TIMED_CONTAINERS) or _is_plain_avi(packets)
    whole = [packet for packet in packets if not packet.is_corrupt]
    start = next((packet.shown for packet in whole if packet.is_key), _NO_TIME) if is_timed else _NO_TIME
    frames = [packet for packet in whole if not packet.is_hidden and packet.shown >= start]
    if not frames or not fps:
        raise DecodeError(f"{file}: has no {'frame rate' if frames else 'frame that can be decoded'}")
    suits_decord = container.startswith(_DECORD_CONTAINERS) and _has_decord_colours(stream)
    suits_decord = suits_decord and all(packet.shown >= start for packet in packets)
    num_frames = num_present = len(frames)
    if num_listed > len(packets):  # what is missing is stored later, and shown later still
        num_frames += num_listed - len(whole)
        last_stored = max(packet.stored for packet in whole)
        num_present = sum(packet.shown <= last_stored for packet in frames)
    make = partial(
        PacketScan, num_frames=num_frames, num_present=num_present, start=start, suits_decord=suits_decord,
        codec=codec, width=context.width, height=context.height, only_pyav_seeks=container == "avi",
    )  # fmt: skip
    in_time = sorted(frames, key=attrgetter("shown"))
    times = [packet.shown for packet in in_time]
    if not is_timed or len(set(times)) < len(frames):
        reason = "several frames have the same time" if is_timed else f"container {container} does not keep times well"
        return make(fps=fps, times=None, places=[], keyframes=[], in_order_because=reason)
    varies = num_frames == len(frames) and times[0] != _NO_TIME and _is_irregular(times)
    if varies and stream.time_base:
        fps = float(1 / (Fraction(times[-1] - times[0], len(times) - 1) * stream.time_base))
    number = {time: index for index, time in enumerate(times)}
    keyframes = sorted(number[packet.shown] for packet in frames if packet.is_key)
    if codec not in _SEEKABLE_CODECS:
        reason = f"codec {codec} is not known to seek safely"
    elif not len(frames) == num_listed == len(packets):
        reason = "packets are missing, damaged or hidden"
    else:
        reason = _unsafe_keyframes(frames, number)
    return make(
        fps=fps, times=times, places=[packet.place for packet in in_time], keyframes=keyframes,
        in_order_because=reason, has_variable_rate=varies,
    )  # fmt: skip


def _mean_interval(times: Sequence[int]) -> float:
    return (times[-1] - times[0]) / max(1, len(times) - 1)


def _is_irregular(times: Sequence[int]) -> bool:
    """Whether a frame is shown at another frame's turn: half an interval or more off an even spacing.

    Anything less, such as times that are rounded to milliseconds, no choice of other frames could mend.
    """
    interval = _mean_interval(times)
    shifts = (abs(time - times[0] - index * interval) for index, time in enumerate(times))
    return interval > 0 and max(shifts) >= interval / 2


def _unsafe_keyframes(frames: Sequence[_PacketFacts], number: Mapping[int, int]) -> str:
    """Why decoding can't begin at some keyframe, or nothing; `number` is a frame's number by the time it is shown."""
    keys = [packet for packet in frames if packet.is_key]
    if not keys:
        return "there is no keyframe"
    if not all(packet.is_restart for packet in keys):
        return "not every keyframe is a restart"
    if not all(number[packet.shown] == place for place, packet in enumerate(frames) if packet.is_key):
        return "groups of pictures are open"
    if not all(later.stored > earlier.shown for earlier, later in zip(keys, keys[1:], strict=False)):
        return "keyframes are stored too close to each other"
    return ""


def _packet_facts(
    packet: "Packet[VideoStream]", container: str, codec: str, configuration: bytes | None
) -> _PacketFacts:
    is_restart = is_key = packet.is_keyframe
    is_lone = False
    if codec == "h264":
        is_restart = is_key and _is_idr(packet, configuration)
    elif codec == "mpeg4" and container == "avi":
        pictures = _mpeg4_pictures(packet)
        is_lone = pictures in ([_INTRA], [_PREDICTED]) and packet.size > _FEWEST_BYTES
        is_restart = is_key and pictures == [_INTRA]
    return _PacketFacts(
        packet_time(packet.pts), packet_time(packet.dts), is_key, packet.is_discard, packet.is_corrupt, is_restart,
        is_lone, packet.pos or 0,
    )  # fmt: skip


def _is_plain_avi(packets: Sequence[_PacketFacts]) -> bool:
    """Whether avi's times, which just count packets, are those of the frames: pictures are shown as they are stored."""
    in_order = all(packet.is_lone and packet.shown == packet.stored for packet in packets)
    return in_order and bool(packets) and packets[0].is_key


def _mpeg4_pictures(packet: "Packet[VideoStream]") -> list[int]:
    """Types of the pictures in an MPEG-4 packet. Source: ISO/IEC 14496-2, 6.2.5 (VideoObjectPlane)."""
    return [picture[0] >> 6 for picture in bytes(packet).split(_MPEG4_PICTURE)[1:] if picture]


def _is_idr(packet: "Packet[VideoStream]", configuration: bytes | None) -> bool:
    """Whether the first picture of an H.264 packet restarts decoding; False as well where units have no lengths.

    Source: ISO/IEC 14496-10, 7.4.1.2.4; 14496-15, 5.3.3 (units begin with their length in 1 to 4 bytes).
    """
    if not configuration or configuration[0] != 1:
        return False
    data, size, place = memoryview(packet), (configuration[4] & 3) + 1, 0
    while place + size < len(data):
        kind = data[place + size] & 31
        if kind in (_SLICE, _IDR):
            return kind == _IDR
        place += size + int.from_bytes(data[place : place + size], "big")
    return False


def _has_decord_colours(stream: "VideoStream") -> bool:
    context = stream.codec_context
    is_odd = "420" in str(context.pix_fmt) and context.height % 2 == 1
    return context.pix_fmt in _DECORD_FORMATS and not is_odd and int(context.field_order) in _PROGRESSIVE


def packet_time(time: int | None) -> int:
    """A packet's or frame's time, with a number below all others for one that has none."""
    return _NO_TIME if time is None else time


def _not_a_video(file: str, error: Exception) -> DecodeError:
    return DecodeError(f"{file}: cannot be opened as a video: {reason_of(error)}", "not_a_video")


def reason_of(error: Exception) -> str:
    """A decoding library's error in one line."""
    text = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
    return f"{text} ({type(error).__name__})"
