"""Keys of published SlowFast and TimeSformer files: which mean nothing here and why, and how the others are read.

`INERT` is the one table of keys that cannot change a result here. A key that is harmless only at some values names
them; at any other value it is refused. `read_layer` and the functions that fill defaults in turn published names,
values and defaults into this project's. Source: both projects' default settings and the code that reads them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from videoattn.strict_yaml import COMMAND_LINE, Setting

PUBLISHED_TIMESFORMER = "vit_base_patch16_224"
PUBLISHED_MVIT = "MViT"
IMAGENET_VIT = "timm:vit_base_patch16_224.orig_in21k_ft_in1k"


@dataclass(frozen=True)
class Note:
    """What became of one published key."""

    key: str
    value: object
    reason: str
    source: str


@dataclass(frozen=True)
class Inert:
    """Why a key changes nothing here; `values` are those for which this holds, None means all."""

    reason: str
    values: tuple[object, ...] | None = None


def _unsupported(what: str, *values: object) -> Inert:
    return Inert(f"other values ask for {what}, which is not supported", values)


_LAUNCHER = "the launcher decides how many processes and machines there are"
_OTHER_FAMILY = "no model built here reads it"
_IMAGES = "read for still images only"

INERT: dict[str, Inert] = {
    "NUM_GPUS": Inert(_LAUNCHER),
    "NUM_SHARDS": Inert(_LAUNCHER),
    "SHARD_ID": Inert(_LAUNCHER),
    "TASK": _unsupported("another task than classification", ""),
    "LOG_MODEL_INFO": Inert("tools/profile_net.py counts parameters and multiply-accumulates"),
    "TEST.ENABLE": Inert("tools/test_net.py evaluates, tools/train_net.py does not"),
    "BN.*": Inert("no model here has batch normalisation"),
    "RESNET.*": Inert(_OTHER_FAMILY),
    "NONLOCAL.*": Inert(_OTHER_FAMILY),
    "SLOWFAST.*": Inert(_OTHER_FAMILY),
    "X3D.*": Inert(_OTHER_FAMILY),
    "MVIT.MODE": _unsupported("pooling other than by convolution", "conv"),
    "MVIT.POOL_FIRST": _unsupported("pooling before the projections", False),
    "MVIT.PATCH_2D": _unsupported("patches of single frames", False),
    "MVIT.NORM": _unsupported("other norms", "layernorm"),
    "MVIT.NORM_STEM": _unsupported("a norm behind the patch embedding", False),
    "MVIT.DROPOUT_RATE": _unsupported("dropout within blocks", 0.0, 0),
    "MVIT.LAYER_SCALE_INIT_VALUE": _unsupported("layer scale", 0.0, 0),
    "MVIT.SEPARATE_QKV": Inert("one packed projection computes the same; checkpoints of both kinds load"),
    "MVIT.HEAD_INIT_SCALE": _unsupported("another start of the head", 1.0, 1),
    "MVIT.USE_MEAN_POOLING": _unsupported("a mean of patch tokens before the norm", False),
    "MVIT.USE_FIXED_SINCOS_POS": _unsupported("fixed positions", False),
    "MVIT.REV.ENABLE": _unsupported("reversible blocks", False),
    "MVIT.REV.*": Inert("read with MVIT.REV.ENABLE only"),
    "MASK.ENABLE": _unsupported("masked pre-training", False),
    "MASK.*": Inert("read for masked pre-training only"),
    "CONTRASTIVE.*": Inert("read for contrastive pre-training only"),
    "DETECTION.ENABLE": _unsupported("detection", False),
    "DETECTION.*": Inert("read for detection only"),
    "AVA.*": Inert("read for TRAIN.DATASET ava only"),
    "MULTIGRID.SHORT_CYCLE": _unsupported("multigrid training", False),
    "MULTIGRID.LONG_CYCLE": _unsupported("multigrid training", False),
    "MULTIGRID.*": Inert("read for multigrid training only"),
    "DEMO.ENABLE": _unsupported("demo mode", False),
    "DEMO.*": Inert("read in demo mode only"),
    "BENCHMARK.*": Inert("read by a loading benchmark only"),
    "TENSORBOARD.*": Inert("chooses plots and their place only"),
    "PREFETCH": Inert("no published code reads it"),
    "PREFETCH.*": Inert("no published code reads it"),
    "TRAIN.KILL_LOSS_EXPLOSION_FACTOR": _unsupported("a stop when the loss grows", 0.0),
    "TRAIN.CHECKPOINT_TYPE": _unsupported("a Caffe2 checkpoint", "pytorch"),
    "TRAIN.CHECKPOINT_INFLATE": _unsupported("inflated 2-D convolutions", False),
    "TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN": _unsupported("renamed tensors", (), None),
    "TRAIN.CHECKPOINT_IN_INIT": Inert("weights are always loaded before the model is distributed"),
    "TEST.CHECKPOINT_TYPE": _unsupported("a Caffe2 checkpoint", "pytorch"),
    "TEST.NUM_TEMPORAL_CLIPS": _unsupported("evaluation with several numbers of clips", (), None),
    "AUG.RE_SPLIT": _unsupported("no erasing in the first augmented copy", False),
    "AUG.GEN_MASK_LOADER": _unsupported("masked pre-training", False),
    "AUG.MASK_TUBE": Inert("read for masked pre-training only"),
    "AUG.MASK_FRAMES": Inert("read for masked pre-training only"),
    "AUG.MASK_RATIO": Inert("read for masked pre-training only"),
    "AUG.MASK_WINDOW_SIZE": Inert("read for masked pre-training only"),
    "AUG.MAX_MASK_PATCHES_PER_BLOCK": Inert("read for masked pre-training only"),
    "MIXUP.MODE": _unsupported("mixing other than by batch", "batch"),
    "MIXUP.CUTMIX_MINMAX": _unsupported("bounds on the cut-out's size", (), None),
    "MODEL.ARCH": Inert("MODEL.MODEL_NAME chooses the model"),
    "MODEL.SINGLE_PATHWAY_ARCH": Inert("MODEL.MODEL_NAME chooses the model"),
    "MODEL.MULTI_PATHWAY_ARCH": Inert("MODEL.MODEL_NAME chooses the model"),
    "MODEL.DROPCONNECT_RATE": Inert("neither TimeSformer nor MViT reads it"),
    "MODEL.FC_INIT_STD": Inert("neither TimeSformer nor MViT reads it"),
    "MODEL.HEAD_ACT": Inert("models return logits here; TEST.AGGREGATE says what evaluation adds up"),
    "MODEL.FROZEN_BN": Inert("no model here has batch normalisation"),
    "MODEL.DETACH_FINAL_FC": _unsupported("training of the head alone", False),
    "MODEL.FP16_ALLREDUCE": _unsupported("gradients exchanged in half precision", False),
    "DATA.CROP_SIZE": Inert("TRAIN_CROP_SIZE and TEST_CROP_SIZE rule"),
    "DATA.INPUT_CHANNEL_NUM": _unsupported("input other than three channels", (3,), (3, 3)),
    "DATA.MULTI_LABEL": _unsupported("several labels per video", False),
    "DATA.TRAIN_JITTER_MOTION_SHIFT": _unsupported("motion shift", False),
    "DATA.TRAIN_JITTER_FPS": _unsupported("a random frame rate", 0.0),
    "DATA.SKIP_ROWS": _unsupported("an annotation file without its first rows", 0),
    "DATA.DUMMY_LOAD": _unsupported("one clip read again and again", False),
    "DATA.LOADER_CHUNK_SIZE": _unsupported("an annotation file read in pieces", 0),
    "DATA.LOADER_CHUNK_OVERALL_SIZE": Inert("read where LOADER_CHUNK_SIZE is set only"),
    "DATA.TIME_DIFF_PROB": _unsupported("frame differences as input", 0.0),
    "DATA.COLOR_RND_GRAYSCALE": _unsupported("random greyscale", 0.0),
    "DATA.SSL_COLOR_JITTER": _unsupported("contrastive colour jitter", False),
    "DATA.SSL_COLOR_BRI_CON_SAT": Inert("read for contrastive pre-training only"),
    "DATA.SSL_COLOR_HUE": Inert("read for contrastive pre-training only"),
    "DATA.SSL_BLUR_SIGMA_MIN": Inert("read for contrastive pre-training only"),
    "DATA.SSL_BLUR_SIGMA_MAX": Inert("read for contrastive pre-training only"),
    "DATA.SSL_MOCOV2_AUG": _unsupported("contrastive augmentation", False),
    "DATA.PATH_TO_PRELOAD_IMDB": Inert(_IMAGES),
    "DATA.TRAIN_PCA_EIGVAL": Inert(_IMAGES),
    "DATA.TRAIN_PCA_EIGVEC": Inert(_IMAGES),
    "DATA.IN22K_TRAINVAL": Inert(_IMAGES),
    "DATA.IN22k_VAL_IN1K": Inert(_IMAGES),
    "DATA.IN_VAL_CROP_RATIO": Inert(_IMAGES),
    "DATA.TEMPORAL_EXTENT": _unsupported("another temporal extent", 8),
    "DATA.DEIT_TRANSFORMS": _unsupported("the DeiT transforms (see AUG.*)", False),
    "DATA.COLOR_JITTER": Inert("read with DEIT_TRANSFORMS only"),
    "DATA.AUTO_AUGMENT": Inert("read with DEIT_TRANSFORMS only"),
    "DATA.RE_PROB": Inert("read with DEIT_TRANSFORMS only"),
    "DATA_LOADER.ENABLE_MULTI_THREAD_DECODE": Inert("changes decoding's speed only"),
    "SOLVER.GAMMA": Inert("no supported LR_POLICY reads it"),
    "SOLVER.STEP_SIZE": Inert("no supported LR_POLICY reads it"),
    "SOLVER.WARMUP_FACTOR": Inert("WARMUP_START_LR rules"),
    "SOLVER.LARS_ON": _unsupported("LARS", False),
}

# Published names of models that no builder here knows; a config that names one is refused before anything else.
UNSUPPORTED_MODELS: dict[str, str] = {
    "PTVMViT": "PTVMViT is pytorchvideo's name for it; use MViT or mvit_v1_b",
    **{
        name: f"{name} is not supported; this project builds video transformers"
        for name in ("SlowFast", "ResNet", "X3D", "PTVSlowFast", "PTVResNet", "PTVX3D", "PTVCSN", "PTVR2plus1D")
    },
    **{name: f"{name} is not supported; this project trains classifiers" for name in ("MaskMViT", "ContrastiveModel")},
}

# (published key, value) -> (our key, value, why)
TRANSLATED: list[tuple[str, object, str, object, str]] = [
    ("MODEL.MODEL_NAME", PUBLISHED_TIMESFORMER, "MODEL.MODEL_NAME", "timesformer_base", "TimeSformer's published name"),
    ("MODEL.MODEL_NAME", PUBLISHED_MVIT, "MODEL.MODEL_NAME", "mvit", "SlowFast's name"),
    ("DATA.DECODING_BACKEND", "torchvision", "DATA.DECODING_BACKEND", "auto", "torchvision no longer decodes videos"),
    ("SOLVER.OPTIMIZING_METHOD", "mt_adamw", "SOLVER.OPTIMIZING_METHOD", "adamw", "the same method, computed faster"),
    ("TRAIN.MIXED_PRECISION", True, "TRAIN.PRECISION", "fp16", "SlowFast's name"),
    ("TRAIN.MIXED_PRECISION", False, "TRAIN.PRECISION", "fp32", "SlowFast's name"),
    ("MIXUP.ENABLED", True, "MIXUP.ENABLE", True, "TimeSformer's name"),
    ("MIXUP.ENABLED", False, "MIXUP.ENABLE", False, "TimeSformer's name"),
    ("NUM_GPUS", 0, "DEVICE", "cpu", "no GPU"),
]

# What a published file means by leaving a key out, where that is not this project's default.
SLOWFAST_DEFAULTS: dict[str, object] = {
    "RNG_SEED": 1,
    "TRAIN.BATCH_SIZE": 64,
    "TRAIN.EVAL_PERIOD": 10,
    "TRAIN.CHECKPOINT_PERIOD": 10,
    "TRAIN.CHECKPOINT_EPOCH_RESET": False,
    "DATA_LOADER.NUM_WORKERS": 8,
}
TIMESFORMER_DEFAULTS: dict[str, object] = {
    "GLOBAL_BATCH_SIZE": 64,
    "RNG_SEED": 1,
    "TRAIN.BATCH_SIZE": 64,
    "TRAIN.EVAL_PERIOD": 10,
    "TRAIN.CHECKPOINT_PERIOD": 10,
    "TIMESFORMER.PRETRAINED_MODEL": IMAGENET_VIT,
    "DATA_LOADER.NUM_WORKERS": 8,
}


def find_inert(key: str) -> Inert | None:
    """The table's entry for a key: its own, or that of the innermost section which has one."""
    parts = key.split(".")
    entries = (INERT.get(".".join([*parts[:n], "*"])) for n in range(len(parts), 0, -1))
    return INERT.get(key) or next(filter(None, entries), None)


