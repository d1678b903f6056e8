#!/usr/bin/env python3
"""Swap dense attention of trained models for sparse attention, and see what is lost: raw, calibrated, fine-tuned.

Examples:
    python benchmarks/swap.py                       # trains nine small models first; about an hour on a CPU
    python benchmarks/swap.py --only divided_short --seeds 0
    python benchmarks/swap.py --no-fine-tuning

Three kinds of model are trained on Motion with dense attention, several seeds each. Their attention along one axis is
swapped, for budgets of dense heads, without any gradient: first as it is, then with calibrated projections
(docs/swap.md). Then the swapped models are trained on for a tenth of the steps. Two controls, attention to the token
itself alone and to all tokens alike, say whether the task needs that attention. Writes
benchmarks/results/swap_cpu.json. The same command continues, and repeats no training that is finished.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videoattn.cli.run_tool import run_tool
from videoattn.cli.swap import accuracy
from videoattn.config.load import dump_config, load_config
from videoattn.data import build_prepare
from videoattn.data.sample import decode_sample
from videoattn.engine.checkpoint.files import list_checkpoints
from videoattn.engine.log import describe_machine, package_versions
from videoattn.files import atomic_write
from videoattn.grid import Axis
from videoattn.models import build_model
from videoattn.models.weights.load import load_weights, save_weights
from videoattn.operators import AttentionOperator, FibonacciAttention, FocusedLinearAttention
from videoattn.swap.swap import Swap, repeat_clips

ROOT = Path(__file__).parents[1]
_COMMON: dict[str, object] = {
    "DATA.TRAIN_JITTER_SCALES": [32, 32], "DATA.TRAIN_CROP_SIZE": 32, "DATA.TEST_CROP_SIZE": 32,
    "TRAIN.KEEP_CHECKPOINTS": 1, "TRAIN.EVAL_PERIOD": 2, "TEST.NUM_ENSEMBLE_VIEWS": 1, "DATA_LOADER.NUM_WORKERS": 1,
}  # fmt: skip
_TIMESFORMER = {f"TIMESFORMER.{key}": value for key, value in
                {"PATCH_SIZE": 8, "EMBED_DIM": 48, "DEPTH": 3, "NUM_HEADS": 4}.items()}  # fmt: skip
_LONG = {"DATA.NUM_FRAMES": 12, "DATA.SAMPLING_RATE": 4, "MODEL.NUM_CLASSES": 6, "SOLVER.MAX_EPOCH": 4}


@dataclass(frozen=True)
class Task:
    """A kind of model: the clips that it is trained on, the axis that is swapped, and its settings."""

    variant: str
    axis: str
    settings: dict[str, object]
    epochs: int


TASKS = {
    "divided_short": Task("short", "TIME", _TIMESFORMER, 10),
    "joint_short": Task("short", "JOINT", {"VIDEO_VIT.EMBED_DIM": 48}, 10),
    "divided_long": Task("long", "TIME", {**_TIMESFORMER, **_LONG}, 4),
}  # fmt: skip


def run(*words: object) -> None:
    """Run a program of the package. Raises CalledProcessError where it fails."""
    subprocess.run([sys.executable, "-m", "videoattn", *map(str, words)], check=True, cwd=ROOT)


def train(folder: Path, name: str, seed: int) -> Path:
    """Return the run of a dense model, trained unless it was before."""
    task, place = TASKS[name], folder / name / f"seed{seed}"
    data = folder / "data" / task.variant
    frames = {"short": 18, "long": 48}[task.variant]
    run("motion", data, "--variant", task.variant, "--num-train", 3200, "--num-val", 400, "--size", "32x32",
        "--num-frames", frames)  # fmt: skip
    settings = {**_COMMON, **task.settings, "DATA.PATH_TO_DATA_DIR": data, "OUTPUT_DIR": place, "RNG_SEED": seed,
                "DATA.CLASS_NAMES": data / "class_names.txt", "SOLVER.MAX_EPOCH": task.epochs}  # fmt: skip
    cfg = f"configs/Motion/{'video_vit' if task.axis == 'JOINT' else 'divided'}.yaml"
    run("train", "--cfg", cfg, *(word for pair in settings.items() for word in pair))
    return place


class SelfOnly(AttentionOperator):
    """Attention of every token to itself alone: a control, which mixes nothing."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        return v


