"""A run's grid of probes, the loaders of its features and its validation, built from the settings."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoattn.cli.probes.compare import compare_steps
from videoattn.config import Config
from videoattn.data import Loader, build_prepare
from videoattn.data.clips.batch import Prepare
from videoattn.data.lists import VideoList
from videoattn.data.lists.record import list_record
from videoattn.data.readers.packed import parse_packed
from videoattn.engine.distributed import Process
from videoattn.engine.evaluate import EvaluationLoader, EvaluationOptions
from videoattn.engine.log import RunLog, logger
from videoattn.engine.optim import GradientClip, build_probe_optimizer
from videoattn.engine.probes.cache import CachedLoader, FeatureCache, checksum, encoder_tensors, fill_cache, from_cache
from videoattn.engine.probes.grid import Cell, Probe, ProbeGrid
from videoattn.engine.probes.trainer import ProbeTrainer, build_features
from videoattn.engine.probes.validation import GridValidation
from videoattn.engine.train import TrainingLoader, TrainState
from videoattn.models.registry import find_spec
from videoattn.models.weights.departures import describe_model

# Of so many videos of a list, the size and so many bytes say whether a cache is of them.
_DIGESTED, _DIGESTED_BYTES = 64, 2**14
# Settings of data that do not change which features a video has.
_FREE = ("DATA.PATH_", "DATA.CLASS_NAMES", "DATA.MAX_BAD_FRACTION", "DATA.ENSEMBLE_METHOD", "DATA.TEST_CROP_SIZE")


class ProbeParts(NamedTuple):
    """The trainer of a grid, its function from clips to features, and that of batches of a split without a cache."""

    trainer: ProbeTrainer
    encode: Callable[[Tensor], Tensor]
    features: Callable[[str], Prepare]


def build_probes(cfg: Config, model: nn.Module, process: Process, prepare: Prepare) -> ProbeParts:
    """Freeze a model with weights, and return the trainer of the grid that PROBE describes.

    Raises ValueError for a model of others that does not have the features of its head.
    """
    network: Any = model.eval().requires_grad_(False)
    if not hasattr(network, "forward_features") or not isinstance(getattr(network, "head", None), nn.Linear):
        raise ValueError(
            f"MODEL.FREEZE encoder expects a model with forward_features(clip) and a linear layer head, and "
            f"{cfg.model.model_name} has none"
        )
    pooler = getattr(network, "pooler", None)
    encode = (
        network.forward_features if pooler is None else getattr(network, "forward_head_tokens", network.forward_tokens)
    )
    cells = [Cell(*cell) for cell in cfg.probe.list_grid(cfg.solver.base_lr, cfg.solver.weight_decay)]
    grid = ProbeGrid(Probe(network.head, pooler), cells)
    compiled = torch.compile(encode) if cfg.train.compile else encode

    def features(split: str) -> Prepare:
        own = prepare if split == "train" else build_prepare(cfg, "val", process.device)
        return build_features(compiled, own, process.device, cfg.train.precision)

    trainer = ProbeTrainer(
        model, grid, build_probe_optimizer(cfg, grid.probes), process,
        from_cache(process.device) if cfg.probe.cache else features("train"), F.cross_entropy,
        seed=cfg.rng_seed, precision=cfg.train.precision,
        clip=GradientClip(cfg.solver.clip_grad_val, cfg.solver.clip_grad_l2norm),
    )  # fmt: skip
    return ProbeParts(trainer, encode, features)


def start_probes(
    cfg: Config, parts: ProbeParts, process: Process, loaders: tuple[Loader, Loader], log: RunLog, folder: Path,
    state: TrainState, is_new: bool,
) -> tuple[TrainingLoader, GridValidation]:  # fmt: skip
    """Return the loader of a run and its evaluation of every probe on val, with one centred clip of each video.

    A new run first measures a step beside one of fine-tuning, unless PROBE.COMPARE is False. With PROBE.CACHE, features
    that are missing there are made.
    """
    grid, device, precision = parts.trainer.grid, process.device, cfg.train.precision
    clips: TrainingLoader = loaders[0]
    val_clips: EvaluationLoader = loaders[1]
    if state.best is None:
        grid.best = [None] * len(grid.cells)  # the search for the best epoch starts again
    if is_new and cfg.probe.compare and process.is_main:
        logger.info("%s", compare_steps(parts.trainer.model, parts.encode, grid, loaders[0].batch_size, precision))
    if cfg.probe.cache:
        clips, val_clips = cache_features(cfg, parts, process, *loaders)
    features = from_cache(device) if cfg.probe.cache else parts.features("val")
    options = EvaluationOptions(cfg.model.num_classes, batch_size=loaders[1].batch_size, precision=precision)
    return clips, GridValidation(val_clips, features, options, process, log, folder, state)


def cache_features(
    cfg: Config, parts: ProbeParts, process: Process, loader: Loader, val_loader: Loader
) -> tuple[CachedLoader, CachedLoader]:
    """Return loaders of the features in PROBE.CACHE, which are made where they are missing.

    Raises ValueError where the folder holds features of other weights, settings or lists.
    """
    facts = describe_features(cfg, parts.trainer.model, loader, val_loader, process)
    cache = FeatureCache(Path(cfg.probe.cache), facts, process)
    epochs, seed = cfg.probe.cache_epochs, cfg.rng_seed
    return (
        fill_cache(cache, loader, "train", epochs, parts.features("train"), seed),
        fill_cache(cache, val_loader, "val", 1, parts.features("val"), seed),
    )


def describe_features(
    cfg: Config, model: nn.Module, loader: Loader, val_loader: Loader, process: Process
) -> dict[str, Any]:
    """Return all that the features of a run's clips depend on, by a name that people understand."""
    said = dict(_flatten(cfg.model_dump(by_alias=True, mode="json")))
    section = find_spec(cfg.model.model_name).section.upper()
    sections = ["DATA.", f"{section}.", *(["AUG."] if cfg.aug.enable else [])]
    keys = ("MODEL.MODEL_NAME", "RNG_SEED", "TRAIN.DATASET", "TRAIN.BATCH_SIZE", "TRAIN.PRECISION", "GLOBAL_BATCH_SIZE",
            "PROBE.TYPE", "PROBE.CACHE_EPOCHS")  # fmt: skip
    kept = {
        key: value
        for key, value in said.items()
        if key in keys or (key.startswith(tuple(sections)) and not key.startswith(_FREE))
    }
    lists = {"training": loader, "validation": val_loader}
    return {
        "the checksum of the encoder's weights": checksum(encoder_tensors(model))[:16],
        **{f"the model's {key}": value for key, value in describe_model(model).items()},
        **kept,
        "the number of processes": process.world_size,
        **{f"the {name} list": _short(list_record(one.videos)) for name, one in lists.items()},
        **{f"the content of the {name} videos": digest_videos(one.videos) for name, one in lists.items()},
    }


def _short(record: Mapping[str, Any]) -> str:
    return f"{record['videos']} videos, {record['digest'][:16]}"


def digest_videos(videos: VideoList) -> str:
    """Return a checksum of sizes and first bytes of some videos of a list: names alone do not say what they hold.

    Videos at web addresses are left out.
    """
    digest = hashlib.sha256()
    for index in range(0, len(videos), max(1, len(videos) // _DIGESTED)):
        listed = videos.path(index)
        packed = parse_packed(listed)
        path, offset = (Path(packed.shard), packed.offset) if packed else (Path(listed), 0)
        for file in sorted(path.iterdir())[:2] if path.is_dir() else [path]:
            if file.is_file():
                digest.update(str(packed.size if packed else file.stat().st_size).encode())
                with file.open("rb") as opened:
                    opened.seek(offset)
                    digest.update(opened.read(_DIGESTED_BYTES))
    return digest.hexdigest()[:16]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        flat += _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return flat
