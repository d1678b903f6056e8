"""Scan of the packets of a video file, without decoding: length, times, keyframes, safe seeking."""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from videoattn.data.readers.decode_error import DecodeError
from videoattn.data.readers.frame_times import NO_TIME, frame_rate, is_uneven, known_time, mean_interval
from videoattn.data.readers.stream import not_a_video, read_packets

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

_TIMED_CONTAINERS = ("mov", "matroska", "gif")
_SEEKABLE_CODECS = ("h264", "vp8", "vp9", "libvpx", "libvpx-vp9", "mpeg4", "mjpeg")
_MPEG4_PICTURE = b"\0\0\1\xb6"
_INTRA, _PREDICTED = 0, 1  # types of MPEG-4 pictures
_FEWEST_BYTES = 16  # an MPEG-4 packet of no more may say that its picture is that before
_SLICE, _IDR = 1, 5  # types of H.264 units that hold picture data
_LENGTH_SIZE_AT = 4  # byte of an H.264 configuration
_DECORD_CONTAINERS = ("mov", "matroska", "avi")
_DECORD_FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p")
_PROGRESSIVE = (0, 1)  # field orders: not stated, progressive


@dataclass(frozen=True)
class PacketScan:
    """The result of scanning a file's packets; times are in the stream's own unit.

    `sequential_reason` is the reason why a seek might miss its target, "" if seeking is safe. `fps` is the average rate
    that the file states or, if the times contradict it or vary, that of the times. Width and height are as stored,
    before any rotation; `codec` is FFmpeg's name of the decoder.
    """

    num_frames: int
    num_present: int  # frames whose number is certain: fewer than num_frames where the file ends early
    fps: float
    start: int  # packets shown before it are not decoded
    times: list[int] | None  # of the frames, rising; None where they do not tell frames apart
    places: list[int]  # where the frames are stored, in bytes, in the order of their times; empty without times
    keyframes: list[int]
    sequential_reason: str
    decord_supported: bool  # decord decodes it right sequentially, too
    codec: str
    width: int
    height: int
    has_variable_rate: bool = False
    only_pyav_seeks: bool = False  # decord now and then gave frames of other times from such files (avi)

    @property
    def is_seekable(self) -> bool:
        """True if a seek to a keyframe lands on it, and what follows needs nothing before it."""
        return not self.sequential_reason

    def on_screen(self, indices: Sequence[int]) -> list[int]:
        """Return the frames on the screen when a video of the same length and average rate shows frames `indices`.

        These are the frames themselves if the rate is constant or the times are not known.
        """
        if not self.has_variable_rate:
            return list(indices)
        assert self.times is not None
        first, interval = self.times[0], mean_interval(self.times)
        # the middle of the time that a frame is shown: no rounding of times leads to a neighbour
        return [bisect.bisect_right(self.times, first + (index + 0.5) * interval) - 1 for index in indices]


class _StreamFacts(NamedTuple):
    container: str
    codec: str
    configuration: bytes | None
    width: int
    height: int
    time_base: Fraction | None
    rate: float  # frames per second, as stated; 0 where nothing is
    has_decord_colours: bool


class _PacketFacts(NamedTuple):
    shown: int  # a time
    stored: int  # a time
    is_key: bool
    is_hidden: bool
    is_corrupt: bool
    is_restart: bool  # a keyframe that nothing after it looks behind
    is_lone: bool  # one picture, which is shown before those stored after it; known of MPEG-4 in avi only
    place: int  # in bytes


def scan_packets(file: str, stream: "VideoStream") -> PacketScan:
    """Scan a video from its beginning to its end. Raises DecodeError if it has no frame or cannot be read."""
    with not_a_video(file):
        facts = _stream_facts(stream)
    packets = [_packet_facts(packet, facts) for packet in read_packets(stream, not_a_video(file)) if packet.size]
    with not_a_video(file):
        num_listed = len(stream.index_entries)  # known when all has been read
    return _conclude(file, facts, packets, num_listed if facts.container.startswith("mov") else len(packets))


def _stream_facts(stream: "VideoStream") -> _StreamFacts:
    """Return the facts of a stream that are known before its packets are read; discard all other streams."""
    from av.stream import Discard

    container: Any = stream.container
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all  # sound need not be read
    context = stream.codec_context
    is_odd = "420" in str(context.pix_fmt) and context.height % 2 == 1
    return _StreamFacts(
        container=container.format.name, codec=context.name, configuration=context.extradata,
        width=context.width, height=context.height, time_base=stream.time_base,
        rate=max(0.0, float(stream.average_rate or stream.guessed_rate or 0)),
        has_decord_colours=context.pix_fmt in _DECORD_FORMATS and not is_odd
        and int(context.field_order) in _PROGRESSIVE,
    )  # fmt: skip


