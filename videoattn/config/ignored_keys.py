"""Ignored keys of SlowFast's and TimeSformer's settings, each with the reason, and names of their models.

A key that is ignored only for some values lists them; any other value is refused. Every key is listed by its full
name, so that a misspelt one is an error. Source: both projects' default settings, SlowFast's older ones included,
and the code that reads them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ignored:
    """The reason why a key is ignored, and the `values` for which it is; None means all."""

    reason: str
    values: tuple[object, ...] | None = None

    def allows(self, value: object) -> bool:
        """Return whether the key is ignored at this value."""
        return self.values is None or any(is_same(value, allowed) for allowed in self.values)


def is_same(given: object, expected: object) -> bool:
    """Compare values, with True different from 1."""
    return isinstance(given, bool) == isinstance(expected, bool) and given == expected


def _unsupported(what: str, *values: object) -> Ignored:
    return Ignored(f"other values request {what}, which is not supported", values)


def _section(name: str, reason: str, keys: str) -> dict[str, Ignored]:
    return {f"{name}.{key}": Ignored(reason) for key in keys.split()}


_LAUNCHER = "the launcher decides how many processes and machines there are"
_OTHER_FAMILY = "no model built here reads it"
_IMAGES = "read for still images only"

IGNORED: dict[str, Ignored] = {
    "NUM_GPUS": Ignored(_LAUNCHER),
    "NUM_SHARDS": Ignored(_LAUNCHER),
    "SHARD_ID": Ignored(_LAUNCHER),
    "TASK": _unsupported("another task than classification", ""),
    "LOG_MODEL_INFO": Ignored("`videoattn profile` counts parameters and multiply-accumulates"),
    "MODEL.LOSS_FUNC": _unsupported("a loss other than cross-entropy", "cross_entropy", "soft_cross_entropy"),
    "TEST.ENABLE": Ignored("`videoattn test` evaluates, `videoattn train` does not"),
    **_section(
        "BN", "TimeSformer and MViT have no batch normalisation, and pytorchvideo's networks have their own",
        "EPSILON GLOBAL_SYNC MOMENTUM NORM_TYPE NUM_BATCHES_PRECISE NUM_SPLITS NUM_SYNC_DEVICES USE_PRECISE_STATS "
        "WEIGHT_DECAY",
    ),
    **_section(
        "RESNET", _OTHER_FAMILY,
        "DEPTH INPLACE_RELU NUM_BLOCK_TEMP_KERNEL NUM_GROUPS SPATIAL_DILATIONS SPATIAL_STRIDES STRIDE_1X1 "
        "TRANS_FUNC WIDTH_PER_GROUP ZERO_INIT_FINAL_BN ZERO_INIT_FINAL_CONV",
    ),
    **_section("NONLOCAL", _OTHER_FAMILY, "GROUP INSTANTIATION LOCATION POOL"),
    **_section("SLOWFAST", _OTHER_FAMILY, "ALPHA BETA_INV FUSION_CONV_CHANNEL_RATIO FUSION_KERNEL_SZ"),
    **_section(
        "X3D", _OTHER_FAMILY,
        "BN_LIN5 BOTTLENECK_FACTOR CHANNELWISE_3x3x3 DEPTH_FACTOR DIM_C1 DIM_C5 SCALE_RES2 WIDTH_FACTOR",
    ),
    "MVIT.MODE": _unsupported("pooling other than by convolution", "conv"),
    "MVIT.POOL_FIRST": _unsupported("pooling before the projections", False),
    "MVIT.PATCH_2D": _unsupported("patches of single frames", False),
    "MVIT.NORM": _unsupported("other norms", "layernorm"),
    "MVIT.NORM_STEM": _unsupported("a norm behind the patch embedding", False),
    "MVIT.DROPOUT_RATE": _unsupported("dropout within blocks", 0.0, 0),
    "MVIT.LAYER_SCALE_INIT_VALUE": _unsupported("layer scale", 0.0, 0),
    "MVIT.SEPARATE_QKV": Ignored("one packed projection computes the same; checkpoints of both kinds load"),
    "MVIT.HEAD_INIT_SCALE": _unsupported("another start of the head", 1.0, 1),
    "MVIT.USE_MEAN_POOLING": _unsupported("a mean of patch tokens before the norm", False),
    "MVIT.USE_FIXED_SINCOS_POS": _unsupported("fixed positions", False),
    "MVIT.REV.ENABLE": _unsupported("reversible blocks", False),
    **_section("MVIT.REV", "read with MVIT.REV.ENABLE only", "BUFFER_LAYERS PRE_Q_FUSION RESPATH_FUSE RES_PATH"),
    "MASK.ENABLE": _unsupported("masked pre-training", False),
    **_section(
        "MASK", "read for masked pre-training only",
        "DECODER_DEPTH DECODER_EMBED_DIM DECODER_SEP_POS_EMBED DEC_KV_KERNEL DEC_KV_STRIDE HEAD_TYPE MAE_ON "
        "MAE_RND_MASK NORM_PRED_PIXEL PER_FRAME_MASKING PRED_HOG PRETRAIN_DEPTH SCALE_INIT_BY_DEPTH "
        "TIME_STRIDE_LOSS",
    ),
    **_section(
        "CONTRASTIVE", "read for contrastive pre-training only",
        "BN_MLP BN_SYNC_MLP DELTA_CLIPS_MAX DELTA_CLIPS_MIN DIM INTERP_MEMORY KNN_ON LENGTH LOCAL_SHUFFLE_BN "
        "MEM_TYPE MLP_DIM MOCO_MULTI_VIEW_QUEUE MOMENTUM MOMENTUM_ANNEALING NUM_CLASSES_DOWNSTREAM NUM_MLP_LAYERS "
        "PREDICTOR_DEPTHS QUEUE_LEN SEQUENTIAL SIMCLR_DIST_ON SWAV_QEUE_LEN T TYPE",
    ),
    "DETECTION.ENABLE": _unsupported("detection", False),
    **_section("DETECTION", "read for detection only", "ALIGNED ROI_XFORM_RESOLUTION SPATIAL_SCALE_FACTOR"),
    **_section(
        "AVA", "read for TRAIN.DATASET ava only",
        "ANNOTATION_DIR BGR DETECTION_SCORE_THRESH EXCLUSION_FILE FRAME_DIR FRAME_LIST_DIR FULL_TEST_ON_VAL "
        "GROUNDTRUTH_FILE IMG_PROC_BACKEND LABEL_MAP_FILE TEST_FORCE_FLIP TEST_LISTS TEST_PREDICT_BOX_LISTS "
        "TRAIN_GT_BOX_LISTS TRAIN_LISTS TRAIN_PCA_EIGVAL TRAIN_PCA_EIGVEC TRAIN_PCA_JITTER_ONLY "
        "TRAIN_PREDICT_BOX_LISTS TRAIN_USE_COLOR_AUGMENTATION",
    ),
    "MULTIGRID.SHORT_CYCLE": _unsupported("multigrid training", False),
    "MULTIGRID.LONG_CYCLE": _unsupported("multigrid training", False),
    **_section(
        "MULTIGRID", "read for multigrid training only",
        "BN_BASE_SIZE DEFAULT_B DEFAULT_S DEFAULT_T EPOCH_FACTOR EVAL_FREQ LONG_CYCLE_FACTORS "
        "LONG_CYCLE_SAMPLING_RATE SHORT_CYCLE_FACTORS",
    ),
    "DEMO.ENABLE": _unsupported("demo mode", False),
    **_section(
        "DEMO", "read in demo mode only",
        "BUFFER_SIZE CLIP_VIS_SIZE COMMON_CLASS_NAMES COMMON_CLASS_THRES DATA_SOURCE DETECTRON2_CFG "
        "DETECTRON2_OBJECT_DETECTION_MODEL_CFG DETECTRON2_OBJECT_DETECTION_MODEL_WEIGHTS DETECTRON2_THRESH "
        "DETECTRON2_WEIGHTS DISPLAY_HEIGHT DISPLAY_WIDTH FPS GT_BOXES INPUT_FORMAT INPUT_VIDEO LABEL_FILE_PATH "
        "NUM_CLIPS_SKIP NUM_VIS_INSTANCES OUTPUT_FILE OUTPUT_FPS PREDS_BOXES SLOWMO STARTING_SECOND THREAD_ENABLE "
        "UNCOMMON_CLASS_THRES VIS_MODE WEBCAM",
    ),
    **_section("BENCHMARK", "read by a loading benchmark only", "LOG_PERIOD NUM_EPOCHS SHUFFLE"),
    **_section(
        "TENSORBOARD", "chooses plots and their place only",
        "CATEGORIES_PATH CLASS_NAMES_PATH CONFUSION_MATRIX.ENABLE CONFUSION_MATRIX.FIGSIZE "
        "CONFUSION_MATRIX.SUBSET_PATH HISTOGRAM.ENABLE HISTOGRAM.FIGSIZE HISTOGRAM.SUBSET_PATH HISTOGRAM.TOPK "
        "LOG_DIR MODEL_VIS.ACTIVATIONS MODEL_VIS.COLORMAP MODEL_VIS.ENABLE MODEL_VIS.GRAD_CAM.COLORMAP "
        "MODEL_VIS.GRAD_CAM.ENABLE MODEL_VIS.GRAD_CAM.LAYER_LIST MODEL_VIS.GRAD_CAM.USE_TRUE_LABEL "
        "MODEL_VIS.INPUT_VIDEO MODEL_VIS.LAYER_LIST MODEL_VIS.MODEL_WEIGHTS MODEL_VIS.TOPK_PREDS PREDICTIONS_PATH "
        "WRONG_PRED_VIS.ENABLE WRONG_PRED_VIS.SUBSET_PATH WRONG_PRED_VIS.TAG",
    ),
    "PREFETCH": Ignored("no published code reads it"),
    **_section("PREFETCH", "no published code reads it", "NUM_LOADERS"),
    "TRAIN.KILL_LOSS_EXPLOSION_FACTOR": _unsupported("a stop when the loss grows", 0.0),
    "TRAIN.CHECKPOINT_TYPE": _unsupported("a Caffe2 checkpoint", "pytorch"),
    "TRAIN.CHECKPOINT_INFLATE": _unsupported("inflated 2-D convolutions", False),
    "TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN": _unsupported("renamed tensors", (), None),
    "TRAIN.CHECKPOINT_IN_INIT": Ignored("weights are always loaded before the model is distributed"),
    "TEST.CHECKPOINT_TYPE": _unsupported("a Caffe2 checkpoint", "pytorch"),
    "TEST.NUM_TEMPORAL_CLIPS": _unsupported("evaluation with several numbers of clips", (), None),
    "VIS_MASK.ENABLE": _unsupported("pictures of masks", False),
    "AUG.RE_SPLIT": _unsupported("no erasing in the first augmented copy", False),
    "AUG.GEN_MASK_LOADER": _unsupported("masked pre-training", False),
    "AUG.MASK_TUBE": Ignored("read for masked pre-training only"),
    "AUG.MASK_FRAMES": Ignored("read for masked pre-training only"),
    "AUG.MASK_RATIO": Ignored("read for masked pre-training only"),
    "AUG.MASK_WINDOW_SIZE": Ignored("read for masked pre-training only"),
    "AUG.MAX_MASK_PATCHES_PER_BLOCK": Ignored("read for masked pre-training only"),
    "MIXUP.MODE": _unsupported("mixing other than by batch", "batch"),
    "MIXUP.CUTMIX_MINMAX": _unsupported("bounds on the cut-out's size", (), None),
    "MODEL.ARCH": Ignored("MODEL.MODEL_NAME chooses the model"),
    "MODEL.SINGLE_PATHWAY_ARCH": Ignored("MODEL.MODEL_NAME chooses the model"),
    "MODEL.MULTI_PATHWAY_ARCH": Ignored("MODEL.MODEL_NAME chooses the model"),
    "MODEL.DROPCONNECT_RATE": Ignored("neither TimeSformer nor MViT reads it"),
    "MODEL.FC_INIT_STD": Ignored("neither TimeSformer nor MViT reads it"),
    "MODEL.HEAD_ACT": Ignored("models return logits here; TEST.AGGREGATE says what evaluation adds up"),
    "MODEL.FROZEN_BN": _unsupported("batch normalisation that is not trained", False),
    "MODEL.DETACH_FINAL_FC": _unsupported("training of the head alone", False),
    "MODEL.FP16_ALLREDUCE": _unsupported("gradients reduced in half precision", False),
    "DATA.CROP_SIZE": Ignored("TRAIN_CROP_SIZE and TEST_CROP_SIZE take precedence"),
    "DATA.INPUT_CHANNEL_NUM": _unsupported("input other than three channels", (3,), (3, 3)),
    "DATA.MULTI_LABEL": _unsupported("several labels per video", False),
    "DATA.TRAIN_CROP_NUM_SPATIAL": _unsupported("several training crops of one clip", 1),
    "DATA.TRAIN_CROP_NUM_TEMPORAL": _unsupported("several training clips of one video (see AUG.NUM_SAMPLE)", 1),
    "DATA.TRAIN_JITTER_MOTION_SHIFT": _unsupported("motion shift", False),
    "DATA.TRAIN_JITTER_FPS": _unsupported("a random frame rate", 0.0),
    "DATA.SKIP_ROWS": _unsupported("an annotation file without its first rows", 0),
    "DATA.DUMMY_LOAD": _unsupported("one clip read again and again", False),
    "DATA.LOADER_CHUNK_SIZE": _unsupported("an annotation file read in pieces", 0),
    "DATA.LOADER_CHUNK_OVERALL_SIZE": Ignored("read where LOADER_CHUNK_SIZE is set only"),
    "DATA.TIME_DIFF_PROB": _unsupported("frame differences as input", 0.0),
    "DATA.COLOR_RND_GRAYSCALE": _unsupported("random greyscale", 0.0),
    "DATA.SSL_COLOR_JITTER": _unsupported("contrastive colour jitter", False),
    "DATA.SSL_COLOR_BRI_CON_SAT": Ignored("read for contrastive pre-training only"),
    "DATA.SSL_COLOR_HUE": Ignored("read for contrastive pre-training only"),
    "DATA.SSL_BLUR_SIGMA_MIN": Ignored("read for contrastive pre-training only"),
    "DATA.SSL_BLUR_SIGMA_MAX": Ignored("read for contrastive pre-training only"),
    "DATA.SSL_MOCOV2_AUG": _unsupported("contrastive augmentation", False),
    "DATA.PATH_TO_PRELOAD_IMDB": Ignored(_IMAGES),
    "DATA.TRAIN_PCA_EIGVAL": Ignored(_IMAGES),
    "DATA.TRAIN_PCA_EIGVEC": Ignored(_IMAGES),
    "DATA.IN22K_TRAINVAL": Ignored(_IMAGES),
    "DATA.IN22k_VAL_IN1K": Ignored(_IMAGES),
    "DATA.IN_VAL_CROP_RATIO": Ignored(_IMAGES),
    "DATA.TEMPORAL_EXTENT": _unsupported("another temporal extent", 8),
    "DATA.DEIT_TRANSFORMS": _unsupported("the DeiT transforms (see AUG.*)", False),
    "DATA.COLOR_JITTER": Ignored("read with DEIT_TRANSFORMS only"),
    "DATA.AUTO_AUGMENT": Ignored("read with DEIT_TRANSFORMS only"),
    "DATA.RE_PROB": Ignored("read with DEIT_TRANSFORMS only"),
    "DATA_LOADER.ENABLE_MULTI_THREAD_DECODE": Ignored("changes decoding's speed only"),
    "SOLVER.GAMMA": Ignored("no supported LR_POLICY reads it"),
    "SOLVER.STEP_SIZE": Ignored("no supported LR_POLICY reads it"),
    "SOLVER.WARMUP_FACTOR": Ignored("WARMUP_START_LR rules"),
    "SOLVER.LARS_ON": _unsupported("LARS", False),
}  # fmt: skip

IGNORED_SECTIONS = {key.rpartition(".")[0] for key in IGNORED} - {""}
IGNORED_SECTIONS |= {section.rpartition(".")[0] for section in IGNORED_SECTIONS} - {""}

# Published names of models that no settings here describe, and what to do instead.
_X3D = "pytorchvideo/x3d_xs, pytorchvideo/x3d_s, pytorchvideo/x3d_m and pytorchvideo/x3d_l"
_SLOW = "pytorchvideo/slow_r50 (of C2D and I3D, none)"
_BUILT_INSTEAD = {
    "SlowFast": "pytorchvideo/slowfast_r50",
    "PTVSlowFast": "pytorchvideo/slowfast_r50",
    "ResNet": _SLOW,
    "PTVResNet": _SLOW,
    "X3D": _X3D,
    "PTVX3D": _X3D,
    "PTVCSN": "pytorchvideo/csn_r101",
    "PTVR2plus1D": "pytorchvideo/r2plus1d_r50",
    "PTVMViT": "pytorchvideo/mvit_base_16x4, and MViT and mvit_v1_b of its own",
}
UNSUPPORTED_MODELS: dict[str, str] = {
    **{
        name: f"SlowFast's settings of {name} are not supported; this project builds {built}: name one in "
        "MODEL.MODEL_NAME, with its own settings"
        for name, built in _BUILT_INSTEAD.items()
    },
    **{name: f"{name} is not supported; this project trains classifiers" for name in ("MaskMViT", "ContrastiveModel")},
}
# The models that MODEL.ARCH asks for where MODEL.MODEL_NAME is left out.
MODELS_OF_ARCH = {
    "slowfast": "SlowFast",
    "x3d": "X3D",
    "csn": "PTVCSN",
    "r2plus1d": "PTVR2plus1D",
    "maskmvit": "MaskMViT",
    **dict.fromkeys(("slow", "2d", "c2d", "slow_c2d", "i3d", "slow_i3d"), "ResNet"),
}
CONVOLUTIONAL_SECTIONS = ("RESNET.", "SLOWFAST.", "X3D.", "NONLOCAL.")
