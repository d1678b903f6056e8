"""Check, before anything expensive, that the videos of a list exist."""

import logging
import os

from videoattn.data.lists import VideoList
from videoattn.data.readers.frame_files import is_frame_range
from videoattn.data.readers.packed import is_url, parse_packed

logger = logging.getLogger("videoattn")

_MOST_SOUGHT = 1000


def check_videos(videos: VideoList, limit: float | None = None) -> None:
    """Warn about videos that do not exist, looking at up to a thousand across the list; URLs are not looked up.

    With `limit`, raise ValueError if none exists, or if more than this share is missing from a list that was looked at
    as a whole.
    """
    chosen = range(0, len(videos), max(1, -(-len(videos) // _MOST_SOUGHT)))
    missing = [path for path in map(videos.path, chosen) if not _exists(path)]
    if not missing:
        return
    text = f"{len(missing)} of {len(chosen)} videos of {videos.source} do not exist, e.g. {missing[0]}"
    if limit is not None and len(missing) == len(chosen):
        raise ValueError(f"{text}; expected paths relative to the list's folder or to DATA.PATH_PREFIX")
    num_tried = len(chosen) + len(missing)  # a missing one is replaced by another
    if limit is not None and len(chosen) == len(videos) and len(missing) > limit * num_tried:
        raise ValueError(f"{text}, more than DATA.MAX_BAD_FRACTION {limit}; list those that exist, or raise the key")
    logger.warning("%s", text)


def _exists(path: str) -> bool:
    packed = parse_packed(path)
    file = path if packed is None else packed.shard
    return is_url(file) or os.path.exists(file) or (is_frame_range(file) and os.path.isdir(os.path.dirname(file)))
