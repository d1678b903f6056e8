"""Settings of a run as typed, frozen sections; YAML keys are the field names in capitals (`DATA.NUM_FRAMES`).

Key names follow SlowFast and TimeSformer, so published configuration files keep their meaning. This module and
`videoattn.config_attention` only say which settings exist; files, `_BASE_` and overrides are `videoattn.config_file`'s.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from videoattn.config_attention import Attention
from videoattn.config_types import Fraction, NonNegativeFloat, NotNegative, Positive, Section, Size3, Stride


class Train(Section):
    """How long, how much at once, and when to evaluate and save."""

    enable: bool = Field(True, description="False: tools/train_net.py refuses")
    dataset: Literal["kinetics", "ssv2"] = "kinetics"
    batch_size: Positive = Field(8, description="clips per machine and forward pass, shared by its processes")
    eval_period: Positive = Field(1, description="epochs between evaluations on val")
    checkpoint_period: Positive = Field(1, description="epochs between checkpoints")
    checkpoint_minutes: NonNegativeFloat = Field(10.0, description="minutes between saves within an epoch; 0: none")
    checkpoint_steps: NotNegative = Field(0, description="optimizer steps between checkpoints within an epoch; 0: none")
    keep_checkpoints: Positive = Field(3, description="newest epoch checkpoints kept; the best one is kept besides")
    auto_resume: bool = Field(
        True, description="continue from the newest good checkpoint in OUTPUT_DIR; see docs/training.md on lower rates"
    )
    checkpoint_file_path: str = Field("", description="weights to start from: a file, or zoo:NAME of model_zoo.md")
    checkpoint_epoch_reset: bool = Field(True, description="start at epoch 0 from CHECKPOINT_FILE_PATH's weights alone")
    finetune: bool = Field(
        False, description="weights may be of other classes (a new head) and other clip sizes (resized positions)"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="autocast type; fp16 scales the loss")
    compile: bool = Field(False, description="torch.compile the model")
    deterministic: bool = Field(True, description="ask torch for deterministic algorithms")


class Test(Section):
    """The multi-view evaluation protocol."""

    dataset: Literal["kinetics", "ssv2"] = "kinetics"
    batch_size: Positive = Field(8, description="views per machine and forward pass")
    split: Literal["train", "val", "test"] = "test"
    checkpoint_file_path: str = ""
    num_ensemble_views: Positive = Field(10, description="temporal clips per video")
    num_spatial_crops: Literal[1, 3] = 3
    segment_clips: Literal["same", "shifted"] = Field(
        "same", description="clips of one frame per segment: all alike (published), or each at its own place in them"
    )
    aggregate: Literal["auto", "logits", "probabilities"] = Field(
        "auto", description="what DATA.ENSEMBLE_METHOD combines; auto: logits for TimeSformer, as published"
    )
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    allow_resize: bool = Field(False, description="weights may be of clips of another size; positions are resized")
    allow_new_layers: bool = Field(False, description="layers that the weights do not fill may keep initial values")
    save_results_path: str = Field("", description="folder for results.json and predictions.csv; '': OUTPUT_DIR/test")


class Data(Section):
    """Where videos are and how clips are cut out of them."""

    path_to_data_dir: str = Field("", description="folder with the lists of videos, or with folders of them")
    path_prefix: str = Field("", description="put before every path of an annotation file")
    path_label_separator: str = " "
    shuffle_block: NotNegative = Field(
        0, description="neighbours in the training list that are read close together, as the videos of a shard; 0: none"
    )
    num_frames: Positive = 8
    sampling_rate: Positive = Field(8, description="frames from one sampled frame to the next, at TARGET_FPS")
    target_fps: Annotated[float, Field(gt=0)] = 30
    frames_fps: NonNegativeFloat = Field(0.0, description="of videos that are folders of frames; 0: TARGET_FPS")
    inv_uniform_sample: bool = Field(False, description="draw 1 / jitter scale uniformly instead of the scale")
    sampling: Literal["auto", "dense", "segments"] = Field("auto", description="auto: segments for ssv2, else dense")
    use_offset_sampling: bool = Field(False, description="test clips spread to both ends (MViT); one clip is centred")
    train_jitter_scales: tuple[Positive, Positive] = (256, 320)
    train_jitter_scales_relative: tuple[float, ...] = Field((), description="area of a random-resized crop; () is off")
    train_jitter_aspect_relative: tuple[float, ...] = Field((), description="aspect ratio of a random-resized crop")
    train_crop_size: Positive = 224
    test_crop_size: Positive = 256
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)
    random_flip: bool = True
    flip_labels: Literal["keep", "exchange"] = Field(
        "keep", description="exchange: a flipped clip has the class whose name says right for left"
    )
    flip_pairs: tuple[tuple[str, ...], ...] = Field(
        (), description="classes that flips exchange whatever their names say; one alone is never flipped"
    )
    reverse_input_channel: bool = Field(False, description="feed BGR frames")
    ensemble_method: Literal["sum", "max"] = "sum"
    decoding_backend: Literal["auto", "decord", "pyav", "torchcodec"] = Field(
        "auto", description="auto: PyAV, seeking where exact"
    )
    decoding_short_size: NotNegative = Field(
        0, description="scale larger frames to this short side while decoding; 0: off"
    )
    max_bad_fraction: Fraction = Field(0.05, description="share of undecodable training clips above which a run stops")
    class_names: str = Field("", description="file with one class name a line, in the order of the labels")

    @model_validator(mode="after")
    def _check(self) -> "Data":
        low, high = self.train_jitter_scales
        if low > high:
            raise ValueError(f"TRAIN_JITTER_SCALES expects [low, high] with low <= high, got [{low}, {high}]")
        for name in ("train_jitter_scales_relative", "train_jitter_aspect_relative"):
            value = getattr(self, name)
            if len(value) not in (0, 2) or (value and not 0 < value[0] <= value[1]):
                raise ValueError(f"{name.upper()} expects [] or [low, high] with 0 < low <= high, got {list(value)}")
        if self.flip_labels == "exchange" and not self.random_flip:
            raise ValueError("FLIP_LABELS exchange expects RANDOM_FLIP True, got False")
        if self.flip_pairs and self.flip_labels == "keep":
            raise ValueError("FLIP_PAIRS expects FLIP_LABELS exchange, got keep")
        if not all(len(pair) in (1, 2) for pair in self.flip_pairs):
            pairs = [list(pair) for pair in self.flip_pairs]
            raise ValueError(f"FLIP_PAIRS expects a list of [name, name] or [name], got {pairs}")
        if min(self.std) <= 0:
            raise ValueError(f"STD expects three positive numbers, got {list(self.std)}")
        return self


class Aug(Section):
    """Augmentation beyond crop and flip; off unless ENABLE."""

    enable: bool = False
    device: Literal["cpu", "model"] = Field(
        "cpu", description="where: in the loader's workers, before the crop, or on the model's device, after it"
    )
    num_sample: Positive = Field(1, description="augmented copies of a clip in one batch (repeated augmentation)")
    color_jitter: NonNegativeFloat = 0.4
    aa_type: str = Field("rand-m9-mstd0.5-inc1", description="RandAugment in timm's notation; '' is off")
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    re_prob: Fraction = Field(0.25, description="probability of random erasing")
    re_mode: Literal["pixel", "const"] = "pixel"
    re_count: Positive = 1


class Mixup(Section):
    """Mixup and cutmix of pairs of clips, with smoothed labels."""

    enable: bool = False
    alpha: NonNegativeFloat = 0.8
    cutmix_alpha: NonNegativeFloat = 1.0
    prob: Fraction = 1.0
    switch_prob: Fraction = Field(0.5, description="probability of cutmix where both are on")
    label_smooth_value: Fraction = 0.1


class Model(Section):
    """Which model, and how its loss is formed."""

    model_name: str = Field("timesformer_base", description="a name in videoattn.models.MODELS")
    num_classes: Positive = 400
    loss_func: Literal["cross_entropy", "soft_cross_entropy"] = Field(
        "cross_entropy", description="the same here: targets are soft where MIXUP makes them so"
    )
    dropout_rate: Fraction = Field(0.5, description="before the head of an MViT; TimeSformer has none, as published")
    act_checkpoint: bool = Field(False, description="recompute blocks in the backward pass to save memory")


class TimeSformer(Section):
    """TimeSformer's own settings; a number left out comes from the named size."""

    attention_type: Literal["divided_space_time", "joint_space_time", "space_only"] = "divided_space_time"
    pretrained_model: str = Field("", description="ImageNet ViT to start from: a local file or timm:NAME")
    patch_size: Positive | None = None
    embed_dim: Positive | None = None
    depth: Positive | None = None
    num_heads: Positive | None = None
    mlp_ratio: Annotated[float, Field(gt=0)] | None = None
    init: Literal["published", "from_scratch"] = Field(
        "published", description="from_scratch: without an ImageNet ViT, and for small widths"
    )
    drop_path_rate: Fraction = 0.1
    drop_path_unit: Literal["call", "sample"] = Field(
        "call", description="what is dropped: an attention call (published) or a clip"
    )


