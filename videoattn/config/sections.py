"""Settings of a run as typed, frozen sections; YAML keys are the field names in capitals (`DATA.NUM_FRAMES`).

Key names follow SlowFast and TimeSformer, so published configuration files keep their meaning. This module and those
of the parts (`config_data`, `config_attention`, `config_solver`) only say which settings exist; files, `_BASE_` and
overrides are `videoattn.config.load`'s.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from videoattn.config.attention import Attention
from videoattn.config.data import Aug, Data, DataLoader, Mixup
from videoattn.config.probe import Probe
from videoattn.config.solver import Solver
from videoattn.config.types import (
    Block,
    Blocks,
    Clips,
    Epochs,
    Eps,
    FractionBelowOne,
    Growth,
    Heads,
    NonNegativeFloat,
    NotNegative,
    Padding3,
    Pixels,
    Positive,
    Section,
    Size3,
    Stride,
    Views,
    Width,
)


class Train(Section):
    """Training: its batches, and when to evaluate and save."""

    enable: bool = Field(True, description="False: `videoattn train` refuses to run")
    dataset: Literal["kinetics", "ssv2"] = "kinetics"
    batch_size: Clips = Field(8, description="clips per machine and forward pass, shared by its processes")
    eval_period: Epochs = Field(1, description="epochs between evaluations on val")
    checkpoint_period: Epochs = Field(1, description="epochs between checkpoints")
    checkpoint_minutes: NonNegativeFloat = Field(10.0, description="minutes between saves within an epoch; 0: none")
    checkpoint_steps: NotNegative = Field(0, description="optimizer steps between checkpoints within an epoch; 0: none")
    keep_checkpoints: Positive = Field(
        3, description="number of newest epoch checkpoints to keep; the best one is kept as well"
    )
    auto_resume: bool = Field(
        True, description="continue from the newest good checkpoint in OUTPUT_DIR (docs/training.md)"
    )
    checkpoint_file_path: str = Field("", description="weights to start from: a file, or zoo:NAME of model_zoo.md")
    checkpoint_epoch_reset: bool = Field(True, description="start at epoch 0 from the weights in CHECKPOINT_FILE_PATH")
    finetune: bool = Field(
        False, description="allow weights of other classes (a new head) and clip sizes (resized positions)"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="autocast type; fp16 scales the loss")
    compile: bool = Field(False, description="torch.compile the model")
    deterministic: bool = Field(True, description="ask torch for deterministic algorithms")


class Test(Section):
    """The multi-view evaluation protocol."""

    dataset: Literal["kinetics", "ssv2"] = "kinetics"
    batch_size: Clips = Field(8, description="views per machine and forward pass")
    split: Literal["train", "val", "test"] = "test"
    checkpoint_file_path: str = ""
    num_ensemble_views: Views = Field(10, description="temporal clips per video")
    num_spatial_crops: Literal[1, 3] = 3
    crop_rounding: Literal["up", "down", "whole_steps"] = Field(
        "up",
        description="where three crops begin if the rest of the long side is odd: the centre rounded up (SlowFast) or "
        "down (VideoMAE), or all at multiples of the half, rounded down (V-JEPA 2)",
    )
    segment_clips: Literal["same", "shifted"] = Field(
        "same", description="clips of one frame per segment: all the same (published), or at shifted positions"
    )
    aggregate: Literal["auto", "logits", "probabilities"] = Field(
        "auto", description="values that DATA.ENSEMBLE_METHOD combines; auto: as published"
    )
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    allow_resize: bool = Field(False, description="allow weights of another clip size; positions are resized")
    allow_new_layers: bool = Field(
        False, description="allow layers that the weights do not fill to keep initial values"
    )
    save_results_path: str = Field("", description="folder for results.json and predictions.csv; '': OUTPUT_DIR/test")


class Model(Section):
    """The model, its classes, dropout and recomputation."""

    model_name: str = Field("timesformer_base", description="a name in videoattn.models.MODELS")
    num_classes: Annotated[int, Field(ge=1, le=10**6)] = 400
    dropout_rate: FractionBelowOne = Field(
        0.5, description="dropout before the head of an MViT; TimeSformer has none, as published"
    )
    act_checkpoint: bool = Field(False, description="recompute blocks in the backward pass to save memory")
    freeze: Literal["none", "encoder"] = Field(
        "none", description="encoder: train probes (PROBE) on the features of TRAIN.CHECKPOINT_FILE_PATH"
    )


class TimeSformer(Section):
    """TimeSformer's own settings; a number that is left out comes from the named size."""

    attention_type: Literal["divided_space_time", "joint_space_time", "space_only"] = "divided_space_time"
    pretrained_model: str = Field("", description="ImageNet ViT to start from: a local file or timm:NAME")
    patch_size: Pixels | None = None
    embed_dim: Width | None = None
    depth: Blocks | None = None
    num_heads: Heads | None = None
    mlp_ratio: Growth | None = None
    init: Literal["published", "from_scratch"] = Field(
        "published", description="from_scratch: for training without an ImageNet ViT and for small widths"
    )
    drop_path_rate: FractionBelowOne = 0.1
    drop_path_unit: Literal["call", "sample"] = Field(
        "call", description="unit to drop: an attention sequence (call, published) or a clip (sample)"
    )


