#!/usr/bin/env python3
"""Train a model on videos.

Examples:
    python tools/train_net.py --cfg configs/Motion/divided_fibonacci_time.yaml
    python tools/train_net.py --cfg configs/Kinetics/TimeSformer_divST_8x32_224.yaml DATA.PATH_TO_DATA_DIR data/k400
    python tools/train_net.py --cfg configs/Motion/divided.yaml ATTENTION.TIME.NAME lisa    # docs/attention.md
    python tools/train_net.py --cfg configs/Clips/TimeSformer_from_K400.yaml DATA.PATH_TO_DATA_DIR data/clips
    torchrun --nproc_per_node 8 tools/train_net.py --cfg FILE TRAIN.BATCH_SIZE 64 TRAIN.PRECISION bf16

OUTPUT_DIR then holds config.yaml, environment.json, log.jsonl (one line per event), run.log and checkpoints/. The same
command continues a run that was stopped.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoattn.command_line import run_tool
from videoattn.config import Config
from videoattn.config_file import (
    add_config_arguments,
    changed_keys,
    dump_config,
    format_report,
    load_config_with_report,
    parse_overrides,
)
from videoattn.data import Batch, BatchAugment, Loader, Mixing, build_loader, normalize
from videoattn.data.annotations import VideoList, check_same_order
from videoattn.engine.checkpoint import list_checkpoints, load_checkpoint
from videoattn.engine.distributed import Process, init_distributed, leave_cores_to_workers, shutdown
from videoattn.engine.evaluate import evaluate
from videoattn.engine.log import RunLog, describe_machine, logger, package_versions, set_up_logging
from videoattn.engine.optim import GradientClip, build_optimizer, build_schedule
from videoattn.engine.train import TrainOptions, TrainState, restore, train
from videoattn.engine.trainer import Trainer
from videoattn.files import atomic_write
from videoattn.models import build_model
from videoattn.models.checkpoints import load_imagenet_vit, load_weights
from videoattn.models.departures import describe_data
from videoattn.seeding import derive_seed
from videoattn.zoo_rows import weights_file

# Settings that may differ between a run and its continuation: none of them changes what is learned.
FREE_KEYS = (
    "OUTPUT_DIR", "LOG_PERIOD", "DEVICE", "DIST_BACKEND", "DATA_LOADER.", "TENSORBOARD.", "TEST.", "TRAIN.EVAL_PERIOD",
    "TRAIN.CHECKPOINT_", "TRAIN.KEEP_CHECKPOINTS", "TRAIN.AUTO_RESUME", "TRAIN.COMPILE", "DATA.MAX_BAD_FRACTION",
    "DATA.PATH_TO_DATA_DIR", "DATA.PATH_PREFIX", "DATA.CLASS_NAMES", "DATA.TEST_CROP_SIZE", "DATA.DECODING_BACKEND",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    cfg, report = load_config_with_report(args.cfg, parse_overrides(args))
    if not cfg.train.enable:
        raise ValueError("TRAIN.ENABLE is False, so there is nothing to train; tools/test_net.py evaluates")

    process = init_distributed(cfg.dist_backend, cfg.device)
    leave_cores_to_workers(process, cfg.data_loader.num_workers)
    folder = Path(cfg.output_dir)
    set_up_logging(folder if process.is_main else None)
    if process.is_main:
        for line in format_report(report, args.verbose).splitlines():
            logger.info("%s", line)
    checkpoint = find_checkpoint(cfg, folder / "checkpoints")
    if process.is_main:
        write_run_files(cfg, folder)

    torch.use_deterministic_algorithms(cfg.train.deterministic, warn_only=True)
    torch.manual_seed(derive_seed(cfg.rng_seed, "weights"))
    model = build_model(cfg)
    build = partial(build_loader, cfg, rank=process.rank, world_size=process.world_size,
                    local_world_size=process.local_world_size)  # fmt: skip
    loader, val_loader = build("train"), build("val")
    check_same_order(loader.class_names, loader.videos.source, val_loader.class_names, val_loader.videos.source)
    if checkpoint is None:
        start_weights(cfg, model, loader.videos)
    model = model.to(process.device)
    num_machines = process.world_size // process.local_world_size
    trainer = Trainer(
        model,
        build_optimizer(cfg, model),
        process,
        build_prepare(cfg, process, loader),
        F.cross_entropy,
        seed=cfg.rng_seed,
        precision=cfg.train.precision,
        clip=GradientClip(cfg.solver.clip_grad_val, cfg.solver.clip_grad_l2norm),
        ema_decay=cfg.ema.decay if cfg.ema.enabled else None,
        compile_model=cfg.train.compile,
    )
    state = TrainState()
    if checkpoint:
        content = load_checkpoint(checkpoint)
        check_same_order(loader.class_names, loader.videos.source, content.get("class_names"), str(checkpoint))
        state = restore(trainer, content)
    if process.is_main:
        logger.info(
            "%s: %.2f M parameters; %d training and %d validation videos; %d steps of %d clips an epoch; on %s x %d",
            cfg.model.model_name, sum(p.numel() for p in model.parameters()) / 1e6, loader.num_videos,
            val_loader.num_videos, loader.num_batches // loader.accumulate,
            loader.batch_size * loader.accumulate * process.world_size, process.device, process.world_size,
        )  # fmt: skip
        if checkpoint:
            logger.info("continuing from %s (epoch %d, step %d)", checkpoint, state.epoch, state.step)
    options = TrainOptions(
        max_epoch=cfg.solver.max_epoch,
        log_period_steps=cfg.log_period,
        eval_period_epochs=cfg.train.eval_period,
        checkpoint_period_epochs=cfg.train.checkpoint_period,
        checkpoint_steps=cfg.train.checkpoint_steps,
        checkpoint_minutes=cfg.train.checkpoint_minutes,
        keep_checkpoints=cfg.train.keep_checkpoints,
        max_bad_fraction=cfg.data.max_bad_fraction,
    )
    log = RunLog(folder if process.is_main else None, cfg.tensorboard.enable)
    log.write("resume" if checkpoint else "start", versions=package_versions(), checkpoint=str(checkpoint or ""))
    started = time.perf_counter()
    try:
        train(
            trainer,
            loader,
            build_schedule(cfg, num_machines),
            options,
            folder=folder / "checkpoints",
            state=state,
            log=log,
            validate=build_validate(cfg, process, val_loader),
            config_text=dump_config(cfg),
            class_names=loader.class_names,
        )
    finally:
        loader.close()
        val_loader.close()
        log.close()
    if process.is_main:
        logger.info("trained in %.1f minutes, best top-1 %.2f %%; results in %s", (time.perf_counter() - started) / 60,
                    100 * state.best, folder)  # fmt: skip
        logger.info("evaluate: python tools/test_net.py --cfg %s", folder / "config.yaml")
    shutdown()


def write_run_files(cfg: Config, folder: Path) -> None:
    """The resolved settings, and what the run depends on besides them."""
    environment = {"command": sys.argv, "versions": package_versions(), "machine": describe_machine()}
    for name, text in (
        ("config.yaml", dump_config(cfg)),
        ("environment.json", json.dumps(environment, indent=2) + "\n"),
    ):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text)


def find_checkpoint(cfg: Config, folder: Path) -> Path | None:
    """The checkpoint to continue from, if there is one. Raises ValueError if it was made with other settings."""
    existing = list_checkpoints(folder)
    if existing and not cfg.train.auto_resume:
        raise ValueError(
            f"{folder} holds checkpoints of an earlier run, which TRAIN.AUTO_RESUME: False would overwrite; set "
            "another OUTPUT_DIR, or delete them"
        )
    if existing:
        newest = existing[-1].path
        changed = changed_keys(load_checkpoint(newest)["cfg"], dump_config(cfg))
        changed = [key for key in changed if not key.startswith(FREE_KEYS)]
        if changed:
            raise ValueError(
                f"{newest} was made with other settings ({', '.join(changed)}), so the run can't continue from it; set "
                "another OUTPUT_DIR, or start from its weights alone by TRAIN.CHECKPOINT_FILE_PATH"
            )
        return newest
    if cfg.train.checkpoint_file_path and not cfg.train.checkpoint_epoch_reset:
        return weights_file(cfg.train.checkpoint_file_path)
    return None


def start_weights(cfg: Config, model: nn.Module, videos: VideoList) -> None:
    """Load what the run starts from, if anything, and say what was loaded."""
    finetune = cfg.train.finetune
    if cfg.train.checkpoint_file_path:
        path = str(weights_file(cfg.train.checkpoint_file_path))
        data = describe_data(cfg, testing=False, class_names=videos.class_names)
        report = load_weights(model, path, allow_new_head=finetune, allow_resize=finetune, data=data)
        logger.info("%s", report)
        if not finetune:
            check_same_order(videos.class_names, videos.source, report.class_names, path)
    elif cfg.timesformer.pretrained_model:
        logger.info("%s", load_imagenet_vit(model, cfg.timesformer.pretrained_model))


def build_prepare(cfg: Config, process: Process, loader: Loader) -> Callable[[Batch, int], tuple[Tensor, Tensor]]:
    """From a batch and a seed to normalised clips and targets on the device, augmented and mixed as cfg says."""
    augment = mixing = None
    if cfg.aug.enable and cfg.aug.device == "model":
        augment = BatchAugment(
            color_jitter=cfg.aug.color_jitter,
            aa_type=cfg.aug.aa_type,
            interpolation=cfg.aug.interpolation,
            erase_prob=cfg.aug.re_prob,
            erase_mode=cfg.aug.re_mode,
            erase_count=cfg.aug.re_count,
            mean=cfg.data.mean,
            std=cfg.data.std,
        )
    if cfg.mixup.enable:
        mixing = Mixing(
            alpha=cfg.mixup.alpha,
            cutmix_alpha=cfg.mixup.cutmix_alpha,
            prob=cfg.mixup.prob,
            switch_prob=cfg.mixup.switch_prob,
            label_smoothing=cfg.mixup.label_smooth_value,
            num_classes=cfg.model.num_classes,
        )
    clips_before = process.rank * loader.batch_size * (cfg.aug.num_sample if cfg.aug.enable else 1)

    def prepare(batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
        batch = batch.to(process.device, non_blocking=True)
        clips = batch.clips if augment is None else augment(batch.clips, seed, clips_before)
        clips = normalize(clips, cfg.data.mean, cfg.data.std, cfg.data.reverse_input_channel)
        return (clips, batch.labels) if mixing is None else mixing(clips, batch.labels, seed, clips_before // 2)

    return prepare


def build_validate(cfg: Config, process: Process, loader: Loader) -> Callable[[nn.Module], dict[str, float]]:
    """Top-1 and top-5 on val with one centred clip and crop."""

    def validate(model: nn.Module) -> dict[str, float]:
        results = evaluate(
            model,
            loader,
            device=process.device,
            mean=cfg.data.mean,
            std=cfg.data.std,
            reverse_channels=cfg.data.reverse_input_channel,
            num_classes=cfg.model.num_classes,
            num_views=1,
            batch_size=loader.batch_size,
            precision=cfg.train.precision,
            process=process,
        )
        return {"top1": results.top_k(1) or 0.0, "top5": results.top_k(5) or 0.0}

    return validate


if __name__ == "__main__":
    sys.exit(run_tool(main))