def is_harmless(entry: Inert, value: object) -> bool:
    """Whether a key at this value changes nothing here."""
    return entry.values is None or any(_same(value, harmless) for harmless in entry.values)


def read_layer(layer: Mapping[str, Setting]) -> tuple[dict[str, Setting], list[Note], list[str]]:
    """One file's settings, or the command line's, under this project's names: settings, translations, problems."""
    settings, notes, problems = dict(layer), [], []
    for key, value, our_key, our_value, reason in TRANSLATED:
        given = layer.get(key)
        if given is None or not _same(given.value, value):
            continue
        del settings[key]
        if our_key in settings:
            problems.append(f"{given.source}: {key} and {our_key} are one setting; {our_key} is also given")
        settings[our_key] = replace(given, value=our_value)
        notes.append(Note(key, value, f"read as {our_key} {our_value}: {reason}", given.source))
    size = settings.get("DATA.DECODING_SHORT_SIZE")
    if size and published_name(layer) and size.source != COMMAND_LINE:
        del settings["DATA.DECODING_SHORT_SIZE"]  # the published loaders never read it
        reason = "without effect there: videos were decoded at their own size"
        notes.append(Note("DATA.DECODING_SHORT_SIZE", size.value, reason, size.source))
    folder = settings.get("DATA.PATH_TO_DATA_DIR")
    if folder and isinstance(folder.value, str) and folder.value != folder.value.strip():
        settings["DATA.PATH_TO_DATA_DIR"] = replace(folder, value=folder.value.strip())
        notes.append(Note("DATA.PATH_TO_DATA_DIR", folder.value, "read without the spaces around it", folder.source))
    if names_published_timesformer(layer):
        start = settings.get("TIMESFORMER.PRETRAINED_MODEL")
        if start and start.value == "" and start.source != COMMAND_LINE:
            del settings["TIMESFORMER.PRETRAINED_MODEL"]  # there "" means the default, here it means none
    return settings, notes, problems


