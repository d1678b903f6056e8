"""Settings of videos: where they are, how clips are cut out of them, augmented, mixed and read."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from videoattn.config.types import (
    Fraction,
    FractionBelowOne,
    FrameRate,
    Frames,
    Growth,
    NonNegativeFloat,
    NotNegative,
    PixelLevel,
    Pixels,
    Positive,
    Section,
)


class Data(Section):
    """Places of videos, and how clips are cut out of them."""

    path_to_data_dir: str = Field("", description="folder with the lists of videos, or with folders of them")
    path_prefix: str = Field("", description="prefix of every path in an annotation file")
    path_label_separator: str = " "
    shuffle_block: NotNegative = Field(
        0, description="neighbours in the training list to read close together, as for shards; 0: none"
    )
    num_frames: Frames = 8
    sampling_rate: Frames = Field(8, description="stride between sampled frames, at TARGET_FPS")
    target_fps: FrameRate = 30
    frames_fps: Annotated[float, Field(ge=0, le=1000)] = Field(
        0.0, description="frame rate of videos that are folders of frames; 0: TARGET_FPS"
    )
    inv_uniform_sample: bool = Field(False, description="draw 1 / jitter scale uniformly instead of the scale")
    sampling: Literal["auto", "dense", "segments", "by_index", "interleaved"] = Field(
        "auto",
        description="auto: segments for ssv2, else dense; by_index: dense in frame numbers, whatever the rate, and "
        "interleaved: segments whose test clips alternate (VideoMAE)",
    )
    num_segments: Positive = Field(
        1, description="windows, by_index, that make one clip of NUM_FRAMES and are encoded apart (V-JEPA 2)"
    )
    use_offset_sampling: bool = Field(
        False, description="spread test clips to both ends (MViT); a single clip is centred"
    )
    train_jitter_scales: tuple[Pixels, Pixels] = (256, 320)
    train_jitter_scales_relative: tuple[Fraction, ...] = Field(
        (), description="area of a random-resized crop; () is off"
    )
    train_jitter_aspect_relative: tuple[Growth, ...] = Field((), description="aspect ratio of a random-resized crop")
    train_crop_size: Pixels = 224
    test_crop_size: Pixels = 224
    mean: tuple[PixelLevel, PixelLevel, PixelLevel] = (0.45, 0.45, 0.45)
    std: tuple[PixelLevel, PixelLevel, PixelLevel] = (0.225, 0.225, 0.225)
    random_flip: bool = True
    flip_labels: Literal["keep", "exchange"] = Field(
        "keep", description="exchange: a flipped clip gets the class with left and right swapped in its name"
    )
    flip_pairs: tuple[tuple[str, ...], ...] = Field(
        (), description="classes that flips swap, whatever their names; a single class is never flipped"
    )
    reverse_input_channel: bool = Field(False, description="feed BGR frames")
    ensemble_method: Literal["sum", "max"] = "sum"
    decoding_backend: Literal["auto", "decord", "pyav", "torchcodec"] = Field(
        "auto", description="auto: PyAV, with seeking where it is exact"
    )
    decoding_short_size: Annotated[int, Field(ge=0, le=8192)] = Field(
        0, description="scale larger frames to this short side while decoding; 0: off"
    )
    max_bad_fraction: Fraction = Field(0.05, description="share of undecodable training clips above which a run stops")
    class_names: str = Field("", description="file with one class name a line, in the order of the labels")

    @model_validator(mode="after")
    def _check(self) -> "Data":
        low, high = self.train_jitter_scales
        if low > high:
            raise ValueError(f"DATA.TRAIN_JITTER_SCALES expects [low, high] with low <= high, got [{low}, {high}]")
        for name in ("train_jitter_scales_relative", "train_jitter_aspect_relative"):
            value = getattr(self, name)
            if len(value) not in (0, 2) or (value and not 0 < value[0] <= value[1]):
                raise ValueError(
                    f"DATA.{name.upper()} expects [] or [low, high] with 0 < low <= high, got {list(value)}"
                )
        if bool(self.train_jitter_scales_relative) != bool(self.train_jitter_aspect_relative):
            raise ValueError(
                "DATA.TRAIN_JITTER_SCALES_RELATIVE and DATA.TRAIN_JITTER_ASPECT_RELATIVE expect both [low, high] or "
                f"both [], got {list(self.train_jitter_scales_relative)} and {list(self.train_jitter_aspect_relative)}"
            )
        if self.num_segments > 1 and self.sampling != "by_index":
            raise ValueError(
                f"DATA.NUM_SEGMENTS {self.num_segments} expects DATA.SAMPLING by_index, got {self.sampling}"
            )
        if self.num_frames % self.num_segments:
            raise ValueError(
                f"DATA.NUM_FRAMES expects a multiple of DATA.NUM_SEGMENTS {self.num_segments}, got {self.num_frames}"
            )
        if self.sampling in ("by_index", "interleaved"):
            names = ("use_offset_sampling", "target_fps", *(["sampling_rate"] * (self.sampling != "by_index")))
            defaults = {name: type(self).model_fields[name].default for name in names}
            if odd := {name: value for name, value in defaults.items() if getattr(self, name) != value}:
                given = ", ".join(f"DATA.{name.upper()} {getattr(self, name)}" for name in odd)
                instead = " ".join(f"DATA.{name.upper()} {value}" for name, value in odd.items())
                raise ValueError(f"{given}: no effect with DATA.SAMPLING {self.sampling}; set {instead}, the default")
        if self.flip_labels == "exchange" and not self.random_flip:
            raise ValueError("DATA.FLIP_LABELS exchange expects DATA.RANDOM_FLIP True, got False")
        if self.flip_pairs and self.flip_labels == "keep":
            raise ValueError("DATA.FLIP_PAIRS expects DATA.FLIP_LABELS exchange, got keep")
        if not all(len(pair) in (1, 2) for pair in self.flip_pairs):
            pairs = [list(pair) for pair in self.flip_pairs]
            raise ValueError(f"DATA.FLIP_PAIRS expects a list of [name, name] or [name], got {pairs}")
        if min(self.std) < 0.001:
            raise ValueError(f"DATA.STD expects three numbers of at least 0.001, got {list(self.std)}")
        if 0 < self.frames_fps < 0.01:
            raise ValueError(f"DATA.FRAMES_FPS expects 0 (TARGET_FPS) or at least 0.01, got {self.frames_fps}")
        return self


class Aug(Section):
    """Augmentation beyond crop and flip; off unless ENABLE."""

    enable: bool = False
    device: Literal["cpu", "model"] = Field(
        "cpu", description="where: in the loader's workers, before the crop, or on the model's device, after it"
    )
    num_sample: Annotated[int, Field(ge=1, le=256)] = Field(
        1, description="augmented copies of a clip in one batch (repeated augmentation)"
    )
    color_jitter: Annotated[float, Field(ge=0, le=10)] = 0.4
    aa_type: str = Field("rand-m9-mstd0.5-inc1", description="RandAugment in timm's notation; '' is off")
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    re_prob: Fraction = Field(0.25, description="probability of random erasing")
    re_mode: Literal["pixel", "const"] = "pixel"
    re_count: Annotated[int, Field(ge=1, le=1000)] = 1


class Mixup(Section):
    """Mixup and cutmix of pairs of clips, with smoothed labels."""

    enable: bool = False
    alpha: Annotated[float, Field(ge=0, le=1000)] = 0.8
    cutmix_alpha: Annotated[float, Field(ge=0, le=1000)] = 1.0
    prob: Fraction = 1.0
    switch_prob: Fraction = Field(0.5, description="probability of cutmix if both are on")
    label_smooth_value: FractionBelowOne = 0.1

    @model_validator(mode="after")
    def _check(self) -> "Mixup":
        if self.enable and not self.alpha and not self.cutmix_alpha:
            raise ValueError("MIXUP.ENABLE True expects MIXUP.ALPHA or MIXUP.CUTMIX_ALPHA above 0, got 0 and 0")
        return self


class DataLoader(Section):
    num_workers: Annotated[int, Field(ge=0, le=1024)] = 4
    pin_memory: bool = True
    prefetch_factor: Annotated[int, Field(ge=1, le=1024)] = Field(
        2, description="batches decoded ahead of the one in use"
    )
    limit_seconds: NonNegativeFloat = Field(
        120.0, description="time limit for decoding a clip; a slower video counts as undecodable; 0: none"
    )
