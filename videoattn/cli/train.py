"""Train a model on videos.

Examples:
    videoattn train --cfg Motion/divided_fibonacci_time.yaml
    videoattn train --cfg Kinetics/TimeSformer_divST_8x32_224.yaml DATA.PATH_TO_DATA_DIR data/k400
    videoattn train --cfg Motion/divided.yaml ATTENTION.TIME.NAME lisa    # docs/attention.md
    videoattn train --cfg Clips/TimeSformer_from_K400.yaml DATA.PATH_TO_DATA_DIR data/clips
    videoattn train --cfg Motion/long_probe.yaml PROBE.LRS "[1e-3, 3e-3]"    # docs/probes.md
    torchrun --nproc_per_node 8 -m videoattn train --cfg FILE TRAIN.BATCH_SIZE 64 TRAIN.PRECISION bf16

OUTPUT_DIR then holds config.yaml, environment.json, train_list.csv.gz, log.jsonl (one line per event), run.log and
checkpoints/. The same command continues a run that was stopped (docs/training.md).
"""

import json
import shlex
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from videoattn.cli.probes.build import build_probes, start_probes
from videoattn.cli.programs import command, make_parser
from videoattn.cli.train_start import check_epochs, check_weights, find_checkpoint, start_weights
from videoattn.config import Config
from videoattn.config.load import (
    add_config_arguments,
    changed_keys,
    dump_config,
    format_report,
    load_config_with_report,
    parse_overrides,
)
from videoattn.data import Loader, build_loader, build_prepare
from videoattn.data.clips.batch import Prepare
from videoattn.data.lists import check_same_order
from videoattn.data.lists.missing import check_videos
from videoattn.data.lists.record import write_list
from videoattn.engine.checkpoint.files import list_checkpoints, make_checkpoint_folder
from videoattn.engine.checkpoint.resume import Candidates, Run, resume, take_notes
from videoattn.engine.distributed import (
    Process,
    gather_objects,
    init_distributed,
    leave_cores_to_workers,
    shared_errors,
    shutdown,
)
from videoattn.engine.evaluate import EvaluationOptions, evaluate
from videoattn.engine.log import RunLog, describe_machine, logger, package_versions, set_up_logging
from videoattn.engine.optim import GradientClip, build_optimizer, build_schedule
from videoattn.engine.results import Results
from videoattn.engine.run_folder import lock_run_folder
from videoattn.engine.train import Steps, TrainingLoader, TrainingRun, TrainOptions, TrainState, train
from videoattn.engine.trainer import Trainer
from videoattn.files import atomic_write
from videoattn.models import build_model
from videoattn.models.registry import find_spec
from videoattn.seeding import derive_seed


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("train", __doc__)
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    overrides = parse_overrides(args)
    cfg, report = load_config_with_report(args.cfg, overrides)
    if not cfg.train.enable:
        raise ValueError(f"TRAIN.ENABLE is False, so there is nothing to train; {command('test')} evaluates")

    process = init_distributed(cfg.dist_backend, cfg.device)
    leave_cores_to_workers(process, cfg.data_loader.num_workers)
    folder = Path(cfg.output_dir)
    with ExitStack() as held:
        with shared_errors():
            if process.is_main:
                held.enter_context(lock_run_folder(folder))
            set_up_logging(folder if process.is_main else None)
        if process.is_main:
            for line in format_report(report, args.verbose).splitlines():
                logger.info("%s", line)
        try:
            run(cfg, process, folder, overrides[::2])
        except FloatingPointError as error:
            if cfg.model.freeze == "encoder":
                raise  # its message names the last probe, and PROBE.LRS do not change within a run
            again = lower_rate_command(cfg, process, sys.argv[1:] if argv is None else argv)
            saved = list_checkpoints(folder / "checkpoints")
            continued = f"continue from {saved[-1].path}" if saved else "nothing was saved yet: start again"
            raise FloatingPointError(f"{error}; {continued} with a lower rate by: {again}") from error
    shutdown()