class MViT(Section):
    """MViT's own settings; a value that is left out comes from the named size.

    Lists such as DIM_MUL hold [block, factor], those of strides [block, t, h, w], blocks counted from 0.
    """

    attention_type: Literal["joint", "divided"] = Field(
        "joint", description="divided: attention along time, then pooled within frames"
    )
    patch_kernel: Size3 | None = None
    patch_stride: Size3 | None = None
    patch_padding: Padding3 | None = None
    embed_dim: Width | None = None
    num_heads: Heads | None = None
    depth: Blocks | None = None
    mlp_ratio: Growth | None = None
    qkv_bias: bool | None = None
    cls_embed_on: bool | None = Field(None, description="use a class token; without, the head sees the mean token")
    dim_mul: tuple[tuple[Block, Growth], ...] | None = Field(
        None, description="blocks at which the width grows: [block, factor]"
    )
    head_mul: tuple[tuple[Block, Growth], ...] | None = Field(
        None, description="blocks at which heads multiply: [block, factor]"
    )
    dim_mul_in_att: bool | None = Field(None, description="grow widths in attention (MViTv2), not in the MLP before")
    pool_q_stride: tuple[Stride, ...] | None = Field(None, description="strides of query pooling: [block, t, h, w]")
    pool_kv_stride: tuple[Stride, ...] | None = Field(None, description="strides of key and value pooling")
    pool_kv_stride_adaptive: Size3 | None = Field(
        None, description="key and value stride of block 0; falls as queries are pooled"
    )
    pool_kvq_kernel: Size3 | None = Field(
        None, description="kernel; absent in a SlowFast file: one more than the stride"
    )
    use_abs_pos: bool | None = None
    sep_pos_embed: bool | None = Field(None, description="separate absolute positions in space and time (must be True)")
    rel_pos_spatial: bool | None = None
    rel_pos_temporal: bool | None = None
    rel_pos_zero_init: bool = False
    residual_pooling: bool | None = Field(None, description="add pooled queries to the output of attention")
    zero_decay_pos_cls: bool = Field(True, description="no weight decay on positions and the class token")
    droppath_rate: FractionBelowOne | None = None
    init: Literal["published", "from_scratch"] = Field("published", description="from_scratch: for small widths")

    @model_validator(mode="after")
    def _check(self) -> "MViT":
        for name in ("dim_mul", "head_mul", "pool_q_stride", "pool_kv_stride"):
            blocks = [block for block, *_ in getattr(self, name) or ()]
            twice = sorted({block for block in blocks if blocks.count(block) > 1})
            if twice:
                raise ValueError(f"MVIT.{name.upper()} expects one entry for a block, got several for {twice}")
        return self