def _conclude(file: str, stream: _StreamFacts, packets: Sequence[_PacketFacts], num_listed: int) -> PacketScan:
    """Combine the facts of a stream and of all its packets; the file's index lists `num_listed` of them."""
    container, codec = stream.container, stream.codec
    is_timed = container.startswith(_TIMED_CONTAINERS) or _is_plain_avi(packets)
    whole = [packet for packet in packets if not packet.is_corrupt]
    start = next((packet.shown for packet in whole if packet.is_key), NO_TIME) if is_timed else NO_TIME
    frames = [packet for packet in whole if not packet.is_hidden and packet.shown >= start]
    if not frames:
        raise DecodeError(f"{file}: has no frame that can be decoded")
    num_frames = num_present = len(frames)
    if num_listed > len(packets):  # what is missing is stored later, and shown later still
        num_frames += num_listed - len(whole)
        last_stored = max(packet.stored for packet in whole)
        num_present = sum(packet.shown <= last_stored for packet in frames)
    in_time = sorted(frames, key=attrgetter("shown"))
    times = [packet.shown for packet in in_time]
    are_distinct = len(set(times)) == len(frames)
    fps = stream.rate
    if num_frames == len(frames):
        fps = frame_rate(times, stream.time_base, fps, are_exact=is_timed and are_distinct)
    if not fps:
        raise DecodeError(f"{file}: has no frame rate")
    make = partial(
        PacketScan, num_frames=num_frames, num_present=num_present, start=start, codec=codec, width=stream.width,
        height=stream.height, only_pyav_seeks=container == "avi",
        decord_supported=container.startswith(_DECORD_CONTAINERS) and stream.has_decord_colours
        and all(packet.shown >= start for packet in packets),
    )  # fmt: skip
    if not is_timed or not are_distinct:
        untimed = f"container {container} does not keep times reliably"
        reason = "several frames have the same time" if is_timed else untimed
        return make(fps=fps, times=None, places=[], keyframes=[], sequential_reason=reason)
    varies = num_frames == len(frames) and times[0] != NO_TIME and is_uneven(times, mean_interval(times))
    if varies and stream.time_base:
        fps = frame_rate(times, stream.time_base, 0, are_exact=True)
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
        sequential_reason=reason, has_variable_rate=varies,
    )  # fmt: skip


def _unsafe_keyframes(frames: Sequence[_PacketFacts], number: Mapping[int, int]) -> str:
    """Return the reason why decoding can't begin at some keyframe, or "".

    `number` is a frame's number by the time it is shown.
    """
    keys = [packet for packet in frames if packet.is_key]
    if not keys:
        return "there is no keyframe"
    if not all(packet.is_restart for packet in keys):
        return "some keyframe does not restart decoding"
    if not all(number[packet.shown] == place for place, packet in enumerate(frames) if packet.is_key):
        return "groups of pictures are open"
    if not all(later.stored > earlier.shown for earlier, later in zip(keys, keys[1:], strict=False)):
        return "keyframes are stored too close to each other"
    return ""


def _packet_facts(packet: "Packet[VideoStream]", stream: _StreamFacts) -> _PacketFacts:
    is_restart = is_key = packet.is_keyframe
    is_lone = False
    if stream.codec == "h264":
        is_restart = is_key and _is_idr(packet, stream.configuration)
    elif stream.codec == "mpeg4" and stream.container == "avi":
        pictures = _mpeg4_pictures(packet)
        is_lone = pictures in ([_INTRA], [_PREDICTED]) and packet.size > _FEWEST_BYTES
        is_restart = is_key and pictures == [_INTRA]
    return _PacketFacts(
        known_time(packet.pts), known_time(packet.dts), is_key, packet.is_discard, packet.is_corrupt, is_restart,
        is_lone, packet.pos or 0,
    )  # fmt: skip


def _is_plain_avi(packets: Sequence[_PacketFacts]) -> bool:
    """Return True if avi's times, which count packets, are those of frames: no pictures are reordered."""
    in_order = all(packet.is_lone and packet.shown == packet.stored for packet in packets)
    return in_order and bool(packets) and packets[0].is_key


def _mpeg4_pictures(packet: "Packet[VideoStream]") -> list[int]:
    """Return the types of the pictures in an MPEG-4 packet. Source: ISO/IEC 14496-2, 6.2.5 (VideoObjectPlane)."""
    return [picture[0] >> 6 for picture in bytes(packet).split(_MPEG4_PICTURE)[1:] if picture]


def _is_idr(packet: "Packet[VideoStream]", configuration: bytes | None) -> bool:
    """Return True if the first picture of an H.264 packet restarts decoding; False as well if units have no lengths.

    Source: ISO/IEC 14496-10, 7.4.1.2.4; 14496-15, 5.3.3 (units begin with their length in 1 to 4 bytes).
    """
    if not configuration or len(configuration) <= _LENGTH_SIZE_AT or configuration[0] != 1:
        return False
    data, size, place = memoryview(packet), (configuration[_LENGTH_SIZE_AT] & 3) + 1, 0
    while place + size < len(data):
        kind = data[place + size] & 31
        if kind in (_SLICE, _IDR):
            return kind == _IDR
        place += size + int.from_bytes(data[place : place + size], "big")
    return False
