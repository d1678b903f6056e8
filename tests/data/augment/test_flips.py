import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.data.conftest import HEIGHT, write_video
from videoattn.config import Config
from videoattn.data import build_loader
from videoattn.data.augment.flips import NEVER_FLIPPED, flipped_labels
from videoattn.data.lists import AnnotationError

SSV2 = (
    "Pulling something from left to right",
    "Pulling something from right to left",
    "Putting something upright on the table",
    "Turning the camera left while filming something",
    "Turning the camera right while filming something",
    "Turning the camera upwards while filming something",
)
MOTION = (
    "approach", "recede", "rotate_clockwise", "rotate_counterclockwise", "translate_down", "translate_left",
    "translate_right", "translate_up",
)  # fmt: skip


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (SSV2, (1, 0, 2, 4, 3, 5)),
        (MOTION, (0, 1, 3, 2, 4, 6, 5, 7)),
        (("Moving LEFT", "moving right"), (1, 0)),
        (("turn-left2", "turn-right2", "leftover", "brightness"), (1, 0, 2, 3)),
        (("clockwise", "anti-clockwise"), (1, 0)),
        (("turning counter-clockwise", "turning clockwise"), (1, 0)),
    ],
)
def test_direction_words_are_swapped_as_whole_words(names: Sequence[str], expected: tuple[int, ...]) -> None:
    assert flipped_labels(names, "list.csv") == expected


@pytest.mark.parametrize("name", ["only right", "left and right", "from left to right", "counterclockwise"])
def test_class_without_a_partner_is_never_flipped(name: str) -> None:
    assert flipped_labels((name, "up", "left"), "list.csv") == (NEVER_FLIPPED, 1, NEVER_FLIPPED)


def test_listed_pairs_take_precedence_over_words() -> None:
    names = ("writing b", "writing d", "left", "right", "reading", "upper left")
    pairs = [["writing b", "writing d"], ["reading"], ["upper left", "upper left"]]
    assert flipped_labels(names, "list.csv", pairs) == (1, 0, 3, 2, NEVER_FLIPPED, 5)
    assert flipped_labels(names, "list.csv", [["left", "left"], ["right"]])[2:4] == (2, NEVER_FLIPPED)


def test_flipping_twice_gives_the_class_back() -> None:
    for names in (SSV2, MOTION):
        labels = flipped_labels(names, "list.csv")
        assert [labels[labels[number]] for number in range(len(names))] == list(range(len(names)))


def test_swapped_classes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="videoattn"):
        flipped_labels((*MOTION, "right"), "list.csv")
    (line,) = caplog.messages
    assert line == (
        "list.csv: flips swap 'rotate_clockwise' and 'rotate_counterclockwise', 'translate_left' and "
        "'translate_right'; never flipped: 'right'; the other 4 classes keep their label"
    )


@pytest.mark.parametrize(
    ("names", "pairs", "message"),
    [
        (None, [], "list.csv: DATA.FLIP_LABELS exchange expects class names.*set DATA.CLASS_NAMES"),
        (("Left", "left"), [], "list.csv: class 'left' occurs twice"),
        (("left", "right"), [["lft", "right"]], "FLIP_PAIRS: unknown class 'lft'.*nearest is 'left'"),
        (("left", "right", "up"), [["left", "up"]], "would turn 'right' into 'left', but not the other way round"),
        (("left", "right"), [["left"]], "would turn 'right' into 'left'"),
    ],
)
def test_class_names_without_a_consistent_flip_are_refused(
    names: Sequence[str] | None, pairs: list[list[str]], message: str
) -> None:
    with pytest.raises(AnnotationError, match=message):
        flipped_labels(names, "list.csv", pairs)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"FLIP_LABELS": "exchange", "RANDOM_FLIP": False}, "FLIP_LABELS exchange expects DATA.RANDOM_FLIP True"),
        ({"FLIP_PAIRS": [["a", "b"]]}, "FLIP_PAIRS expects DATA.FLIP_LABELS exchange, got keep"),
        ({"FLIP_LABELS": "exchange", "FLIP_PAIRS": [["a", "b", "c"]]}, r"expects a list of \[name, name\] or \[name\]"),
        ({"FLIP_LABELS": "exchange", "FLIP_PAIRS": [[]]}, r"expects a list of \[name, name\] or \[name\]"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config.model_validate({"DATA": data})


def settings(folder: Path, **data: Any) -> Config:
    return Config.model_validate(
        {
            "DATA": {
                "PATH_TO_DATA_DIR": str(folder), "PATH_PREFIX": str(folder), "NUM_FRAMES": 4, "SAMPLING_RATE": 1,
                "TRAIN_JITTER_SCALES": (HEIGHT, HEIGHT), "TRAIN_CROP_SIZE": 32, **data,
            },
            "AUG": {"ENABLE": True, "NUM_SAMPLE": 2, "AA_TYPE": "", "COLOR_JITTER": 0.0, "RE_PROB": 0.0},
            "TRAIN": {"BATCH_SIZE": 4}, "MODEL": {"NUM_CLASSES": 2}, "DATA_LOADER": {"NUM_WORKERS": 0},
        }
    )  # fmt: skip


@pytest.fixture
def drifting(tmp_path: Path) -> Path:
    """Four videos of a texture that drifts to the right by a pixel a frame."""
    for number in range(4):
        write_video(tmp_path / f"{number}.mp4", seed=number)
    (tmp_path / "train.csv").write_text("".join(f"{number}.mp4 1\n" for number in range(4)))
    (tmp_path / "names.txt").write_text("drifting left\ndrifting right\n")
    return tmp_path


def drifts_right(clip: torch.Tensor) -> bool:
    """Return True if frames [3, T, H, W] are like the ones before them a pixel further left, rather than right."""
    now, later = clip[:, :-1].float(), clip[:, 1:].float()
    right, left = later[..., 1:] - now[..., :-1], later[..., :-1] - now[..., 1:]
    return bool(right.abs().mean() < left.abs().mean())


@pytest.mark.parametrize("flip_labels", ["exchange", "keep"])
def test_label_of_each_copy_says_how_it_moves_if_asked(drifting: Path, flip_labels: str) -> None:
    cfg = settings(drifting, CLASS_NAMES=str(drifting / "names.txt"), FLIP_LABELS=flip_labels)
    seen: Counter[tuple[bool, int]] = Counter()
    mixed = False
    with closing(build_loader(cfg, "train")) as loader:
        for epoch in range(4):
            for batch in loader.epoch(epoch):
                seen.update(
                    (drifts_right(clip), int(label)) for clip, label in zip(batch.clips, batch.labels, strict=True)
                )
                by_video = [set(batch.labels[batch.videos == video].tolist()) for video in range(4)]
                mixed |= {0, 1} in by_video
    assert set(seen) == ({(True, 1), (False, 0)} if flip_labels == "exchange" else {(True, 1), (False, 1)})
    assert mixed == (flip_labels == "exchange")


def test_a_list_without_names_is_refused_by_the_setting(drifting: Path) -> None:
    with pytest.raises(AnnotationError, match="train.csv: DATA.FLIP_LABELS exchange expects class names"):
        build_loader(settings(drifting, FLIP_LABELS="exchange"), "train")