class MViT(Section):
    """MViT's own settings; what is left out comes from the named size.

    Lists such as DIM_MUL hold [block, factor], those of strides [block, t, h, w], blocks counted from 0.
    """

    attention_type: Literal["joint", "divided"] = Field(
        "joint", description="divided: along time first, then pooled within frames"
    )
    patch_kernel: Size3 | None = None
    patch_stride: Size3 | None = None
    patch_padding: Size3 | None = None
    embed_dim: Positive | None = None
    num_heads: Positive | None = None
    depth: Positive | None = None
    mlp_ratio: Annotated[float, Field(gt=0)] | None = None
    qkv_bias: bool | None = None
    cls_embed_on: bool | None = Field(None, description="a class token; without, the head sees the tokens' mean")
    dim_mul: tuple[tuple[int, float], ...] | None = Field(None, description="where the width grows: [block, factor]")
    head_mul: tuple[tuple[int, float], ...] | None = Field(None, description="where heads grow: [block, factor]")
    dim_mul_in_att: bool | None = Field(None, description="widths grow in attention (MViTv2), not the MLP before")
    pool_q_stride: tuple[Stride, ...] | None = Field(None, description="where queries are pooled: [block, t, h, w]")
    pool_kv_stride: tuple[Stride, ...] | None = Field(None, description="the same of keys and values")
    pool_kv_stride_adaptive: Size3 | None = Field(None, description="of block 0; falls as queries are pooled")
    pool_kvq_kernel: Size3 | None = Field(None, description="left out by SlowFast's names: one more than the stride")
    use_abs_pos: bool | None = None
    sep_pos_embed: bool | None = Field(None, description="absolute positions apart in space and time; others are not")
    rel_pos_spatial: bool | None = None
    rel_pos_temporal: bool | None = None
    rel_pos_zero_init: bool = False
    residual_pooling: bool | None = Field(None, description="add pooled queries to what attention returns")
    zero_decay_pos_cls: bool = Field(True, description="no weight decay on positions and the class token")
    droppath_rate: Fraction | None = None
    init: Literal["published", "from_scratch"] = Field("published", description="from_scratch: for small widths")