def published_name(layer: Mapping[str, Setting]) -> str | None:
    """The name by which a file or command line asks for a model, if only published files use it."""
    name = layer.get("MODEL.MODEL_NAME")
    return str(name.value) if name and name.value in (PUBLISHED_TIMESFORMER, PUBLISHED_MVIT) else None


def names_published_timesformer(layer: Mapping[str, Setting]) -> bool:
    """Whether a file or command line asks for the model by the name that TimeSformer's own files use."""
    return published_name(layer) == PUBLISHED_TIMESFORMER


class _Filling:
    """Settings that defaults are put into, with a note on each."""

    def __init__(self, settings: Mapping[str, Setting], source: str) -> None:
        self.settings, self.notes, self.source = dict(settings), list[Note](), source

    def put(self, key: str, value: object, reason: str) -> None:
        self.settings[key] = Setting(value, self.source)
        self.notes.append(Note(key, value, reason, self.source))

    def put_missing(self, values: Mapping[str, object]) -> None:
        for key, value in values.items():
            if key not in self.settings:
                self.put(key, value, "what a file means there by leaving it out")

    def reads_ssv2(self) -> bool:
        """Whether the run that the settings describe reads Something-Something."""
        train = self.settings.get("TRAIN.ENABLE")
        only_tests = train is not None and train.value is False
        dataset = self.settings.get("TEST.DATASET" if only_tests else "TRAIN.DATASET")
        return dataset is not None and dataset.value == "ssv2"


