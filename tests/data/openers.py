"""Stand-ins for decoding options that open videos with a function of a test."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from videoattn.data.readers.open_video import DecodeOptions, open_video


@dataclass(frozen=True)
class Opening(DecodeOptions):
    """Decoding options whose videos `opener(video, backend)` opens."""

    opener: Callable[..., Any] = open_video

    def open(self, video: Any) -> Any:
        return self.opener(video, self.backend)
