"""Video classifiers of transformers, to train, evaluate and profile beside our own models."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from videoattn.config import Config
from videoattn.convert.replace import replace_attention
from videoattn.convert.sites import TIMESFORMER_ATTENTION
from videoattn.convert.stand_ins import ReplacedAttention
from videoattn.grid import Axis
from videoattn.layers.attention import BuildOperator
from videoattn.layers.blocks import check_clip
from videoattn.models.hub import import_transformers, model_folder, weights_folder
from videoattn.models.settings import attention_arguments
from videoattn.models.spec import ModelSpec, decay_all
from videoattn.models.video_vit.transformers_form import NO_PREDICTOR, empty_predictor
from videoattn.models.weights.adapter import FitOptions, WeightAdapter
from videoattn.models.weights.files import CheckpointError, WeightFile, some_names
from videoattn.models.weights.report import LoadReport, complete
from videoattn.models.weights.transformers_folder import CONFIG, clip_size_of, read_json
from videoattn.operators import OPERATORS

_OURS = "network."  # before every name of theirs in our checkpoints
_BLOCK = r"(?:\w+\.)*?\w*layers?\.\d+\."
_JOINT = ("videomae", "vivit", "vjepa2")  # model types that attend jointly, and whose attention can be replaced


class TransformersClassifier(nn.Module):
    """One of transformers' video classifiers for clips [B, 3, T, H, W] of exactly `clip_size`; returns logits.

    `name` is transformers/FOLDER or transformers/OWNER/NAME, whose config.json makes the network; its weights are not
    loaded here. `operators` replace its attention along their axes. V-JEPA 2's predictor, which classifies nothing,
    is left out. No code of a repository is run. Raises ImportError where transformers is not installed, ValueError for
    a folder that is no video classifier's, clips of another size, and attention that can't be replaced.
    """

    def __init__(
        self, name: str, clip_size: tuple[int, int, int] | None = None, num_classes: int = 400,
        operators: Mapping[Axis, BuildOperator] | None = None, act_checkpoint: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        config = read_model_config(name)
        folder = model_folder(name)
        expected = clip_size_of(folder / CONFIG, read_json(folder / CONFIG))
        self.clip_size = clip_size or expected
        if self.clip_size != expected:
            raise ValueError(
                f"its {CONFIG} is for clips of {' x '.join(map(str, expected))} (DATA.NUM_FRAMES, height and width: "
                f"DATA.TRAIN_CROP_SIZE and DATA.TEST_CROP_SIZE), got {' x '.join(map(str, self.clip_size))}"
            )
        self.num_classes = config.num_labels = num_classes
        library = import_transformers()
        with _config_errors(name):
            network = library.AutoModelForVideoClassification.from_config(
                config, dtype=torch.float32, trust_remote_code=False
            )
        self.network: Any = network
        base = getattr(network, network.base_model_prefix)
        if hasattr(base, "predictor"):
            base.predictor = None
        if act_checkpoint:
            enable = getattr(network, "activation_checkpointing_enable", network.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        self.described: dict[str, Any] = {}
        if operators:
            along: dict[str, Any] = {axis.value: build for axis, build in operators.items()}
            replace_attention(network, **along, verbose=False)
            replaced = [module for module in network.modules() if isinstance(module, ReplacedAttention)]
            self.described["replaced attention"] = tuple(_describe(module) for module in replaced)
        # of an encoder from first to last, and not of V-JEPA 2's pooler
        found = [
            re.match(rf"network\.{network.base_model_prefix}\.{_BLOCK}", name) for name, _ in self.named_parameters()
        ]
        self.blocks = list(dict.fromkeys(match[0] for match in found if match))

    def forward(self, clip: Tensor) -> Tensor:
        check_clip(clip, self.clip_size)
        logits: Tensor = self.network(clip.transpose(1, 2)).logits
        return logits


def _describe(module: ReplacedAttention) -> str:
    """Return the operator of replaced attention with its options."""
    operator = module.operator
    name = next((name for name, kind in OPERATORS.items() if type(operator) is kind), type(operator).__name__)
    options = ", ".join(f"{key.upper()} {value}" for key, value in operator.options.items())
    return f"{name} ({options})" if options else name


def read_model_config(name: str) -> Any:
    """Return transformers' config of a model. Raises ValueError unless it is that of a video classifier."""
    library = import_transformers()
    folder = model_folder(name)
    said = read_json(folder / CONFIG).get("model_type")
    known = {config.model_type for config in library.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING}
    if said not in known:
        raise ValueError(
            f"MODEL.MODEL_NAME {name}: its {CONFIG} says model_type {said!r}, and transformers' video classifiers are "
            f"{', '.join(sorted(known))}"
        )
    with _config_errors(name):
        return library.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextmanager
def _config_errors(name: str) -> Iterator[None]:
    """Turn what transformers raises for wrong values of a config.json into one line."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"MODEL.MODEL_NAME {name}: transformers can't follow its {CONFIG}: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing bars and tables; what is missing or left over is an error or in our report."""
    logs = import_transformers().logging
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()


def fit_transformers(
    model: TransformersClassifier, file: WeightFile, report: LoadReport, options: FitOptions
) -> dict[str, Tensor]:
    """Return the model's complete new state from a file of ours, or from a file or folder of transformers."""
    target = model.state_dict()
    if all(name.startswith(_OURS) for name in file.tensors):
        state = dict(file.tensors)
    else:
        state = _read_theirs(model, file, report, options)
    head = [name for name in target if name.startswith(f"{_OURS}classifier.")]
    differing = [name for name in head if name in state and state[name].shape != target[name].shape]
    if differing and options.head != "keep":
        report.dropped += differing
        report.initialised += differing
        state |= {name: target[name] for name in differing}
    elif differing:
        theirs, ours = (values[differing[0]].shape[0] for values in (state, target))
        raise CheckpointError(
            f"the classes differ (allow_new_head=True, or TRAIN.FINETUNE True, starts a new head): {theirs} in the "
            f"file, {ours} in the model"
        )
    added = [name for name in target if ".operator." in name and name not in state]
    report.initialised += added
    return complete(state | {name: target[name] for name in added}, target)