def fill_slowfast_defaults(settings: Mapping[str, Setting]) -> tuple[dict[str, Setting], list[Note]]:
    """A published SlowFast file of an MViT with what it means by leaving keys out: settings, translations.

    Channel order: there Something-Something frames are read as BGR, so that REVERSE_INPUT_CHANNEL makes them RGB.
    """
    filling = _Filling(settings, "SlowFast's default")
    filling.put_missing(SLOWFAST_DEFAULTS)
    given = filling.settings.get("DATA.REVERSE_INPUT_CHANNEL")
    if filling.reads_ssv2() and (given is None or given.source != COMMAND_LINE):
        reversed_there = given is not None and given.value is True
        colours = "RGB" if reversed_there else "BGR"
        filling.put(
            "DATA.REVERSE_INPUT_CHANNEL", not reversed_there, f"the original's weights saw {colours} frames here"
        )
    return filling.settings, filling.notes


def fill_timesformer_defaults(settings: Mapping[str, Setting]) -> tuple[dict[str, Setting], list[Note]]:
    """A published TimeSformer file with what it means by leaving keys out: settings, translations.

    Channel order: the original ignores REVERSE_INPUT_CHANNEL, but reads Something-Something frames as BGR.
    """
    filling = _Filling(settings, "TimeSformer's default")
    filled, put = filling.settings, filling.put
    filling.put_missing(TIMESFORMER_DEFAULTS)
    dropout = filled.pop("MODEL.DROPOUT_RATE", None)
    if dropout:
        filling.notes.append(
            Note("MODEL.DROPOUT_RATE", dropout.value, "without effect: the official ViT never reads it", dropout.source)
        )
    if "TRAIN.CHECKPOINT_EPOCH_RESET" not in filled:
        finetune = filled.get("TRAIN.FINETUNE")
        if not (finetune and finetune.value is True):
            put("TRAIN.CHECKPOINT_EPOCH_RESET", False, "there a checkpoint's epoch is kept except with TRAIN.FINETUNE")
    mixup, loss = filled.get("MIXUP.ENABLE"), filled.get("MODEL.LOSS_FUNC")
    if mixup and mixup.value is True and (loss is None or loss.value == "cross_entropy"):
        put("MODEL.LOSS_FUNC", "soft_cross_entropy", "there mixup always uses soft targets")

    given = filled.get("DATA.REVERSE_INPUT_CHANNEL")
    if given is None or given.source != COMMAND_LINE:
        if filling.reads_ssv2():
            put("DATA.REVERSE_INPUT_CHANNEL", True, "the original ignores the key, yet its weights saw BGR frames here")
        elif given is not None and given.value is True:
            put("DATA.REVERSE_INPUT_CHANNEL", False, "the original ignores the key, and its weights saw RGB frames")
    return filled, filling.notes


def _same(given: object, expected: object) -> bool:
    """Equality in which True is not 1."""
    return isinstance(given, bool) == isinstance(expected, bool) and given == expected
