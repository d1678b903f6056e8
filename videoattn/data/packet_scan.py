"""What the packets of a video file tell about it, read without decoding: length, times, keyframes, safe seeking."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

_TIMED_CONTAINERS = ("mov", "matroska")
_SEEKABLE_CODECS = ("h264", "vp8", "vp9", "libvpx", "libvpx-vp9", "mpeg4", "mjpeg")
_NO_TIME = -(2**63)
_SLICE, _IDR = 1, 5  # types of H.264 units that hold picture data
_DECORD_CONTAINERS = ("mov", "matroska", "avi")
_DECORD_FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p")
_PROGRESSIVE = (0, 1)  # field orders: not stated, progressive


class DecodeError(RuntimeError):
    """A video, or a frame of it, cannot be decoded; the message names the file and the reason.

    `kind` is what is wrong, in one word for programs: missing, not_a_video, no_video_stream, cut_short, odd_rotation,
    wrong_backend (another one might read it), or else damaged.
    """

    def __init__(self, message: str, kind: str = "damaged") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class VideoSource:
    """What a video is read from, a path, bytes or a binary file that can seek, with a name for messages."""

    name: str
    content: str | bytes | BinaryIO

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

    `in_order_because` says why a seek might not land where it should; it is empty where seeking is safe. Width and
    height are those stored, before any rotation; `codec` is FFmpeg's name of the decoder.
    """

    num_frames: int
    num_present: int  # frames whose number is certain: fewer than num_frames where the file ends early
    fps: float
    start: int  # packets shown before it are not decoded
    times: list[int] | None  # of the frames, rising; None where they do not tell frames apart
    keyframes: list[int]
    in_order_because: str
    suits_decord: bool  # decord, too, is right about it when reading in order
    codec: str
    width: int
    height: int

    @property
    def is_seekable(self) -> bool:
        """Whether a seek to a keyframe lands on it, and what follows needs nothing before it."""
        return not self.in_order_because


class _PacketFacts(NamedTuple):
    shown: int  # a time
    stored: int  # a time
    is_key: bool
    is_hidden: bool
    is_corrupt: bool
    is_restart: bool  # a keyframe that nothing after it looks behind


def scan_packets(source: VideoSource) -> PacketScan:
    """Scan a video. Raises DecodeError where it is no video, or has no video stream or no frame."""
    import av

    file = source.name
    try:
        with av.open(source.begin(), "r") as container:
            stream = best_video_stream(file, container)
            packets = [_packet_facts(packet, stream) for packet in container.demux(stream) if packet.size]
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            name, codec = container.format.name, stream.codec_context.name
            shape = (codec, stream.codec_context.width, stream.codec_context.height)
            num_listed = len(stream.index_entries) if name.startswith("mov") else len(packets)
            suits_decord = name.startswith(_DECORD_CONTAINERS) and _has_decord_colours(stream)
    except (av.FFmpegError, OSError) as error:
        raise DecodeError(f"{file}: cannot be opened as a video: {reason_of(error)}", "not_a_video") from error
    is_timed = name.startswith(_TIMED_CONTAINERS)
    whole = [packet for packet in packets if not packet.is_corrupt]
    start = next((packet.shown for packet in whole if packet.is_key), _NO_TIME) if is_timed else _NO_TIME
    frames = [packet for packet in whole if not packet.is_hidden and packet.shown >= start]
    if not frames or not fps:
        raise DecodeError(f"{file}: has no {'frame rate' if frames else 'frame that can be decoded'}")
    suits_decord = suits_decord and all(packet.shown >= start for packet in packets)
    num_frames = num_present = len(frames)
    if num_listed > len(packets):  # what is missing is stored later, and shown later still
        num_frames += num_listed - len(whole)
        last_stored = max(packet.stored for packet in whole)
        num_present = sum(packet.shown <= last_stored for packet in frames)
    times = sorted(packet.shown for packet in frames)
    if not is_timed or len(set(times)) < len(frames):
        reason = "several frames have the same time" if is_timed else f"container {name} does not keep times well"
        return PacketScan(num_frames, num_present, fps, start, None, [], reason, suits_decord, *shape)
    number = {time: index for index, time in enumerate(times)}
    keyframes = sorted(number[packet.shown] for packet in frames if packet.is_key)
    if codec not in _SEEKABLE_CODECS:
        reason = f"codec {codec} is not known to seek safely"
    elif not len(frames) == num_listed == len(packets):
        reason = "packets are missing, damaged or hidden"
    else:
        reason = _unsafe_keyframes(frames, number)
    return PacketScan(num_frames, num_present, fps, start, times, keyframes, reason, suits_decord, *shape)


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


def _packet_facts(packet: "Packet[VideoStream]", stream: "VideoStream") -> _PacketFacts:
    is_key = packet.is_keyframe
    is_restart = is_key and (stream.codec_context.name != "h264" or _is_idr(packet, stream.codec_context.extradata))
    return _PacketFacts(
        packet_time(packet.pts), packet_time(packet.dts), is_key, packet.is_discard, packet.is_corrupt, is_restart
    )


def _is_idr(packet: "Packet[VideoStream]", configuration: bytes | None) -> bool:
    """Whether the first picture of an H.264 packet restarts decoding; False as well where units have no lengths.

    Source: ISO/IEC 14496-10, 7.4.1.2.4; 14496-15, 5.3.3 (units begin with their length in 1 to 4 bytes).
    """
    if not configuration or configuration[0] != 1:
        return False
    data, size, place = bytes(packet), (configuration[4] & 3) + 1, 0
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


def best_video_stream(file: str, container: "InputContainer") -> "VideoStream":
    """The stream that players show, set to decode in one thread and to fail on damage; DecodeError without one."""
    stream: Any = container.streams.best("video")
    if stream is None:
        raise DecodeError(f"{file}: has no video stream", "no_video_stream")
    stream.codec_context.thread_count = 1  # workers are processes already
    stream.codec_context.options = {"err_detect": "explode"}  # an error where the decoder would make up a picture
    return stream


def reason_of(error: Exception) -> str:
    """A decoding library's error in one line."""
    text = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
    return f"{text} ({type(error).__name__})"
