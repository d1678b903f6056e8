"""The default settings of SlowFast and TimeSformer, from which dumps of their runs are made; paths are shortened.

Both programs write `cfg.dump()`, with every key of their defaults, into what they train. "" holds keys without section.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

SLOWFAST: dict[str, dict[str, object]] = {
    "AUG": {
        "AA_TYPE": "rand-m9-mstd0.5-inc1", "COLOR_JITTER": 0.4, "ENABLE": False, "GEN_MASK_LOADER": False,
        "INTERPOLATION": "bicubic", "MASK_FRAMES": False, "MASK_RATIO": 0.0, "MASK_TUBE": False,
        "MASK_WINDOW_SIZE": [8, 7, 7], "MAX_MASK_PATCHES_PER_BLOCK": None, "NUM_SAMPLE": 1, "RE_COUNT": 1,
        "RE_MODE": "pixel", "RE_PROB": 0.25, "RE_SPLIT": False,
    },
    "AVA": {
        "ANNOTATION_DIR": "/path", "BGR": False, "DETECTION_SCORE_THRESH": 0.9,
        "EXCLUSION_FILE": "ava_val_excluded_timestamps_v2.2.csv", "FRAME_DIR": "/path", "FRAME_LIST_DIR": "/path",
        "FULL_TEST_ON_VAL": False, "GROUNDTRUTH_FILE": "ava_val_v2.2.csv", "IMG_PROC_BACKEND": "cv2",
        "LABEL_MAP_FILE": "ava_action_list_v2.2_for_activitynet_2019.pbtxt", "TEST_FORCE_FLIP": False,
        "TEST_LISTS": ["val.csv"], "TEST_PREDICT_BOX_LISTS": ["ava_val_predicted_boxes.csv"],
        "TRAIN_GT_BOX_LISTS": ["ava_train_v2.2.csv"], "TRAIN_LISTS": ["train.csv"], "TRAIN_PCA_JITTER_ONLY": True,
        "TRAIN_PREDICT_BOX_LISTS": [], "TRAIN_USE_COLOR_AUGMENTATION": False,
    },
    "BENCHMARK": {
        "LOG_PERIOD": 100, "NUM_EPOCHS": 5, "SHUFFLE": True,
    },
    "BN": {
        "GLOBAL_SYNC": False, "NORM_TYPE": "batchnorm", "NUM_BATCHES_PRECISE": 200, "NUM_SPLITS": 1,
        "NUM_SYNC_DEVICES": 1, "USE_PRECISE_STATS": False, "WEIGHT_DECAY": 0.0,
    },
    "CONTRASTIVE": {
        "BN_MLP": False, "BN_SYNC_MLP": False, "DELTA_CLIPS_MAX": math.inf, "DELTA_CLIPS_MIN": -math.inf, "DIM": 128,
        "INTERP_MEMORY": False, "KNN_ON": True, "LENGTH": 239975, "LOCAL_SHUFFLE_BN": True, "MEM_TYPE": "1d",
        "MLP_DIM": 2048, "MOCO_MULTI_VIEW_QUEUE": False, "MOMENTUM": 0.5, "MOMENTUM_ANNEALING": False,
        "NUM_CLASSES_DOWNSTREAM": 400, "NUM_MLP_LAYERS": 1, "PREDICTOR_DEPTHS": [], "QUEUE_LEN": 65536,
        "SEQUENTIAL": False, "SIMCLR_DIST_ON": True, "SWAV_QEUE_LEN": 0, "T": 0.07, "TYPE": "mem",
    },
    "DATA": {
        "COLOR_RND_GRAYSCALE": 0.0, "DECODING_BACKEND": "torchvision", "DECODING_SHORT_SIZE": 256,
        "DUMMY_LOAD": False, "ENSEMBLE_METHOD": "sum", "IN22K_TRAINVAL": False, "IN22k_VAL_IN1K": "",
        "INPUT_CHANNEL_NUM": [3, 3], "INV_UNIFORM_SAMPLE": False, "IN_VAL_CROP_RATIO": 0.875,
        "LOADER_CHUNK_OVERALL_SIZE": 0, "LOADER_CHUNK_SIZE": 0, "MEAN": [0.45, 0.45, 0.45], "MULTI_LABEL": False,
        "NUM_FRAMES": 8, "PATH_LABEL_SEPARATOR": " ", "PATH_PREFIX": "", "PATH_TO_DATA_DIR": "",
        "PATH_TO_PRELOAD_IMDB": "", "RANDOM_FLIP": True, "REVERSE_INPUT_CHANNEL": False, "SAMPLING_RATE": 8,
        "SKIP_ROWS": 0, "SSL_BLUR_SIGMA_MAX": [0.0, 2.0], "SSL_BLUR_SIGMA_MIN": [0.0, 0.1],
        "SSL_COLOR_BRI_CON_SAT": [0.4, 0.4, 0.4], "SSL_COLOR_HUE": 0.1, "SSL_COLOR_JITTER": False,
        "SSL_MOCOV2_AUG": False, "STD": [0.225, 0.225, 0.225], "TARGET_FPS": 30, "TEST_CROP_SIZE": 256,
        "TIME_DIFF_PROB": 0.0, "TRAIN_CROP_NUM_SPATIAL": 1, "TRAIN_CROP_NUM_TEMPORAL": 1, "TRAIN_CROP_SIZE": 224,
        "TRAIN_JITTER_ASPECT_RELATIVE": [], "TRAIN_JITTER_FPS": 0.0, "TRAIN_JITTER_MOTION_SHIFT": False,
        "TRAIN_JITTER_SCALES": [256, 320], "TRAIN_JITTER_SCALES_RELATIVE": [],
        "TRAIN_PCA_EIGVAL": [0.225, 0.224, 0.229],
        "TRAIN_PCA_EIGVEC": [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.814], [-0.5836, -0.6948, 0.4203]],
        "USE_OFFSET_SAMPLING": False,
    },
    "DATA_LOADER": {
        "ENABLE_MULTI_THREAD_DECODE": False, "NUM_WORKERS": 8, "PIN_MEMORY": True,
    },
    "DEMO": {
        "BUFFER_SIZE": 0, "CLIP_VIS_SIZE": 10, "COMMON_CLASS_NAMES": ["watch (a person)"],
        "COMMON_CLASS_THRES": 0.7, "DETECTRON2_CFG": "/path", "DETECTRON2_THRESH": 0.9,
        "DETECTRON2_WEIGHTS": "/path", "DISPLAY_HEIGHT": 0, "DISPLAY_WIDTH": 0, "ENABLE": False, "FPS": 30,
        "GT_BOXES": "", "INPUT_FORMAT": "BGR", "INPUT_VIDEO": "", "LABEL_FILE_PATH": "", "NUM_CLIPS_SKIP": 0,
        "NUM_VIS_INSTANCES": 2, "OUTPUT_FILE": "", "OUTPUT_FPS": -1, "PREDS_BOXES": "", "SLOWMO": 1,
        "STARTING_SECOND": 900, "THREAD_ENABLE": False, "UNCOMMON_CLASS_THRES": 0.3, "VIS_MODE": "thres",
        "WEBCAM": -1,
    },
    "DETECTION": {
        "ALIGNED": True, "ENABLE": False, "ROI_XFORM_RESOLUTION": 7, "SPATIAL_SCALE_FACTOR": 16,
    },
    "": {
        "DIST_BACKEND": "nccl", "LOG_MODEL_INFO": True, "LOG_PERIOD": 10, "NUM_GPUS": 1, "NUM_SHARDS": 1,
        "OUTPUT_DIR": ".", "RNG_SEED": 1, "SHARD_ID": 0, "TASK": "",
    },
    "MASK": {
        "DECODER_DEPTH": 0, "DECODER_EMBED_DIM": 512, "DECODER_SEP_POS_EMBED": False, "DEC_KV_KERNEL": [],
        "DEC_KV_STRIDE": [], "ENABLE": False, "HEAD_TYPE": "separate", "MAE_ON": False, "MAE_RND_MASK": False,
        "NORM_PRED_PIXEL": True, "PER_FRAME_MASKING": False, "PRED_HOG": False, "PRETRAIN_DEPTH": [15],
        "SCALE_INIT_BY_DEPTH": False, "TIME_STRIDE_LOSS": True,
    },
    "MIXUP": {
        "ALPHA": 0.8, "CUTMIX_ALPHA": 1.0, "ENABLE": False, "LABEL_SMOOTH_VALUE": 0.1, "PROB": 1.0,
        "SWITCH_PROB": 0.5,
    },
    "MODEL": {
        "ACT_CHECKPOINT": False, "ARCH": "slowfast", "DETACH_FINAL_FC": False, "DROPCONNECT_RATE": 0.0,
        "DROPOUT_RATE": 0.5, "FC_INIT_STD": 0.01, "FP16_ALLREDUCE": False, "FROZEN_BN": False,
        "HEAD_ACT": "softmax", "LOSS_FUNC": "cross_entropy", "MODEL_NAME": "SlowFast",
        "MULTI_PATHWAY_ARCH": ["slowfast"], "NUM_CLASSES": 400, "SINGLE_PATHWAY_ARCH": ["2d"],
    },
    "MULTIGRID": {
        "BN_BASE_SIZE": 8, "DEFAULT_B": 0, "DEFAULT_S": 0, "DEFAULT_T": 0, "EPOCH_FACTOR": 1.5, "EVAL_FREQ": 3,
        "LONG_CYCLE": False,
        "LONG_CYCLE_FACTORS": [[0.25, 0.7071067811865476], [0.5, 0.7071067811865476], [0.5, 1], [1, 1]],
        "LONG_CYCLE_SAMPLING_RATE": 0, "SHORT_CYCLE": False, "SHORT_CYCLE_FACTORS": [0.5, 0.7071067811865476],
    },
    "MVIT": {
        "CLS_EMBED_ON": True, "DEPTH": 16, "DIM_MUL": [], "DIM_MUL_IN_ATT": False, "DROPOUT_RATE": 0.0,
        "DROPPATH_RATE": 0.1, "EMBED_DIM": 96, "HEAD_INIT_SCALE": 1.0, "HEAD_MUL": [],
        "LAYER_SCALE_INIT_VALUE": 0.0, "MLP_RATIO": 4.0, "MODE": "conv", "NORM": "layernorm", "NORM_STEM": False,
        "NUM_HEADS": 1, "PATCH_2D": False, "PATCH_KERNEL": [3, 7, 7], "PATCH_PADDING": [2, 4, 4],
        "PATCH_STRIDE": [2, 4, 4], "POOL_FIRST": False, "POOL_KVQ_KERNEL": None, "POOL_KV_STRIDE": [],
        "POOL_KV_STRIDE_ADAPTIVE": None, "POOL_Q_STRIDE": [], "QKV_BIAS": True, "REL_POS_SPATIAL": False,
        "REL_POS_TEMPORAL": False, "REL_POS_ZERO_INIT": False, "RESIDUAL_POOLING": False, "REV.BUFFER_LAYERS": [],
        "REV.ENABLE": False, "REV.PRE_Q_FUSION": "avg", "REV.RESPATH_FUSE": "concat", "REV.RES_PATH": "conv",
        "SEPARATE_QKV": False, "SEP_POS_EMBED": False, "USE_ABS_POS": True, "USE_FIXED_SINCOS_POS": False,
        "USE_MEAN_POOLING": False, "ZERO_DECAY_POS_CLS": True,
    },
    "NONLOCAL": {
        "GROUP": [[1], [1], [1], [1]], "INSTANTIATION": "dot_product", "LOCATION": [[[]], [[]], [[]], [[]]],
        "POOL": [[[1, 2, 2], [1, 2, 2]], [[1, 2, 2], [1, 2, 2]], [[1, 2, 2], [1, 2, 2]], [[1, 2, 2], [1, 2, 2]]],
    },
    "RESNET": {
        "DEPTH": 50, "INPLACE_RELU": True, "NUM_BLOCK_TEMP_KERNEL": [[3], [4], [6], [3]], "NUM_GROUPS": 1,
        "SPATIAL_DILATIONS": [[1], [1], [1], [1]], "SPATIAL_STRIDES": [[1], [2], [2], [2]], "STRIDE_1X1": False,
        "TRANS_FUNC": "bottleneck_transform", "WIDTH_PER_GROUP": 64, "ZERO_INIT_FINAL_BN": False,
        "ZERO_INIT_FINAL_CONV": False,
    },
    "SLOWFAST": {
        "ALPHA": 8, "BETA_INV": 8, "FUSION_CONV_CHANNEL_RATIO": 2, "FUSION_KERNEL_SZ": 5,
    },
    "SOLVER": {
        "BASE_LR": 0.1, "BASE_LR_SCALE_NUM_SHARDS": False, "BETAS": [0.9, 0.999], "CLIP_GRAD_L2NORM": None,
        "CLIP_GRAD_VAL": None, "COSINE_AFTER_WARMUP": False, "COSINE_END_LR": 0.0, "DAMPENING": 0.0, "GAMMA": 0.1,
        "LARS_ON": False, "LAYER_DECAY": 1.0, "LRS": [], "LR_POLICY": "cosine", "MAX_EPOCH": 300, "MOMENTUM": 0.9,
        "NESTEROV": True, "OPTIMIZING_METHOD": "sgd", "STEPS": [], "STEP_SIZE": 1, "WARMUP_EPOCHS": 0.0,
        "WARMUP_FACTOR": 0.1, "WARMUP_START_LR": 0.01, "WEIGHT_DECAY": 0.0001, "ZERO_WD_1D_PARAM": False,
    },
    "TENSORBOARD": {
        "CATEGORIES_PATH": "", "CLASS_NAMES_PATH": "", "CONFUSION_MATRIX.ENABLE": False,
        "CONFUSION_MATRIX.FIGSIZE": [8, 8], "CONFUSION_MATRIX.SUBSET_PATH": "", "ENABLE": False,
        "HISTOGRAM.ENABLE": False, "HISTOGRAM.FIGSIZE": [8, 8], "HISTOGRAM.SUBSET_PATH": "", "HISTOGRAM.TOPK": 10,
        "LOG_DIR": "", "MODEL_VIS.ACTIVATIONS": False, "MODEL_VIS.COLORMAP": "Pastel2", "MODEL_VIS.ENABLE": False,
        "MODEL_VIS.GRAD_CAM.COLORMAP": "viridis", "MODEL_VIS.GRAD_CAM.ENABLE": True,
        "MODEL_VIS.GRAD_CAM.LAYER_LIST": [], "MODEL_VIS.GRAD_CAM.USE_TRUE_LABEL": False,
        "MODEL_VIS.INPUT_VIDEO": False, "MODEL_VIS.LAYER_LIST": [], "MODEL_VIS.MODEL_WEIGHTS": False,
        "MODEL_VIS.TOPK_PREDS": 1, "PREDICTIONS_PATH": "", "WRONG_PRED_VIS.ENABLE": False,
        "WRONG_PRED_VIS.SUBSET_PATH": "", "WRONG_PRED_VIS.TAG": "Incorrectly classified videos.",
    },
    "TEST": {
        "BATCH_SIZE": 8, "CHECKPOINT_FILE_PATH": "", "CHECKPOINT_TYPE": "pytorch", "DATASET": "kinetics",
        "ENABLE": True, "NUM_ENSEMBLE_VIEWS": 10, "NUM_SPATIAL_CROPS": 3, "NUM_TEMPORAL_CLIPS": [],
        "SAVE_RESULTS_PATH": "",
    },
    "TRAIN": {
        "AUTO_RESUME": True, "BATCH_SIZE": 64, "CHECKPOINT_CLEAR_NAME_PATTERN": [], "CHECKPOINT_EPOCH_RESET": False,
        "CHECKPOINT_FILE_PATH": "", "CHECKPOINT_INFLATE": False, "CHECKPOINT_IN_INIT": False,
        "CHECKPOINT_PERIOD": 10, "CHECKPOINT_TYPE": "pytorch", "DATASET": "kinetics", "ENABLE": True,
        "EVAL_PERIOD": 10, "KILL_LOSS_EXPLOSION_FACTOR": 0.0, "MIXED_PRECISION": False,
    },
    "VIS_MASK": {
        "ENABLE": False,
    },
    "X3D": {
        "BN_LIN5": False, "BOTTLENECK_FACTOR": 1.0, "CHANNELWISE_3x3x3": True, "DEPTH_FACTOR": 1.0, "DIM_C1": 12,
        "DIM_C5": 2048, "SCALE_RES2": False, "WIDTH_FACTOR": 1.0,
    },
}  # fmt: skip

# Where TimeSformer's defaults differ, and the keys of SlowFast that they lack.
_TIMESFORMER: dict[str, dict[str, object]] = {
    "AVA": {
        "TRAIN_PCA_EIGVAL": [0.225, 0.224, 0.229],
        "TRAIN_PCA_EIGVEC": [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.814], [-0.5836, -0.6948, 0.4203]],
    },
    "DATA": {
        "AUTO_AUGMENT": "", "COLOR_JITTER": 0.0, "CROP_SIZE": 224, "DECODING_BACKEND": "pyav",
        "DEIT_TRANSFORMS": False, "RE_PROB": 0.0, "TEMPORAL_EXTENT": 8,
    },
    "EMA": {
        "ENABLED": False,
    },
    "": {
        "GLOBAL_BATCH_SIZE": 64, "LOG_MODEL_INFO": False, "OUTPUT_DIR": "/path",
    },
    "MIXUP": {
        "CUTMIX_MINMAX": None, "ENABLED": False, "MODE": "batch",
    },
    "MODEL": {
        "SINGLE_PATHWAY_ARCH": ["c2d"],
    },
    "TIMESFORMER": {
        "ATTENTION_TYPE": "divided_space_time", "PRETRAINED_MODEL": "",
    },
    "TRAIN": {
        "FINETUNE": False,
    },
}  # fmt: skip
_NOT_OF_TIMESFORMER = (
    "AUG.AA_TYPE AUG.COLOR_JITTER AUG.ENABLE AUG.GEN_MASK_LOADER AUG.INTERPOLATION AUG.MASK_FRAMES AUG.MASK_RATIO "
    "AUG.MASK_TUBE AUG.MASK_WINDOW_SIZE AUG.MAX_MASK_PATCHES_PER_BLOCK AUG.NUM_SAMPLE AUG.RE_COUNT AUG.RE_MODE "
    "AUG.RE_PROB AUG.RE_SPLIT BN.GLOBAL_SYNC CONTRASTIVE.BN_MLP CONTRASTIVE.BN_SYNC_MLP CONTRASTIVE.DELTA_CLIPS_MAX "
    "CONTRASTIVE.DELTA_CLIPS_MIN CONTRASTIVE.DIM CONTRASTIVE.INTERP_MEMORY CONTRASTIVE.KNN_ON CONTRASTIVE.LENGTH "
    "CONTRASTIVE.LOCAL_SHUFFLE_BN CONTRASTIVE.MEM_TYPE CONTRASTIVE.MLP_DIM CONTRASTIVE.MOCO_MULTI_VIEW_QUEUE "
    "CONTRASTIVE.MOMENTUM CONTRASTIVE.MOMENTUM_ANNEALING CONTRASTIVE.NUM_CLASSES_DOWNSTREAM "
    "CONTRASTIVE.NUM_MLP_LAYERS CONTRASTIVE.PREDICTOR_DEPTHS CONTRASTIVE.QUEUE_LEN CONTRASTIVE.SEQUENTIAL "
    "CONTRASTIVE.SIMCLR_DIST_ON CONTRASTIVE.SWAV_QEUE_LEN CONTRASTIVE.T CONTRASTIVE.TYPE DATA.COLOR_RND_GRAYSCALE "
    "DATA.DECODING_SHORT_SIZE DATA.DUMMY_LOAD DATA.IN22K_TRAINVAL DATA.IN22k_VAL_IN1K DATA.IN_VAL_CROP_RATIO "
    "DATA.LOADER_CHUNK_OVERALL_SIZE DATA.LOADER_CHUNK_SIZE DATA.PATH_TO_PRELOAD_IMDB DATA.SKIP_ROWS "
    "DATA.SSL_BLUR_SIGMA_MAX DATA.SSL_BLUR_SIGMA_MIN DATA.SSL_COLOR_BRI_CON_SAT DATA.SSL_COLOR_HUE "
    "DATA.SSL_COLOR_JITTER DATA.SSL_MOCOV2_AUG DATA.TIME_DIFF_PROB DATA.TRAIN_CROP_NUM_SPATIAL "
    "DATA.TRAIN_CROP_NUM_TEMPORAL DATA.TRAIN_JITTER_ASPECT_RELATIVE DATA.TRAIN_JITTER_FPS "
    "DATA.TRAIN_JITTER_MOTION_SHIFT DATA.TRAIN_JITTER_SCALES_RELATIVE DATA.TRAIN_PCA_EIGVAL DATA.TRAIN_PCA_EIGVEC "
    "DATA.USE_OFFSET_SAMPLING MASK.DECODER_DEPTH MASK.DECODER_EMBED_DIM MASK.DECODER_SEP_POS_EMBED "
    "MASK.DEC_KV_KERNEL MASK.DEC_KV_STRIDE MASK.ENABLE MASK.HEAD_TYPE MASK.MAE_ON MASK.MAE_RND_MASK "
    "MASK.NORM_PRED_PIXEL MASK.PER_FRAME_MASKING MASK.PRED_HOG MASK.PRETRAIN_DEPTH MASK.SCALE_INIT_BY_DEPTH "
    "MASK.TIME_STRIDE_LOSS MIXUP.ENABLE MIXUP.LABEL_SMOOTH_VALUE MODEL.ACT_CHECKPOINT MODEL.DETACH_FINAL_FC "
    "MODEL.FP16_ALLREDUCE MODEL.FROZEN_BN MVIT.CLS_EMBED_ON MVIT.DEPTH MVIT.DIM_MUL MVIT.DIM_MUL_IN_ATT "
    "MVIT.DROPOUT_RATE MVIT.DROPPATH_RATE MVIT.EMBED_DIM MVIT.HEAD_INIT_SCALE MVIT.HEAD_MUL "
    "MVIT.LAYER_SCALE_INIT_VALUE MVIT.MLP_RATIO MVIT.MODE MVIT.NORM MVIT.NORM_STEM MVIT.NUM_HEADS MVIT.PATCH_2D "
    "MVIT.PATCH_KERNEL MVIT.PATCH_PADDING MVIT.PATCH_STRIDE MVIT.POOL_FIRST MVIT.POOL_KVQ_KERNEL "
    "MVIT.POOL_KV_STRIDE MVIT.POOL_KV_STRIDE_ADAPTIVE MVIT.POOL_Q_STRIDE MVIT.QKV_BIAS MVIT.REL_POS_SPATIAL "
    "MVIT.REL_POS_TEMPORAL MVIT.REL_POS_ZERO_INIT MVIT.RESIDUAL_POOLING MVIT.REV.BUFFER_LAYERS MVIT.REV.ENABLE "
    "MVIT.REV.PRE_Q_FUSION MVIT.REV.RESPATH_FUSE MVIT.REV.RES_PATH MVIT.SEPARATE_QKV MVIT.SEP_POS_EMBED "
    "MVIT.USE_ABS_POS MVIT.USE_FIXED_SINCOS_POS MVIT.USE_MEAN_POOLING MVIT.ZERO_DECAY_POS_CLS "
    "RESNET.ZERO_INIT_FINAL_CONV SOLVER.BETAS SOLVER.CLIP_GRAD_L2NORM SOLVER.CLIP_GRAD_VAL "
    "SOLVER.COSINE_AFTER_WARMUP SOLVER.LARS_ON SOLVER.LAYER_DECAY SOLVER.ZERO_WD_1D_PARAM TASK "
    "TEST.NUM_TEMPORAL_CLIPS TRAIN.CHECKPOINT_IN_INIT TRAIN.KILL_LOSS_EXPLOSION_FACTOR TRAIN.MIXED_PRECISION "
    "VIS_MASK.ENABLE "
)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; keys of section "" stand alone."""
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from flatten(value, f"{dotted}." if dotted else "")
        else:
            yield dotted, value


def nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The tree that dotted keys describe."""
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return tree


SLOWFAST_DEFAULTS = dict(flatten(SLOWFAST))
TIMESFORMER_DEFAULTS = {
    key: value for key, value in SLOWFAST_DEFAULTS.items() if key not in _NOT_OF_TIMESFORMER.split()
} | dict(flatten(_TIMESFORMER))


def dump_of(file: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the original program stores of a run by a file: its defaults with the file on top."""
    return nest({key: copy.deepcopy(value) for key, value in {**defaults, **dict(flatten(file))}.items()})


def fill_kv_strides(dump: dict[str, Any]) -> dict[str, Any]:
    """A SlowFast dump as its MViT's constructor leaves it: POOL_KV_STRIDE written out from POOL_KV_STRIDE_ADAPTIVE."""
    filled = copy.deepcopy(dump)
    mvit = filled["MVIT"]
    q_strides = {block: stride for block, *stride in mvit["POOL_Q_STRIDE"]}
    stride, mvit["POOL_KV_STRIDE"] = mvit["POOL_KV_STRIDE_ADAPTIVE"], []
    for block in range(mvit["DEPTH"]):
        if block in q_strides:
            stride = [max(k // q, 1) for k, q in zip(stride, q_strides[block], strict=True)]
        mvit["POOL_KV_STRIDE"].append([block, *stride])
    return filled