def _read_theirs(
    model: TransformersClassifier, file: WeightFile, report: LoadReport, options: FitOptions
) -> dict[str, Tensor]:
    """Return the state that transformers makes of its own names, older ones included, under ours.

    Where a new head may start, that of the model stands for one that is missing, and parts besides the encoder that
    the model does not have are left out, both named in the report.
    """
    report.family = "huggingface"
    network, name = model.network, str(file.settings.get("model_type"))
    if file.settings.get("model_type") not in (None, network.config.model_type):
        raise CheckpointError(f"its {CONFIG} says model_type {name!r}; the model is a {network.config.model_type}")
    config = type(network.config).from_dict(network.config.to_dict())
    if "classifier.weight" in file.tensors:
        config.num_labels = file.tensors["classifier.weight"].shape[0]
    with _quiet():
        theirs, told = type(network).from_pretrained(
            None, config=config, state_dict=dict(file.tensors), output_loading_info=True, ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )  # fmt: skip
    missing, unexpected = set(told["missing_keys"]), set(told["unexpected_keys"])
    if options.head != "keep":
        prefix = f"{network.base_model_prefix}."
        started = {name for name in missing if not name.startswith(prefix)}
        left_out = {name for name in unexpected if not name.startswith(prefix)}
        missing, unexpected = missing - started, unexpected - left_out
        report.initialised += [f"{_OURS}{name}" for name in sorted(started)]
        report.dropped += sorted(left_out)
    else:
        started = set()
    problems = {"missing": sorted(missing), "unexpected": sorted(unexpected)}
    shapes = [f"{name} {tuple(a)} instead of {tuple(b)}" for name, a, b in sorted(told["mismatched_keys"])]
    found = [f"{len(names)} {what}: {some_names(names)}" for what, names in problems.items() if names]
    found += [f"{len(shapes)} of another shape: {some_names(shapes)}"] if shapes else []
    if found:
        raise CheckpointError(f"of the tensors of transformers' {type(network).__name__}, {'; '.join(found)}")
    target, state = model.state_dict(), {}
    for key, value in theirs.state_dict().items():
        ours = f"{_OURS}{key}"
        if ".predictor." in key and ours not in target:
            report.dropped.append(key)
        else:
            state[ours] = target[ours] if key in started else value
    return state


def read_baseline(name: str, cfg: Config) -> dict[str, Any]:
    """Return the constructor's arguments besides clip size and classes. Raises ValueError naming the key at fault."""
    config = read_model_config(name)
    kind = config.model_type
    axes = tuple(TIMESFORMER_ATTENTION[config.attention_type]) if kind == "timesformer" else ()
    if kind in _JOINT:
        axes = (Axis.JOINT,)
    attention = attention_arguments(cfg, axes, "of its config.json", getattr(config, "num_hidden_layers", 0))
    if attention["skip"]:
        skipped = ", ".join(f"ATTENTION.SKIP.{axis.name}" for axis in attention["skip"])
        raise ValueError(f"{skipped}: blocks of transformers' models can't skip attention; expected none")
    chosen = {axis: build for axis, build in attention["operators"].items() if _asks(cfg, axis)}
    return {"operators": chosen, "act_checkpoint": cfg.model.act_checkpoint}


def _asks(cfg: Config, axis: Axis) -> bool:
    return any(section.name != "dense" for section in getattr(cfg.attention, axis.value))


def layer_of(model: TransformersClassifier, name: str) -> int:
    """Return the number of layers above a parameter: 0 for the head, the most for embeddings."""
    for number, block in enumerate(model.blocks):
        if name.startswith(block):
            return len(model.blocks) - number
    return len(model.blocks) + 1 if "embeddings" in name else 0


def to_transformers(model: TransformersClassifier) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config.json and tensors of the network. Raises CheckpointError where its attention is replaced."""
    if replaced := set(model.described.get("replaced attention", ())) - {"dense"}:
        raise CheckpointError(
            f"transformers' {type(model.network).__name__} does not attend by {', '.join(sorted(replaced))}; convert "
            "--to videoattn"
        )
    config: dict[str, Any] = model.network.config.to_dict()
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    config["architectures"] = [type(model.network).__name__]
    tensors: dict[str, Tensor] = dict(model.network.state_dict())
    if config["model_type"] == "vjepa2":
        config |= NO_PREDICTOR
        tensors |= empty_predictor("vjepa2.", config["hidden_size"])
    return config, tensors


ADAPTER = WeightAdapter(
    held="a video classifier of transformers", fit=fit_transformers, to_transformers=to_transformers
)


def transformers_spec(name: str) -> ModelSpec:
    """Return the spec of transformers/FOLDER or transformers/OWNER/NAME, by its config.json.

    Raises ValueError where there is no such folder, and it can't be fetched.
    """
    path = model_folder(name) / CONFIG
    said = read_json(path)
    return ModelSpec(
        model=TransformersClassifier,
        size={"name": name},
        clip_size=clip_size_of(path, said),
        arguments=partial(read_baseline, name),
        aggregate="logits" if said.get("model_type") == "timesformer" else "probabilities",
        no_weight_decay=decay_all,
        layer_of=layer_of,
        adapter=ADAPTER,
        own_weights=partial(weights_folder, name),
    )
