"""Published checkpoints: addresses, scores, and the protocols of the scores."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from videoattn.config import Config
from videoattn.config.load import load_config
from videoattn.files import cache_folder, file_sha256, shipped_folder
from videoattn.models.weights.departures import Departure
from videoattn.zoo.download import DownloadError, fetch
from videoattn.zoo.hub import web_address

Dataset = Literal["kinetics400", "kinetics600", "kinetics710", "ssv2", "diving48", "motion", "unlabelled"]
NUM_CLASSES: dict[Dataset, int] = {
    "kinetics400": 400, "kinetics600": 600, "kinetics710": 710, "ssv2": 174, "diving48": 48, "motion": 8,
}  # fmt: skip
# Of these the publishers number the classes by the alphabet.
_BY_ALPHABET = ("kinetics400", "kinetics600", "ssv2")
# How many videos the validation set has, and had for people who reported results on what was left of it.
NUM_VIDEOS: dict[Dataset, tuple[int, ...]] = {
    "kinetics400": (19404, 19761, 19796, 19870, 19888),
    "kinetics600": (30000,),  # 50 of each class; how many of them others had is not known
    "kinetics710": (66803,),
    "ssv2": (24777,),
    "diving48": (1970,),
    "motion": (400,),
}
# The share of the smallest of those sets that has to be evaluated for a comparison with a published accuracy.
MIN_SHARE = 0.9
_LEFT_OVER = ("pos_embed",)  # in files of V-JEPA 2, beside rotary positions


@dataclass(frozen=True)
class Protocol:
    """The evaluation protocol of a row: everything that changes a score besides the weights.

    `spread` clips reach both ends of a video and a single one is centred; otherwise a single clip is the video's first.
    `num_frames` are those of a window; a clip is `num_segments` of them one after another. `sampling_rate` has no
    effect where clips are interleaved. `short_side` is that of frames before a single crop is cut out of them (its
    first number; the second is of training alone); three crops are cut from frames of side `crop`. `aggregate` is what
    the views' sum is taken of.
    """

    num_frames: int
    sampling_rate: int
    crop: int
    clips: int
    crops: int
    aggregate: Literal["logits", "probabilities"]
    sampling: Literal["dense", "segments", "by_index", "interleaved"] = "dense"
    num_segments: int = 1
    spread: bool = False
    crop_rounding: Literal["up", "down", "whole_steps"] = "up"
    short_side: tuple[int, int] = (256, 320)
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)
    channel_order: Literal["RGB", "BGR"] = "RGB"

    def settings(self, dataset: Dataset) -> dict[str, object]:
        """Return the protocol as settings, by dotted key."""
        return {
            "TEST.DATASET": "ssv2" if dataset == "ssv2" else "kinetics",
            "TEST.SPLIT": "val" if dataset == "ssv2" else "test",
            "TEST.NUM_ENSEMBLE_VIEWS": self.clips,
            "TEST.NUM_SPATIAL_CROPS": self.crops,
            "TEST.AGGREGATE": self.aggregate,
            "TEST.CROP_ROUNDING": self.crop_rounding,
            "DATA.NUM_FRAMES": self.num_frames * self.num_segments,
            **({} if self.sampling == "interleaved" else {"DATA.SAMPLING_RATE": self.sampling_rate}),
            "DATA.SAMPLING": self.sampling,
            "DATA.NUM_SEGMENTS": self.num_segments,
            "DATA.USE_OFFSET_SAMPLING": self.spread,
            "DATA.TRAIN_JITTER_SCALES": self.short_side,
            "DATA.TRAIN_CROP_SIZE": self.crop,
            "DATA.TEST_CROP_SIZE": self.crop,
            "DATA.MEAN": self.mean,
            "DATA.STD": self.std,
            "DATA.REVERSE_INPUT_CHANNEL": self.channel_order == "BGR",
            "DATA.TARGET_FPS": 30.0,
            "DATA.DECODING_SHORT_SIZE": 0,
            "DATA.ENSEMBLE_METHOD": "sum",
            "TEST.SEGMENT_CLIPS": "same",
        }


@dataclass(frozen=True)
class ZooRow:
    """One published checkpoint.

    `model` is a name in MODELS and `settings` what else its config says; `file` is the weights' name, `urls` are places
    to fetch it from, best first, and `sha256` its checksum where that is known. `family` says whose names the tensors
    have, as in `videoattn.models.timesformer.names`. Accuracies in percent as published, parameters and
    multiply-accumulates of one view counted here. Where there is an `encoder`, its row, the file holds a probe alone,
    which is evaluated on the features of that encoder. A row without an accuracy is such an encoder. `licence` is
    that of the publisher's repository. `clips_from` are the arguments of `videoattn motion` that render the clips of a
    row of this project.
    """

    name: str
    title: str
    dataset: Dataset
    model: str
    protocol: Protocol
    file: str
    family: str
    top1: float | None
    top5: float | None
    parameters: float
    gmacs: float
    source: str
    licence: str
    urls: tuple[str, ...] = ()
    sha256: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    note: str = ""
    trained_by: str = ""
    encoder: "ZooRow | None" = None
    clips_from: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Tell whether the weights come with the package."""
        return bool(self.clips_from)

    @property
    def tolerance(self) -> float:
        """Return the difference, in percent, that a faithful evaluation may show; copies of others' videos differ."""
        return 0.0 if self.is_ours else 0.5

    def all_settings(self) -> dict[str, object]:
        """Return every setting of the row's evaluation, by dotted key."""
        fixed: dict[str, object] = {"MODEL.MODEL_NAME": self.model}
        if self.dataset in NUM_CLASSES:
            fixed["MODEL.NUM_CLASSES"] = NUM_CLASSES[self.dataset]
        return {**fixed, **self.protocol.settings(self.dataset), **self.settings}

    def config(self, overrides: Sequence[object] = ()) -> Config:
        """Return the config of the row's evaluation, with KEY, VALUE pairs on top."""
        pairs = [item for pair in self.all_settings().items() for item in pair]
        return load_config(None, [*pairs, "OUTPUT_DIR", f"runs/zoo/{self.name}", *overrides])

    def departures(self, overrides: Sequence[object]) -> list[Departure]:
        """Return the published settings of protocol and model that `overrides` change."""
        published, given = self.config().model_dump(by_alias=True), self.config(overrides).model_dump(by_alias=True)

        def look_up(settings: Mapping[str, object], key: str) -> object:
            value: object = settings
            for part in key.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            return value

        pairs = {key: (look_up(published, key), look_up(given, key)) for key in self.all_settings()}
        return [Departure(key, str(old), str(new)) for key, (old, new) in pairs.items() if old != new]