class Solver(Section):
    """Optimizer and learning-rate schedule."""

    base_lr: NonNegativeFloat = 0.1
    lr_policy: Literal["cosine", "steps_with_relative_lrs", "constant"] = "cosine"
    cosine_end_lr: NonNegativeFloat = 0.0
    cosine_after_warmup: bool = Field(False, description="the cosine begins where warm-up ends")
    steps: tuple[float, ...] = Field((), description="epochs at which LRS takes its next value")
    lrs: tuple[float, ...] = Field((), description="learning rates relative to BASE_LR")
    max_epoch: Positive = 300
    momentum: Fraction = 0.9
    dampening: NonNegativeFloat = 0.0
    nesterov: bool = True
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 1e-4
    zero_wd_1d_param: bool = Field(False, description="no weight decay on biases and norms")
    warmup_epochs: NonNegativeFloat = 0.0
    warmup_start_lr: NonNegativeFloat = 0.01
    optimizing_method: Literal["sgd", "adam", "adamw"] = "sgd"
    base_lr_scale_num_shards: bool = Field(False, description="multiply learning rates by the number of machines")
    clip_grad_val: NonNegativeFloat | None = None
    clip_grad_l2norm: NonNegativeFloat | None = None
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0

    @model_validator(mode="after")
    def _check(self) -> "Solver":
        if self.lr_policy == "steps_with_relative_lrs":
            if len(self.steps) != len(self.lrs) or not self.steps or self.steps[0] != 0:
                raise ValueError(
                    "steps_with_relative_lrs expects STEPS starting at 0 and as many LRS, "
                    f"got STEPS {list(self.steps)} and LRS {list(self.lrs)}"
                )
            if list(self.steps) != sorted(self.steps):
                raise ValueError(f"STEPS expects rising epochs, got {list(self.steps)}")
        return self


class Ema(Section):
    """An exponential moving average of the weights, evaluated and saved beside them."""

    enabled: bool = False
    decay: Fraction = 0.9999


class DataLoader(Section):
    num_workers: NotNegative = 4
    pin_memory: bool = True
    prefetch_factor: Positive = Field(2, description="batches decoded ahead of the one in use")
    limit_seconds: NonNegativeFloat = Field(
        120.0, description="a video that takes a worker longer can't be decoded; 0: no limit"
    )


class TensorBoard(Section):
    enable: bool = False


class Config(Section):
    """Everything that a run depends on."""

    train: Train = Train()
    test: Test = Test()
    data: Data = Data()
    aug: Aug = Aug()
    mixup: Mixup = Mixup()
    model: Model = Model()
    timesformer: TimeSformer = TimeSformer()
    mvit: MViT = MViT()
    attention: Attention = Attention()
    solver: Solver = Solver()
    ema: Ema = Ema()
    data_loader: DataLoader = DataLoader()
    tensorboard: TensorBoard = TensorBoard()
    global_batch_size: NotNegative = Field(0, description="clips per optimizer step, accumulated; 0: one forward pass")
    output_dir: str = "runs"
    rng_seed: int = 0
    log_period: Positive = Field(10, description="optimizer steps between log lines")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dist_backend: Literal["auto", "gloo", "nccl"] = "auto"
