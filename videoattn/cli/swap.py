"""Swap dense attention of trained weights for a sparse method, without gradients, and see what that saves and costs.

Examples:
    videoattn swap zoo:motion_timesformer_dense --method fibonacci --axis time
    videoattn swap runs/dense/checkpoints/checkpoint_best.pyth --method fibonacci --axis joint --budget 0.25
    videoattn swap zoo:videomae_base_k400 --method fibonacci --axis joint DATA.PATH_TO_DATA_DIR data/k400
    videoattn swap weights.pth --cfg FILE --method fibonacci --axis time ATTENTION.TIME.GEOMETRY axial

For each budget, the share of heads that stay dense, a table shows how far predictions move from those of the dense
model (KL), top-1 accuracy, multiply-accumulates and the time of a clip. Heads stay dense whose swap alone moves the
predictions of --clips training videos most; then the projection behind each attention is refitted in closed form.
OUT gets swap.json, swap.png, and of --budget the weights, swapped.safetensors, which `videoattn test` evaluates, and
config.yaml, which `videoattn train` fine-tunes them by for an epoch. docs/swap.md explains the steps.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from videoattn.cli.programs import command, make_parser
from videoattn.config import Config
from videoattn.config.load import (
    add_config_arguments,
    dump_config,
    load_config_text,
    load_config_with_report,
    parse_overrides,
)
from videoattn.data import build_prepare
from videoattn.data.clips.batch import Batch
from videoattn.data.lists import check_same_order
from videoattn.data.sample import Sample, decode_sample
from videoattn.engine.log import describe_machine, logger, package_versions, set_up_logging
from videoattn.files import atomic_write
from videoattn.grid import Axis
from videoattn.layers.attention import BuildOperator
from videoattn.models import build_model
from videoattn.models.build import model_arguments
from videoattn.models.weights.departures import describe_data
from videoattn.models.weights.files import read_weight_file
from videoattn.models.weights.load import load_weights, save_weights
from videoattn.operators import OPERATORS
from videoattn.profiling.profile import profile
from videoattn.swap.report import DensePoint, Point, draw_points, format_points
from videoattn.swap.swap import Swap, Swapped, repeat_clips, time_models
from videoattn.zoo.prepare import render_clips
from videoattn.zoo.protocol import locate_weights
from videoattn.zoo.rows import PREFIX, find_row

_BUDGETS = (0.0, 0.125, 0.25, 0.5)
# Settings of config.yaml for a short fine-tuning, in place of those of the dense model's training.
FINE_TUNING: dict[str, object] = {
    "SOLVER.OPTIMIZING_METHOD": "adamw", "SOLVER.BASE_LR": 3e-4, "SOLVER.LR_POLICY": "cosine",
    "SOLVER.COSINE_END_LR": 0.0, "SOLVER.COSINE_AFTER_WARMUP": False, "SOLVER.MAX_EPOCH": 1,
    "SOLVER.WARMUP_EPOCHS": 0.0, "SOLVER.WARMUP_START_LR": 0.0, "SOLVER.LAYER_DECAY": 1.0,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("swap", __doc__)
    # fmt: off
    parser.add_argument("--checkpoint", metavar="CHECKPOINT",
                        help="dense weights: a file, or zoo:NAME of model_zoo.md; may stand first, without its name")
    parser.add_argument("--method", required=True, choices=[name for name in OPERATORS if name != "dense"])
    parser.add_argument("--axis", required=True, choices=[axis.value for axis in Axis], help="attention to swap")
    parser.add_argument("--budget", type=float, default=0.25, metavar="SHARE",
                        help="share of heads that stay dense in the saved weights, 0 to 1; default: 0.25")
    parser.add_argument("--budgets", type=parse_budgets, metavar="SHARES", default=_BUDGETS,
                        help=f"further budgets of the table; default: {','.join(map(str, _BUDGETS))}")
    parser.add_argument("--clips", type=int, default=64, metavar="N", help="training videos to fit on; default: 64")
    parser.add_argument("--test-clips", type=int, default=400, metavar="N",
                        help="validation videos to judge by; default: 400")
    parser.add_argument("--out", type=Path, default=Path("runs/swap"), metavar="FOLDER", help="default: runs/swap")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier swap left in OUT")
    add_config_arguments(parser)
    # fmt: on
    args = parser.parse_args(name_checkpoint(sys.argv[1:] if argv is None else argv))
    check_options(args)
    overrides, own = split_overrides(args, parse_overrides(args))
    cfg, weights = read_dense(args, overrides)
    sparse_cfg = read_settings(cfg, [f"ATTENTION.{args.axis.upper()}.NAME", args.method, *own])
    axis = Axis(args.axis)
    builder = find_builder(sparse_cfg, axis)
    if args.clips <= cfg.train.batch_size:
        raise ValueError(
            f"--clips {args.clips} expects several batches of TRAIN.BATCH_SIZE {cfg.train.batch_size} clips"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    set_up_logging(args.out)

    device = choose_device(cfg)
    model = build_model(cfg)
    train, val = decode_sample(cfg, "train", args.clips), decode_sample(cfg, "val", args.test_clips)
    if len(train.batches) < 2:
        raise ValueError(
            f"{train.source}: {train.num_clips} videos fill one batch of TRAIN.BATCH_SIZE {cfg.train.batch_size}; a "
            "swap expects several, one of them to judge a fit by: set a smaller TRAIN.BATCH_SIZE, or add videos"
        )
    report = load_weights(model, weights, allow_new_layers=False,
                          data=describe_data(cfg, testing=False, class_names=val.class_names))  # fmt: skip
    logger.info("%s", report)
    check_same_order(val.class_names, val.source, report.class_names, str(weights))
    prepare = build_prepare(cfg, "val", device)
    swap = Swap(
        model.to(device),
        {axis: builder},
        repeat_clips(train.batches, lambda batch: prepare(batch, 0)[0]),
        repeat_clips(val.batches, lambda batch: prepare(batch, 0)[0]),
    )
    logger.info("measuring the effect of each of %d heads on %d clips", swap.num_heads, train.num_clips)
    effects = swap.measure_effects(lambda slots: tqdm(slots, unit="block", desc="effects", leave=False, disable=None))
    # one budget for each number of heads, the chosen one before others
    numbers = {round(budget * swap.num_heads): budget for budget in (*args.budgets, args.budget)}
    budgets = sorted(numbers.values())
    swapped = [
        swap.swap(effects, budget)
        for budget in tqdm(budgets, unit="budget", desc="swapping", leave=False, disable=None)
    ]
    clip = prepare(first_clip(val.batches), 0)[0]
    times = time_models([swap.model, *(one.model for one in swapped)], clip)
    frames, height, width = clip.shape[2:]
    size = (frames, height, width)
    dense = DensePoint(
        accuracy(swap.dense, val.labels), times[0], profile(swap.model, size).macs_needed, swap.num_heads
    )
    points = [
        describe_point(swap, one, budget, val.labels, time, profile(one.model, size).macs_needed)
        for one, budget, time in zip(swapped, budgets, times[1:], strict=True)
    ]
    chosen = swapped[budgets.index(args.budget)]
    final = read_settings(sparse_cfg, [f"ATTENTION.{axis.name}.DENSE_HEADS", chosen.dense_heads[axis]])
    files = write_swapped(args.out, final, chosen, swap.test_clips(), tuning_settings(args.checkpoint))
    write_report(args, dense, points, swap, effects, train, val)
    title = f"{cfg.model.model_name}: {args.method} along {args.axis}, {val.num_clips} clips"
    draw_points(args.out / "swap.png", dense, points, title)
    logger.info("%s", format_points(dense, points, args.budget))
    if min((one.milliseconds for one in points if one.num_dense < dense.num_heads), default=0.0) >= dense.milliseconds:
        logger.warning("no point is faster than dense attention on clips of this size and this machine")
    logger.info("* saved: %s; the table and more: %s", files, args.out / "swap.json")
    again = shlex.quote(str(args.out / "config.yaml"))
    logger.info("evaluate: %s --weights %s", command("test"), shlex.quote(str(files)))
    logger.info("fine-tune: %s --cfg %s OUTPUT_DIR %s", command("train"), again, shlex.quote(f"{args.out}_tuned"))


def name_checkpoint(words: Sequence[str]) -> list[str]:
    """Return arguments with `--checkpoint` before a checkpoint that stands first."""
    return ["--checkpoint", *words] if words and not words[0].startswith("-") else list(words)


def parse_budgets(text: str) -> tuple[float, ...]:
    """Return numbers that commas separate."""
    return tuple(float(part) for part in text.split(","))


def check_options(args: argparse.Namespace) -> None:
    """Raise ValueError for an option that is out of range, and for a folder that holds an earlier swap."""
    if args.checkpoint is None:
        raise ValueError("expected a CHECKPOINT of dense weights: a file, or zoo:NAME of model_zoo.md")
    for name in ("clips", "test_clips"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} expects at least 1, got {getattr(args, name)}")
    for budget in (args.budget, *args.budgets):
        if not 0 <= budget <= 1:
            raise ValueError(f"a budget expects a share of the heads from 0 to 1, got {budget}")
    if (args.out / "swap.json").exists() and not args.overwrite:
        raise ValueError(f"{args.out} holds an earlier swap; add --overwrite to replace it, or set another --out")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {args.out}: expected a folder")


def split_overrides(args: argparse.Namespace, overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the settings of the dense model, and those of the method that takes its place.

    Fibonacci attention shares the mean key's logit among the keys off its pattern, unless SEMANTICS says otherwise.
    """
    section = f"ATTENTION.{args.axis.upper()}."
    pairs = list(zip(overrides[::2], overrides[1::2], strict=True))
    own = [(key, value) for key, value in pairs if key.startswith("ATTENTION.")]
    for key, _ in own:
        if not key.startswith(section) or key in (f"{section}NAME", f"{section}DENSE_HEADS"):
            raise ValueError(
                f"{key}: expected options of --method {args.method}, such as {section}LAYERS; --method, --axis and "
                "--budget choose the rest"
            )
    if args.method == "fibonacci" and f"{section}SEMANTICS" not in dict(own):
        own.append((f"{section}SEMANTICS", "mean_logit"))
    rest = [pair for pair in pairs if pair not in own]
    return list(chain.from_iterable(rest)), list(chain.from_iterable(own))