def locate_weights(row: ZooRow, given: str | None = None) -> Path:
    """Return the file with the row's weights: `given`, a shipped one, or one of the cache, fetched if absent.

    That is the encoder's file where the row has a probe of its own, which `locate_probe` returns. A file of the cache
    is taken only if `check_weights` accepts it; a shipped one has a known checksum. Raises ValueError that says which
    file to put where, or which to remove.
    """
    if given is not None:
        return Path(given)
    if row.encoder is not None:
        return locate_weights(row.encoder)
    if row.is_ours:
        path = shipped_folder("model_zoo") / row.file
        if not path.is_file():
            raise ValueError(f"{path} is missing: it comes with videoattn, so install or check it out again")
        if (found := file_sha256(path)) != row.sha256:
            raise ValueError(f"{path} has sha256 {found}, expected {row.sha256}: install or check it out again")
        return path
    return _fetch(row, partial(check_weights, row), "--weights")


def locate_probe(row: ZooRow, given: str | None = None, weights: Path | None = None) -> Path | None:
    """Return the file with the row's probe: `given`, or one of the cache, fetched if absent; None if it has none.

    `weights` is the encoder's file, by default that of `locate_weights`. Raises ValueError as `locate_weights` does.
    """
    if given is not None or row.encoder is None:
        return None if given is None else Path(given)
    weights = locate_weights(row) if weights is None else weights
    return _fetch(row, lambda path: check_weights(row, weights, probe=path), "--probe")


