"""Keys and values of published SlowFast and TimeSformer files that are read under this project's names.

`read_level` and the functions that fill defaults in turn published names, values and defaults into this project's.
Source: both projects' default settings and the code that reads them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from videoattn.config.ignored_keys import CONVOLUTIONAL_SECTIONS, MODELS_OF_ARCH, UNSUPPORTED_MODELS, is_same
from videoattn.config.strict_yaml import COMMAND_LINE, Setting, show

PUBLISHED_TIMESFORMER = "vit_base_patch16_224"
PUBLISHED_MVIT = "MViT"
IMAGENET_VIT = "timm:vit_base_patch16_224.orig_in21k_ft_in1k"


@dataclass(frozen=True)
class Note:
    """One published key and its treatment."""

    key: str
    value: object
    reason: str
    source: str


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
    "DATA.TEST_CROP_SIZE": 256,
    "DATA_LOADER.NUM_WORKERS": 8,
}
TIMESFORMER_DEFAULTS: dict[str, object] = {
    "GLOBAL_BATCH_SIZE": 64,
    "RNG_SEED": 1,
    "TRAIN.BATCH_SIZE": 64,
    "TRAIN.EVAL_PERIOD": 10,
    "TRAIN.CHECKPOINT_PERIOD": 10,
    "TIMESFORMER.PRETRAINED_MODEL": IMAGENET_VIT,
    "DATA.TEST_CROP_SIZE": 256,
    "DATA_LOADER.NUM_WORKERS": 8,
}


def read_level(level: Mapping[str, Setting]) -> tuple[dict[str, Setting], list[Note], list[str]]:
    """Translate one level of settings, a file or the command line, to this project's names.

    Returns settings, notes on translations, and problems.
    """
    settings, notes, problems = dict(level), [], []
    for key, value, our_key, our_value, reason in TRANSLATED:
        given = level.get(key)
        if given is None or not is_same(given.value, value):
            continue
        del settings[key]
        if our_key in settings:
            problems.append(f"{given.source}: {key} and {our_key} are one setting; {our_key} is also given")
        settings[our_key] = replace(given, value=our_value)
        notes.append(Note(key, value, f"read as {our_key} {our_value}: {reason}", given.source))
    size = settings.get("DATA.DECODING_SHORT_SIZE")
    if size and published_name(level) and size.source != COMMAND_LINE:
        del settings["DATA.DECODING_SHORT_SIZE"]  # the published loaders never read it
        reason = "without effect there: videos were decoded at their own size"
        notes.append(Note("DATA.DECODING_SHORT_SIZE", size.value, reason, size.source))
    backend = settings.get("DIST_BACKEND")
    if backend and backend.value == "nccl" and published_name(level) and backend.source != COMMAND_LINE:
        del settings["DIST_BACKEND"]  # their default, which all dumps contain, whatever machine they were made on
        notes.append(Note("DIST_BACKEND", "nccl", "read as auto: nccl on GPUs, gloo elsewhere", backend.source))
    folder = settings.get("DATA.PATH_TO_DATA_DIR")
    if folder and isinstance(folder.value, str) and folder.value != folder.value.strip():
        settings["DATA.PATH_TO_DATA_DIR"] = replace(folder, value=folder.value.strip())
        notes.append(Note("DATA.PATH_TO_DATA_DIR", folder.value, "read without the spaces around it", folder.source))
    if names_published_timesformer(level):
        start = settings.get("TIMESFORMER.PRETRAINED_MODEL")
        if start and start.value == "" and start.source != COMMAND_LINE:
            del settings["TIMESFORMER.PRETRAINED_MODEL"]  # there "" means the default, here it means none
    return settings, notes, problems


def published_name(level: Mapping[str, Setting]) -> str | None:
    """Return the model's name in a file or command line if only published files use that name."""
    name = level.get("MODEL.MODEL_NAME")
    return str(name.value) if name and name.value in (PUBLISHED_TIMESFORMER, PUBLISHED_MVIT) else None


def names_published_timesformer(level: Mapping[str, Setting]) -> bool:
    """Return whether a file or command line names the model as TimeSformer's own files do."""
    return published_name(level) == PUBLISHED_TIMESFORMER


def refuse_model(settings: Mapping[str, Setting]) -> str | None:
    """Return the reason why no model can be built from published settings, None where one can.

    A file that leaves MODEL.MODEL_NAME out means SlowFast's own networks, whatever this project's default is.
    """
    name, arch = settings.get("MODEL.MODEL_NAME"), settings.get("MODEL.ARCH")
    if name is not None:
        instead = UNSUPPORTED_MODELS.get(name.value) if isinstance(name.value, str) else None
        return instead and f"{name.source}: MODEL.MODEL_NAME: {instead}"
    if arch is not None:
        asked = arch.value[0] if isinstance(arch.value, tuple) and arch.value else arch.value
        model = MODELS_OF_ARCH.get(asked) if isinstance(asked, str) else None
        names = {"vit": PUBLISHED_TIMESFORMER, "mvit": PUBLISHED_MVIT}
        wanted = f"such as {names[asked]}" if asked in names else "which is missing"
        reason = UNSUPPORTED_MODELS[model] if model else f"a model is chosen by MODEL.MODEL_NAME, {wanted}"
        return f"{arch.source}: MODEL.ARCH {show(arch.value)} without MODEL.MODEL_NAME: {reason}"
    for key, setting in settings.items():
        if key.startswith(CONVOLUTIONAL_SECTIONS):
            return (
                f"{setting.source}: {key} without MODEL.MODEL_NAME: only SlowFast's convolutional networks read it, "
                "and nothing chooses the model"
            )
    return None


class _Filling:
    """Settings to fill with defaults, with a note on each."""

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
        """Return whether the settings describe a run on Something-Something."""
        train = self.settings.get("TRAIN.ENABLE")
        only_tests = train is not None and train.value is False
        dataset = self.settings.get("TEST.DATASET" if only_tests else "TRAIN.DATASET")
        return dataset is not None and dataset.value == "ssv2"


def fill_slowfast_defaults(settings: Mapping[str, Setting]) -> tuple[dict[str, Setting], list[Note]]:
    """Fill in what a published SlowFast file of an MViT means by absent keys: settings, translations.

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
    """Fill in what a published TimeSformer file means by absent keys: settings, translations.

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

    given = filled.get("DATA.REVERSE_INPUT_CHANNEL")
    if given is None or given.source != COMMAND_LINE:
        if filling.reads_ssv2():
            put("DATA.REVERSE_INPUT_CHANNEL", True, "the original ignores the key, yet its weights saw BGR frames here")
        elif given is not None and given.value is True:
            put("DATA.REVERSE_INPUT_CHANNEL", False, "the original ignores the key, and its weights saw RGB frames")
    return filled, filling.notes