def run(cfg: Config, process: Process, folder: Path, given: Collection[str]) -> None:
    """Train as `cfg` says; the command line gave the keys `given`. Whatever can be refused is, before the model."""
    build = partial(build_loader, cfg, rank=process.rank, world_size=process.world_size,
                    local_world_size=process.local_world_size)  # fmt: skip
    num_machines = process.world_size // process.local_world_size
    notes: dict[str, Any] = {}
    found = candidates = None
    with shared_errors():
        loader, val_loader = build("train"), build("val")
        check_same_order(loader.class_names, loader.videos.source, val_loader.class_names, val_loader.videos.source)
        check_weights(cfg)
        if process.is_main:
            check_videos(loader.videos, cfg.data.max_bad_fraction)
            check_videos(val_loader.videos, None)
            factor = num_machines if cfg.solver.base_lr_scale_num_shards else 1
            notes = take_notes(loader, val_loader, process.world_size, factor)
            this_run = Run(dump_config(cfg), changed_keys, given, loader.videos, folder / "train_list.csv.gz", notes)
            make_checkpoint_folder(folder / "checkpoints")
            candidates = Candidates(folder / "checkpoints", this_run.check)
            found = find_checkpoint(cfg, candidates, this_run)
            check_epochs(cfg, found, folder)
            if found is None or found[1]["epoch"] < cfg.solver.max_epoch:
                write_run_files(cfg, folder)
            if found is None or not this_run.list_file.is_file():
                write_list(loader.videos, this_run.list_file)
    continued = gather_objects(found is not None)[0]

    torch.use_deterministic_algorithms(cfg.train.deterministic, warn_only=True)
    torch.manual_seed(derive_seed(cfg.rng_seed, "weights"))
    model = build_model(cfg)
    if not continued:
        start_weights(cfg, model, loader.videos)
    model = model.to(process.device)
    prepare = build_prepare(cfg, "train", process.device, videos_before=process.rank * loader.batch_size)
    probes = build_probes(cfg, model, process, prepare) if cfg.model.freeze == "encoder" else None
    trainer: Steps = probes.trainer if probes else build_trainer(cfg, model, process, prepare)
    class_names = loader.class_names or (found[1].get("class_names") if found else None)
    path, state = resume(trainer, candidates, found, notes) if continued else (None, TrainState())
    del found  # its tensors
    if process.is_main:
        logger.info(
            "%s: %.2f M parameters; %d training and %d validation videos; %d steps of %d clips an epoch; device %s, "
            "processes: %d",
            cfg.model.model_name, sum(p.numel() for p in model.parameters()) / 1e6, loader.num_videos,
            val_loader.num_videos, loader.num_batches // loader.accumulate,
            loader.batch_size * loader.accumulate * process.world_size, process.device, process.world_size,
        )  # fmt: skip
        if path and state.epoch >= cfg.solver.max_epoch:
            logger.info("all %d epochs of SOLVER.MAX_EPOCH are done by %s: there is nothing left to train",
                        cfg.solver.max_epoch, path)  # fmt: skip
        elif path:
            logger.info("continuing from %s (epoch %d, step %d)", path, state.epoch, state.step)
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
    log.write("resume" if path else "start", versions=package_versions(), checkpoint=str(path or ""))
    clips: TrainingLoader = loader
    validate = build_validate(cfg, process, val_loader)
    started = time.perf_counter()
    try:
        if probes is not None and state.epoch < cfg.solver.max_epoch:
            clips, validate = start_probes(cfg, probes, process, (loader, val_loader), log, folder, state, path is None)
        training = TrainingRun(
            trainer,
            clips,
            build_schedule(cfg, num_machines),
            options,
            folder / "checkpoints",
            log,
            state,
            validate=validate,
            config_text=dump_config(cfg),
            class_names=class_names,
            notes=notes,
        )
        state = train(training)
    finally:
        loader.close()
        val_loader.close()
        log.close()
    if process.is_main:
        best = "no validation figure exists, since no validation video could be evaluated"
        best = f"best top-1 {state.best}" if state.best else best
        logger.info("trained in %.1f minutes, %s; results in %s", (time.perf_counter() - started) / 60, best, folder)
        own = " TEST.CHECKPOINT_FILE_PATH ''" if cfg.test.checkpoint_file_path else ""
        logger.info("evaluate: %s --cfg %s%s", command("test"), shlex.quote(str(folder / "config.yaml")), own)


def write_run_files(cfg: Config, folder: Path) -> None:
    """Write the resolved settings, and what else the run depends on."""
    environment = {"command": sys.argv, "versions": package_versions(), "machine": describe_machine()}
    for name, text in (
        ("config.yaml", dump_config(cfg)),
        ("environment.json", json.dumps(environment, indent=2) + "\n"),
    ):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text)


def build_trainer(cfg: Config, model: nn.Module, process: Process, prepare: Prepare) -> Trainer:
    """Build the trainer of a whole model."""
    return Trainer(
        model,
        build_optimizer(cfg, model, find_spec(cfg.model.model_name)),
        process,
        prepare,
        F.cross_entropy,
        seed=cfg.rng_seed,
        precision=cfg.train.precision,
        clip=GradientClip(cfg.solver.clip_grad_val, cfg.solver.clip_grad_l2norm),
        ema_decay=cfg.ema.decay if cfg.ema.enabled else None,
        compile_model=cfg.train.compile,
    )


def build_validate(cfg: Config, process: Process, loader: Loader) -> Callable[[nn.Module], Results]:
    """Build the evaluation on val with one centred clip and crop of each video."""
    return partial(
        evaluate,
        loader=loader,
        prepare=build_prepare(cfg, "val", process.device),
        options=EvaluationOptions(cfg.model.num_classes, batch_size=loader.batch_size, precision=cfg.train.precision),
        process=process,
    )


def lower_rate_command(cfg: Config, process: Process, arguments: Sequence[str]) -> str:
    """Return the command of this run with half the learning rate, and what must not exceed it lowered too."""
    solver = cfg.solver
    rates = {"SOLVER.BASE_LR": solver.base_lr / 2}
    if solver.warmup_epochs and solver.warmup_start_lr > rates["SOLVER.BASE_LR"]:
        rates["SOLVER.WARMUP_START_LR"] = solver.warmup_start_lr / 2
    if solver.lr_policy == "cosine" and solver.cosine_end_lr > rates["SOLVER.BASE_LR"]:
        rates["SOLVER.COSINE_END_LR"] = solver.cosine_end_lr / 2
    pairs = [text for key, value in rates.items() for text in (key, f"{value:.6g}")]
    started_by = command("train", process.local_world_size if process.world_size > 1 else None)
    return f"{started_by} {shlex.join([*arguments, *pairs])}"