def read_dense(args: argparse.Namespace, overrides: list[str]) -> tuple[Config, Path]:
    """Return the settings of the dense model and its weights. Raises ValueError where its attention is not dense."""
    given: str = args.checkpoint
    if given.startswith(PREFIX):
        row = find_row(given.removeprefix(PREFIX))
        if args.cfg is not None:
            raise ValueError(f"{given} brings its own settings: expected KEY VALUE pairs and no --cfg FILE")
        cfg = row.config(overrides)
        if not cfg.data.path_to_data_dir and row.is_ours:
            # the row's own clips have a single training video
            words = list(row.clips_from)
            words[words.index("--num-train") + 1] = str(args.clips)
            folder = render_clips(replace(row, clips_from=tuple(words)))
            cfg = row.config(["DATA.PATH_TO_DATA_DIR", str(folder), *overrides])
        weights = locate_weights(row)
    else:
        weights = Path(given)
        if not weights.exists():
            raise ValueError(f"{weights}: no such file or folder; expected a checkpoint, or zoo:NAME")
        text = None if args.cfg is not None else read_weight_file(weights).cfg
        if args.cfg is None and text is None:
            raise ValueError(f"{weights} does not carry its settings; expected --cfg FILE as well")
        if text is None:
            cfg = load_config_with_report(args.cfg, overrides)[0]
        else:
            cfg = load_config_text(text, f"the settings in {weights}", overrides)[0]
    named = [section.name for section in getattr(cfg.attention, args.axis) if section.name != "dense"]
    if named:
        raise ValueError(
            f"{given}: attention along {args.axis} is {', '.join(named)} already; expected dense attention"
        )
    return cfg, weights