def _fetch(row: ZooRow, accept: Callable[[Path], None], option: str) -> Path:
    path = cache_folder() / row.file
    try:
        return fetch(row.urls, path, row.sha256, accept)
    except DownloadError as error:
        if path.exists():
            raise ValueError(f"{row.name} needs {row.file}: {error}") from error
        places = "\n  ".join(map(web_address, row.urls))
        raise ValueError(
            f"{row.name} needs {row.file}, which is not at {path}, and fetching it failed: {error}\n"
            f"Fetch it where there is a network, from\n  {places}\n"
            f"and put it at {path}, or name the file instead of the row (evaluation: {option} FILE)"
        ) from error


def check_weights(row: ZooRow, path: Path, probe: Path | None = None) -> None:
    """Raise ValueError unless a file holds weights of the row's model under its publisher's names.

    Where the row has an encoder, `path` holds that and `probe` the row's own tensors. Code that may be in a file does
    not run.
    """
    import torch  # here, so that rows can be listed without it

    from videoattn.models import build_model
    from videoattn.models.weights.load import load_weights

    with torch.device("meta"):
        model = build_model(row.config())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is a no-op")  # nothing is copied: names and shapes are checked
        report = load_weights(model, path, probe=probe)
    path = probe or path
    if report.family != row.family:
        raise ValueError(f"{path} names its tensors as {report.family} does, expected the names of {row.family}")
    others = [name for name in (*report.initialised, *report.dropped) if name not in _LEFT_OVER]
    if others:
        raise ValueError(f"{path} is of another model than {row.model}: {', '.join(others[:8])} are not in both")


def check_class_order(row: ZooRow, names: Sequence[str] | None) -> None:
    """Raise ValueError if the videos' classes are numbered differently from those of the row's weights.

    Published weights for Kinetics and Something-Something number the classes by the alphabet.
    """
    if names is None or row.dataset not in _BY_ALPHABET:
        return
    keys = [name.replace("_", " ").lower() for name in names]
    for number, (first, second) in enumerate(zip(keys, keys[1:], strict=False)):
        if first > second:
            raise ValueError(
                f"classes {number} and {number + 1} of the videos are {names[number]!r} and {names[number + 1]!r}, but "
                f"{row.name} numbers its classes by the alphabet: number the labels of the annotation file so, or "
                "leave DATA.CLASS_NAMES out if its names, not the labels, are in another order"
            )


def compare(row: ZooRow, top1: float, top5: float | None, evaluated: int, listed: int, decoder: str) -> list[str]:
    """Return published against measured accuracy in percent, in lines for people, with what may explain a difference.

    Nothing is compared where less than `MIN_SHARE` of the smallest set in use was evaluated.
    """
    assert row.top1 is not None  # encoders are not evaluated
    sizes = NUM_VIDEOS[row.dataset]
    if evaluated < MIN_SHARE * min(sizes):
        return [
            f"{row.name}: {evaluated} of {listed} listed videos were evaluated, too few to compare with the published "
            f"{row.top1:.2f} %, which is of {' or '.join(map(str, sizes))} videos"
        ]
    lines = [f"{'':8}{'published':>11}{'measured':>11}{'difference':>12}"]
    for what, published, measured in (("top-1", row.top1, top1), ("top-5", row.top5, top5)):
        if published is not None and measured is not None:
            lines.append(f"{what:8}{published:11.2f}{measured:11.2f}{measured - published:+12.2f}")
    off = abs(top1 - row.top1)
    if off <= row.tolerance + 0.005:
        within = "to the digit" if row.tolerance == 0 else f"within {row.tolerance:g} points"
        return [*lines, f"{row.name}: reproduced, {within}"]
    reasons = []
    if evaluated < listed:
        reasons.append(f"{listed - evaluated} of {listed} listed videos could not be evaluated")
    if evaluated not in sizes:
        reasons.append(f"{evaluated} videos were evaluated; the sets in use have {', '.join(map(str, sizes))}")
    elif not row.is_ours:
        reasons.append("copies of the videos differ in size and encoding from one owner to the next")
    reasons.append(f"frames were decoded by {decoder}")
    if row.note:
        reasons.append(row.note)
    return [
        *lines,
        f"{row.name}: differs by {off:.2f} points, more than {row.tolerance:g}:",
        *(f"  {r}" for r in reasons),
    ]
