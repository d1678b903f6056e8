"""Count a model's multiply-accumulates, parameters and activations by module; with --measure also its speed and memory.

Examples:
    videoattn profile --cfg Kinetics/TimeSformer_divST_8x32_224.yaml
    videoattn profile                                          # the default model, clips of 8 x 224 x 224
    videoattn profile --model timesformer_base_l
    videoattn profile --model timesformer_base --depth 3 DATA.NUM_FRAMES 32 ATTENTION.SPACE.NAME fibonacci
    videoattn profile --cfg FILE --measure --device cuda --batch-size 8 --precision bf16 --json cost.json

MACs: one multiply-add counts as 1 (many papers call this FLOPs). Counting computes nothing, so large models take
seconds. A video takes TEST.NUM_ENSEMBLE_VIEWS x TEST.NUM_SPATIAL_CROPS views. Options come before KEY VALUE pairs.
--model without --cfg takes the clip size that the model is published with, unless the pairs say otherwise.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from videoattn.cli.programs import make_parser
from videoattn.config import Config
from videoattn.config.load import (
    ConfigReport,
    add_config_arguments,
    format_report,
    load_config_with_report,
    parse_overrides,
)
from videoattn.engine.log import describe_machine, package_versions
from videoattn.files import atomic_write
from videoattn.models import MODELS, build_model
from videoattn.models.registry import find_spec
from videoattn.profiling.measure import read_device
from videoattn.profiling.profile import Measurement, measure, profile
from videoattn.profiling.table import format_measurement, format_profile
from videoattn.seeding import derive_seed, torch_seed


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("profile", __doc__)
    parser.add_argument("--model", metavar="NAME", help=f"the same as MODEL.MODEL_NAME NAME: {', '.join(MODELS)}")
    parser.add_argument("--depth", type=int, default=2, metavar="N", help="levels of modules in the table (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, every module included")
    timed = parser.add_argument_group("measuring")
    timed.add_argument("--measure", action="store_true", help="run the model: latency, clips per second, peak memory")
    timed.add_argument("--train", action="store_true", help="measure forward and backward passes in training mode")
    timed.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 ... (default: DEVICE of the settings)")
    timed.add_argument("--batch-size", type=int, metavar="N", help="clips per pass (default: 1)")
    timed.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default: that of TEST, or TRAIN")
    timed.add_argument("--warmup", type=int, metavar="N", help="passes before timing starts (default: 3)")
    timed.add_argument("--repeats", type=int, metavar="N", help="timed passes (default: 10)")
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    check_options(args)
    cfg, report = read_config(args.cfg, args.model, parse_overrides(args))
    if said := format_report(report, args.verbose):
        print(said, file=sys.stderr)

    if args.measure:
        read_device(device_of(args, cfg), "--device" if args.device else "DEVICE")
    clip_size = (cfg.data.num_frames, cfg.data.train_crop_size, cfg.data.train_crop_size)
    with torch.device("meta"):
        model = build_model(cfg)
    costs = profile(model, clip_size, views=cfg.test.num_ensemble_views * cfg.test.num_spatial_crops)
    print(f"{cfg.model.model_name}: {format_profile(costs, args.depth)}")
    measured = measure_model(cfg, clip_size, args) if args.measure else None
    if measured:
        print(f"\n{format_measurement(measured)}")
    if args.json:
        figures = {
            "model_name": cfg.model.model_name,
            "convention": "MACs, one multiply-add is 1; per clip (one view) unless named per video",
            "profile": costs.to_dict(),
            "measurement": measured.to_dict() if measured else None,
            "versions": package_versions(),
            "machine": describe_machine(),
        }
        with atomic_write(args.json) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n")
        print(f"\nwritten to {args.json}")


def check_options(args: argparse.Namespace) -> None:
    """Raise ValueError for an option that is out of range, or that has no effect without --measure."""
    if args.depth < 1:
        raise ValueError(f"--depth expects at least 1, got {args.depth}")
    for name, least in (("batch_size", 1), ("warmup", 1), ("repeats", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} expects at least {least}, got {value}")
    measuring = [name for name in ("train", "device", "batch_size", "precision", "warmup", "repeats")
                 if getattr(args, name) not in (None, False)]  # fmt: skip
    if measuring and not args.measure:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in measuring)
        raise ValueError(f"{names}: expected --measure as well, since counting does not run the model")
    if args.json and args.json.is_dir():
        raise ValueError(f"--json {args.json}: expected a file, and this is a folder")
    if args.json and not args.json.resolve().parent.is_dir():
        raise ValueError(f"--json {args.json}: there is no folder {args.json.parent}")


def read_config(path: Path | None, model_name: str | None, overrides: Sequence[str]) -> tuple[Config, ConfigReport]:
    """Return the config of the file, or of a named model alone for clips of its own size, and its report."""
    if model_name is None:
        return load_config_with_report(path, overrides)
    spec = find_spec(model_name)
    settings = ["MODEL.MODEL_NAME", model_name]
    if path is None:
        num_frames, size, _ = spec.clip_size
        for key, value in (("NUM_FRAMES", num_frames), ("TRAIN_CROP_SIZE", size), ("TEST_CROP_SIZE", size)):
            settings += [f"DATA.{key}", str(value)]
    return load_config_with_report(path, [*settings, *overrides])


def device_of(args: argparse.Namespace, cfg: Config) -> str:
    """Return the name of the device to measure on."""
    device: str = args.device or cfg.device
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def measure_model(cfg: Config, clip_size: tuple[int, int, int], args: argparse.Namespace) -> Measurement:
    """Run the model of the config, with fresh weights, on the chosen device."""
    device = device_of(args, cfg)
    with torch_seed(derive_seed(cfg.rng_seed, "weights")):
        model = build_model(cfg)
    return measure(
        model,
        clip_size,
        batch_size=args.batch_size or 1,
        device=device,
        precision=args.precision or (cfg.train.precision if args.train else cfg.test.precision),
        warmup=3 if args.warmup is None else args.warmup,
        repeats=args.repeats or 10,
        train=args.train,
    )