class Uniform(AttentionOperator):
    """Attention to all tokens alike: a control, which looks at no key."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        return v.mean(dim=2, keepdim=True).expand_as(q)


# by name: the settings of the run that is trained on, and the operator
METHODS: dict[str, tuple[dict[str, object], Any]] = {
    "fibonacci, mean_logit": (
        {"NAME": "fibonacci", "SEMANTICS": "mean_logit"}, partial(FibonacciAttention, semantics="mean_logit"),
    ),
    "fibonacci, exclude": ({"NAME": "fibonacci"}, FibonacciAttention),
    "focused_linear": ({"NAME": "focused_linear"}, FocusedLinearAttention),
}  # fmt: skip
CONTROLS = {"self only": SelfOnly, "uniform": Uniform}
BUDGETS = (0.0, 0.25, 0.5)


def measure(place: Path, name: str, num_clips: int) -> dict[str, Any]:
    """Return what swaps of a trained model keep: top-1 and divergence, for each method and budget, and the controls.

    The weights of the budgets are saved beside the run, for `fine_tune`.
    """
    task = TASKS[name]
    axis = Axis[task.axis]
    cfg = load_config(place / "config.yaml", ["DATA_LOADER.NUM_WORKERS", 0])
    model = build_model(cfg)
    load_weights(model, list_checkpoints(place / "checkpoints")[-1].path)
    train_clips, val_clips = decode_sample(cfg, "train", num_clips), decode_sample(cfg, "val", 400)
    prepare = build_prepare(cfg, "val", "cpu")
    passes = [repeat_clips(sample.batches, lambda batch: prepare(batch, 0)[0]) for sample in (train_clips, val_clips)]
    labels, found = val_clips.labels, {"points": [], "controls": {}}
    for control, operator in CONTROLS.items():
        swap = Swap(model, {axis: operator}, *passes)
        swapped = swap.swap({(slot, head): 0.0 for slot in swap.slots for head in range(slot.num_heads)}, 0.0)
        found["controls"][control] = {
            "raw": accuracy(swapped.before, labels),
            "calibrated": accuracy(swapped.after, labels),
        }
    for method, (section, operator) in METHODS.items():
        swap = Swap(model, {axis: operator}, *passes)
        found["dense"] = accuracy(swap.dense, labels)
        effects = swap.measure_effects()
        for budget in BUDGETS:
            swapped = swap.swap(effects, budget)
            found["points"].append({
                "method": method, "budget": budget, "dense_heads": swapped.dense_heads[axis],
                "raw": accuracy(swapped.before, labels), "calibrated": accuracy(swapped.after, labels),
                "divergence_raw": swap.divergence(swapped.before), "divergence": swap.divergence(swapped.after),
            })  # fmt: skip
            options = {**section, "DENSE_HEADS": swapped.dense_heads[axis]}
            settings = [item for key, value in options.items() for item in (f"ATTENTION.{task.axis}.{key}", value)]
            final = load_config(place / "config.yaml", settings)
            save_weights(swapped.model.state_dict(), swapped_file(place, method, budget), cfg=dump_config(final))
    return found


def swapped_file(place: Path, method: str, budget: float) -> Path:
    return place / f"swapped_{method.replace(', ', '_')}_{budget}.safetensors"


def fine_tune(place: Path, name: str, method: str, budget: float) -> float:
    """Return top-1 after a tenth of the training's steps from swapped weights; "dense" goes on from the dense ones."""
    task, out = TASKS[name], place / f"finetuned_{method.replace(', ', '_')}_{budget}"
    data = place.parents[1] / "data" / task.variant
    part = data.with_name(f"{data.name}_part")
    if not part.exists():  # a tenth of the steps, as one epoch over so many of the videos
        part.mkdir()
        lines = (data / "train.csv").read_text().splitlines(keepends=True)
        kept = round(len(lines) * task.epochs / 10)
        (part / "train.csv").write_text("".join(lines[i * len(lines) // kept] for i in range(kept)))
        shutil.copy(data / "val.csv", part / "val.csv")
    cfg = load_config(place / "config.yaml")
    weights: Path = list_checkpoints(place / "checkpoints")[-1].path
    settings: dict[str, object] = {
        "SOLVER.MAX_EPOCH": 1, "SOLVER.WARMUP_EPOCHS": 0, "SOLVER.BASE_LR": 3e-4, "OUTPUT_DIR": out,
        "DATA.PATH_TO_DATA_DIR": part, "DATA.PATH_PREFIX": data,
    }  # fmt: skip
    if method != "dense":
        weights = swapped_file(place, method, budget)
        file = place / f"{weights.stem}.yaml"
        from videoattn.models.weights.files import read_weight_file

        file.write_text(read_weight_file(weights).cfg or "")
    else:
        file = place / "config.yaml"
    del cfg
    settings["TRAIN.CHECKPOINT_FILE_PATH"] = weights
    run("train", "--cfg", file, *(word for pair in settings.items() for word in pair))
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return float(next(line["top1"] for line in reversed(lines) if "top1" in line))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/swap"), help="where data and runs go")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS), help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--clips", type=int, default=64, help="training videos that a swap is fitted on; default: 64")
    parser.add_argument("--train-only", action="store_true", help="train the dense models, and swap nothing")
    parser.add_argument("--no-fine-tuning", action="store_true", help="swap without gradients, and stop there")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/swap_cpu.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = []
    for seed in args.seeds:
        for name in args.only:
            place = train(args.folder.resolve(), name, seed)
            if args.train_only:
                continue
            found = {"task": name, "axis": TASKS[name].axis, "seed": seed, **measure(place, name, args.clips)}
            if not args.no_fine_tuning:
                tuned = [("dense", 0.0), ("fibonacci, mean_logit", 0.0), ("fibonacci, mean_logit", 0.25)]
                found["fine_tuned"] = [
                    {"method": method, "budget": budget, "top1": fine_tune(place, name, method, budget)}
                    for method, budget in tuned
                ]
            runs.append(found)
            print(json.dumps(found), flush=True)
            content = {
                "date": date.today().isoformat(), "command": "python benchmarks/swap.py", "fitted_on": args.clips,
                "versions": package_versions(), "machine": describe_machine(), "runs": runs,
            }  # fmt: skip
            with atomic_write(args.json) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run_tool(main))