def read_settings(cfg: Config, overrides: Sequence[object]) -> Config:
    """Return settings with others on top."""
    return load_config_text(dump_config(cfg), "the settings of the dense model", overrides)[0]


def find_builder(cfg: Config, axis: Axis) -> BuildOperator:
    """Return the builder of a model's operators along an axis. Raises ValueError naming the key at fault."""
    with torch.device("meta"):
        build_model(cfg)  # refuses what can't be built
    builder: BuildOperator = model_arguments(cfg)["operators"][axis]
    return builder


def choose_device(cfg: Config) -> torch.device:
    """Return the device of the settings: a GPU where there is one."""
    if cfg.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(cfg.device)


def first_clip(batches: Sequence[Batch]) -> Batch:
    first = batches[0]
    return replace(
        first, clips=first.clips[:1], labels=first.labels[:1], videos=first.videos[:1], views=first.views[:1]
    )


def accuracy(predictions: Tensor, labels: Tensor) -> float | None:
    """Return top-1 accuracy among the clips that have a label; None where none has."""
    labelled = labels >= 0
    if not labelled.any():
        return None
    return float((predictions.argmax(dim=-1) == labels)[labelled].double().mean())


def describe_point(
    swap: Swap, swapped: Swapped, budget: float, labels: Tensor, milliseconds: float, macs: int
) -> Point:  # fmt: skip
    return Point(
        budget=budget,
        dense_heads={axis.value: pairs for axis, pairs in swapped.dense_heads.items()},
        divergence_uncalibrated=swap.divergence(swapped.before),
        divergence=swap.divergence(swapped.after),
        top1_uncalibrated=accuracy(swapped.before, labels),
        top1=accuracy(swapped.after, labels),
        milliseconds=milliseconds,
        macs=macs,
    )