class VideoViT(Section):
    """Settings of the plain video ViTs (VideoMAE, V-JEPA 2); a value that is left out comes from the named size."""

    patch_size: Pixels | None = None
    tubelet: Positive | None = Field(None, description="frames of a token")
    embed_dim: Width | None = None
    depth: Blocks | None = None
    num_heads: Heads | None = None
    mlp_dim: Positive | None = Field(None, description="hidden width of the MLPs; left out with EMBED_DIM: 4 EMBED_DIM")
    bias: Literal["all", "qv", "none"] | None = Field(None, description="which of q, k and v have a bias")
    positions: Literal["sincos_1d", "learned", "rope_tiled", "rope_interleaved"] | None = None
    head: Literal["mean", "mean_tokens", "class_token", "attentive", "none"] | None = Field(
        None,
        description="mean of tokens, normalised; of normalised tokens; a class token; V-JEPA 2's attentive probe; or "
        "an encoder without a head",
    )
    probe_depth: NotNegative | None = Field(None, description="blocks of self-attention in an attentive probe")
    probe_heads: Heads | None = None
    probe_levels: tuple[Block, ...] | None = Field(
        None, description="blocks whose normalised tokens an attentive probe sees in a row; left out: the last block"
    )
    norm_eps: Eps | None = Field(None, description="eps of the norms but those of the head; 1e-6, as published")
    head_eps: Eps | None = Field(None, description="eps of the head's norms; 1e-6, in a probe 1e-5, as published")
    drop_path_rate: FractionBelowOne = 0.1
    init: Literal["published", "from_scratch"] = Field("published", description="from_scratch: for small widths")


class Ema(Section):
    """An exponential moving average of the weights, evaluated and saved beside them."""

    enabled: bool = False
    decay: FractionBelowOne = 0.9999


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
    video_vit: VideoViT = VideoViT()
    attention: Attention = Attention()
    solver: Solver = Solver()
    probe: Probe = Probe()
    ema: Ema = Ema()
    data_loader: DataLoader = DataLoader()
    tensorboard: TensorBoard = TensorBoard()
    global_batch_size: Annotated[int, Field(ge=0, le=2**20)] = Field(
        0, description="clips per optimizer step, by accumulation; 0: those of one forward pass"
    )
    output_dir: str = "runs"
    rng_seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] = 0
    log_period: Positive = Field(10, description="optimizer steps between log lines")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dist_backend: Literal["auto", "gloo", "nccl"] = "auto"

    @model_validator(mode="after")
    def _check(self) -> "Config":
        """Raise ValueError where a training run could not form its batches, however many processes share them."""
        size = self.train.batch_size
        if self.train.enable and self.mixup.enable and size % 2:
            raise ValueError(f"TRAIN.BATCH_SIZE expects an even number with MIXUP.ENABLE True, got {size}")
        if self.train.enable and self.global_batch_size % size:
            raise ValueError(
                f"GLOBAL_BATCH_SIZE expects 0 or a multiple of TRAIN.BATCH_SIZE {size}, got {self.global_batch_size}"
            )
        self._check_probe()
        return self

    def _check_probe(self) -> None:
        """Raise ValueError for settings that have no effect on probes, or on anything but probes."""
        probe = self.probe
        if self.model.freeze == "none":
            for name in ("lrs", "weight_decays", "cache"):
                if getattr(probe, name):
                    raise ValueError(f"PROBE.{name.upper()} expects MODEL.FREEZE encoder, got none")
            return
        refused = {
            "TRAIN.PRECISION expects fp32 or bf16": self.train.precision == "fp16",  # probes would share a loss scale
            "EMA.ENABLED expects False": self.ema.enabled,
            "SOLVER.LAYER_DECAY expects 1": self.solver.layer_decay < 1,
            "TIMESFORMER.PRETRAINED_MODEL expects ''": bool(self.timesformer.pretrained_model),
            "SOLVER.BASE_LR, whose schedule PROBE.LRS follow, expects more than 0": not self.solver.base_lr,
        }
        for problem, found in refused.items():
            if found:
                raise ValueError(f"{problem}, since MODEL.FREEZE is encoder")
        if probe.cache and self.mixup.enable:
            raise ValueError("MIXUP.ENABLE expects False, since PROBE.CACHE keeps the features of single clips")
