"""Names of video files, for code that looks at names only: class folders, shards and lists."""

import os

# Endings of files that FFmpeg opens as videos. Left out are those that mostly hold something else: sound (.ogg), still
# pictures (.webp, .avif), data (.dat, .txt). A list may name a file of any ending.
VIDEO_ENDINGS = (
    ".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".gif", ".ts", ".3gp", ".3g2",
    ".amv", ".apng", ".asf", ".av1", ".dav", ".dif", ".divx", ".dv", ".f4v", ".gxf", ".h261", ".h263", ".h264", ".264",
    ".h265", ".265", ".hevc", ".insv", ".ismv", ".ivf", ".lrv", ".m1v", ".m2t", ".m2ts", ".m2v", ".mj2", ".mjpeg",
    ".mjpg", ".mk3d", ".mod", ".mpe", ".mpv", ".mts", ".mxf", ".nut", ".obu", ".ogm", ".ogv", ".qt", ".rm", ".rmvb",
    ".roq", ".swf", ".tod", ".vc1", ".vob", ".wtv", ".xvid", ".y4m",
)  # fmt: skip
_KNOWN = frozenset(VIDEO_ENDINGS)


def ending_of(name: str) -> str:
    """Return the ending of a file name in small letters, with its dot; "" if there is none."""
    return os.path.splitext(name)[1].lower()


def is_video_name(path: str) -> bool:
    """Return True if a path has the ending of a video file."""
    return ending_of(path) in _KNOWN
