"""The start of a training run: a checkpoint to continue from, weights to start from, or neither."""

from pathlib import Path

from torch import nn

from videoattn.config import Config
from videoattn.data.lists import VideoList, check_same_order
from videoattn.engine.checkpoint.files import list_checkpoints
from videoattn.engine.checkpoint.resume import Candidates, Content, Run, read_checkpoint
from videoattn.engine.log import logger
from videoattn.models.registry import find_spec
from videoattn.models.weights.departures import describe_data
from videoattn.models.weights.load import load_encoder, load_imagenet_vit, load_weights
from videoattn.zoo.rows import probe_file, weights_file


def check_weights(cfg: Config) -> None:
    """Raise ValueError where the file of weights to start from is missing."""
    if cfg.model.freeze == "encoder" and not cfg.train.checkpoint_file_path:
        raise ValueError("MODEL.FREEZE encoder expects the encoder's weights: set TRAIN.CHECKPOINT_FILE_PATH")
    path, key = pretrained_model(cfg), "TIMESFORMER.PRETRAINED_MODEL"
    if cfg.train.checkpoint_file_path:
        path, key = str(weights_file(cfg.train.checkpoint_file_path)), "TRAIN.CHECKPOINT_FILE_PATH"
    own = find_spec(cfg.model.model_name).own_weights
    if not path and own is not None:
        path, key = str(own() or ""), "MODEL.MODEL_NAME"
    if cfg.train.finetune and not path:
        raise ValueError("TRAIN.FINETUNE True expects weights to start from: set TRAIN.CHECKPOINT_FILE_PATH")
    if path and not path.startswith("timm:") and not Path(path).exists():
        raise ValueError(f"{key} {path}: no such file; expected weights to start from")
    if path and not cfg.train.checkpoint_epoch_reset and Path(path).is_dir():
        raise ValueError(f"{key} {path}: a folder holds no run that TRAIN.CHECKPOINT_EPOCH_RESET False could continue")


def pretrained_model(cfg: Config) -> str:
    """Return the image ViT to start from, or "". Raises ValueError for a model that does not start from one."""
    path, spec = cfg.timesformer.pretrained_model, find_spec(cfg.model.model_name)
    if path and spec.settings(cfg) is not cfg.timesformer:
        raise ValueError(
            f"TIMESFORMER.PRETRAINED_MODEL {path}: MODEL.MODEL_NAME {cfg.model.model_name} starts from no image ViT; "
            "leave the key out, or set TRAIN.CHECKPOINT_FILE_PATH"
        )
    return path


def check_epochs(cfg: Config, found: tuple[Path, Content] | None, folder: Path) -> None:
    """Raise ValueError where another run's checkpoint leaves nothing to train."""
    if found is not None and found[0].parent != folder / "checkpoints" and found[1]["epoch"] >= cfg.solver.max_epoch:
        raise ValueError(
            f"{found[0]} has finished {found[1]['epoch']} epochs, so SOLVER.MAX_EPOCH {cfg.solver.max_epoch} leaves "
            "nothing to train; expected a larger number"
        )


def find_checkpoint(cfg: Config, candidates: Candidates, this_run: Run) -> tuple[Path, Content] | None:
    """Return the checkpoint to continue from with its content, if there is one, compared with this run."""
    if list_checkpoints(candidates.folder) and not cfg.train.auto_resume:
        raise ValueError(
            f"{candidates.folder} holds checkpoints of an earlier run, which TRAIN.AUTO_RESUME: False would overwrite; "
            "set another OUTPUT_DIR, or delete them"
        )
    found = candidates.newest()
    if found is None and cfg.train.checkpoint_file_path and not cfg.train.checkpoint_epoch_reset:
        path = weights_file(cfg.train.checkpoint_file_path)
        found = path, read_checkpoint(path, this_run.compare)
    return found


def start_weights(cfg: Config, model: nn.Module, videos: VideoList) -> None:
    """Load the weights that the run starts from, if there are any, and log what was loaded."""
    finetune = cfg.train.finetune
    given = cfg.train.checkpoint_file_path
    own = find_spec(cfg.model.model_name).own_weights
    named = weights_file(given) if given else own and own()
    if named:
        path, data = str(named), describe_data(cfg, testing=False, class_names=videos.class_names)
        if cfg.model.freeze == "encoder":
            logger.info("%s", load_encoder(model, path, allow_resize=finetune, data=data))
            return
        probe = probe_file(given) if given else None
        report = load_weights(model, path, allow_new_head=finetune, allow_resize=finetune, data=data, probe=probe)
        logger.info("%s", report)
        if not finetune:
            check_same_order(videos.class_names, videos.source, report.class_names, path)
    elif path := pretrained_model(cfg):
        logger.info("%s", load_imagenet_vit(model, path))
    elif own:
        logger.warning("%s holds no weights, so training starts from random ones", cfg.model.model_name)
