"""Tiny videos with one known fault each, made from a few encoded ones by changing bytes."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from videoattn.data.motion.render import encode

HEIGHT, WIDTH, NUM_FRAMES, SHORT_FRAMES = 48, 64, 24, 6
FRONT_INDEX = {"movflags": "faststart"}


def encoded(folder: Path, num_frames: int) -> bytes:
    """A drifting texture as H.264, its index before its pictures."""
    import av

    picture = np.random.default_rng(0).integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8)
    picture = picture.repeat(4, axis=0).repeat(4, axis=1)
    plain, front = folder / "plain.mp4", folder / "front.mp4"
    encode(np.stack([np.roll(picture, shift, axis=1) for shift in range(num_frames)]), plain)
    with av.open(str(plain)) as source, av.open(str(front), "w", options=FRONT_INDEX) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    content = front.read_bytes()
    plain.unlink()
    front.unlink()
    assert 0 < content.index(b"moov") < content.index(b"mdat")
    return content


def sound() -> bytes:
    """An mp4 without a video stream."""
    import av

    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return target.getvalue()


def different(content: bytes, number: int) -> bytes:
    """Return the same video with other bytes: a box that players skip follows it.

    Source: ISO/IEC 14496-12, 8.1.2 (free space box).
    """
    return content + (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big")


class ClipMaker:
    """Contents of files by their type of fault, all with different bytes; None stands for no file."""

    def __init__(self, folder: Path) -> None:
        self.good = encoded(folder, NUM_FRAMES)
        self.short = encoded(folder, SHORT_FRAMES)
        self.sound = sound()
        pictures = self.good.index(b"mdat") + 4
        middle = (pictures + len(self.good)) // 2
        self._number = 0
        self._faults: dict[str, Callable[[], bytes | None]] = {
            "missing": lambda: None,
            "empty": lambda: b"",
            "not_a_video": lambda: different(b"no video at all ", self._number),
            "no_video_stream": lambda: different(self.sound, self._number),
            "damaged": lambda: different(self.good[:middle] + b"\x55" * (len(self.good) - middle), self._number),
            "cut_short": lambda: self.good[:middle],
            "too_short": lambda: different(self.short, self._number),
        }

    def content(self, fault: str = "") -> bytes | None:
        """Return a file with a fault, or a sound file if the fault is not one of its bytes."""
        self._number += 1
        make = self._faults.get(fault)
        return make() if make else different(self.good, self._number)

    def write(self, path: Path, fault: str = "") -> None:
        content = self.content(fault)
        if content is not None:
            path.write_bytes(content)