def tuning_settings(checkpoint: str) -> dict[str, object]:
    """Return settings of a short fine-tuning; rows of the zoo hold those of an evaluation and nothing of training.

    Flips change the classes of Motion and of Something-Something-V2.
    """
    row = find_row(checkpoint.removeprefix(PREFIX)) if checkpoint.startswith(PREFIX) else None
    if row is None or row.dataset.startswith("kinetics"):
        return FINE_TUNING
    return {**FINE_TUNING, "DATA.RANDOM_FLIP": False}


def write_swapped(folder: Path, cfg: Config, swapped: Swapped, clips: Any, settings: Mapping[str, object]) -> Path:
    """Write weights of a swapped model, and `settings` to train it on; both are checked to be of one model."""
    model = build_model(cfg).eval()
    model.load_state_dict({name: value.cpu() for name, value in swapped.model.state_dict().items()})
    batch = next(clips)[:1]
    with torch.no_grad():
        expected = swapped.model(batch).cpu()
        assert torch.allclose(model(batch.cpu()), expected, rtol=1e-3, atol=1e-3), "the settings describe another model"
    weights = folder / "swapped.safetensors"
    cfg = read_settings(cfg, ["OUTPUT_DIR", str(folder), "TEST.CHECKPOINT_FILE_PATH", ""])
    save_weights(model.state_dict(), weights, cfg=dump_config(cfg))
    tuning = [item for pair in settings.items() for item in pair]
    tuning += ["TRAIN.CHECKPOINT_FILE_PATH", str(weights)]
    with atomic_write(folder / "config.yaml") as temporary:
        temporary.write_text(dump_config(read_settings(cfg, tuning)), encoding="utf-8")
    return weights


def write_report(
    args: argparse.Namespace, dense: DensePoint, points: Sequence[Point], swap: Swap, effects: Any, train: Sample,
    val: Sample,
) -> None:  # fmt: skip
    """Write all figures, and what they were measured on, to swap.json."""
    content = {
        "checkpoint": args.checkpoint, "method": args.method, "axis": args.axis, "saved_budget": args.budget,
        "dense": asdict(dense), "points": [asdict(point) | {"num_dense": point.num_dense} for point in points],
        "effects_nats": [{"block": slot.block, "head": head, "axis": slot.axis.value, "effect": effect}
                         for (slot, head), effect in effects.items()],
        "fitted_on": {"list": train.source, "clips": train.num_clips, "failed": len(train.failures)},
        "judged_by": {"list": val.source, "clips": val.num_clips, "failed": len(val.failures)},
        "versions": package_versions(), "machine": describe_machine(),
    }  # fmt: skip
    with atomic_write(args.out / "swap.json") as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
