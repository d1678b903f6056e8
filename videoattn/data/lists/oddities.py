"""Oddities of a list that are no errors: classes without a video, videos that are listed twice."""

from itertools import pairwise

import numpy as np

from videoattn.data.lists.video_list import VideoList

_MOST_NAMED = 5


def find_oddities(videos: VideoList, num_classes: int | None = None) -> list[str]:
    """Return sentences about videos that are listed twice and, with `num_classes`, about classes without a video."""
    sentences = [_absent_classes(videos, num_classes) if num_classes else "", _repeated_videos(videos)]
    return [sentence for sentence in sentences if sentence]


def _absent_classes(videos: VideoList, num_classes: int) -> str:
    labels = videos.labels[videos.labels >= 0]
    absent = np.flatnonzero(np.bincount(labels, minlength=num_classes)[:num_classes] == 0).tolist()
    if not absent:
        return ""
    names = videos.class_names or ()
    some = [f"{label} ({names[label]})" if label < len(names) else str(label) for label in absent[:_MOST_NAMED]]
    more = ", ..." if len(absent) > len(some) else ""
    return f"{videos.source}: {len(absent)} of MODEL.NUM_CLASSES {num_classes} have no video: {', '.join(some)}{more}"


def _repeated_videos(videos: VideoList) -> str:
    first: dict[str, int] = {}
    repeated, other_label = 0, []
    for index in _candidates(videos):
        earlier = first.setdefault(videos.listed(index), index)
        if earlier != index:
            repeated += 1
            if videos.label(earlier) != videos.label(index):
                other_label.append((earlier, index))
    if not repeated:
        return ""
    text = f"{videos.source}: {repeated} of {len(videos)} entries repeat a video of an earlier entry"
    if other_label:
        earlier, index = other_label[0]
        text += (
            f", {len(other_label)} of them with another label, so that it counts as an example of both labels; first "
            f"{videos.listed(index)} with {videos.label(earlier)} (entry {earlier + 1}) and {videos.label(index)} "
            f"(entry {index + 1})"
        )
    return f"{text}; `videoattn check` lists all of them"


def _candidates(videos: VideoList) -> list[int]:
    """Return rising numbers of the videos whose path has the same hash as another's; a million take half a second."""
    hashes = np.fromiter((hash(videos.paths[a:b]) for a, b in pairwise(videos.offsets.tolist())), np.int64, len(videos))
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    found: list[int] = np.flatnonzero(counts[inverse] > 1).tolist()
    return found
