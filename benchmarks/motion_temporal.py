#!/usr/bin/env python3
"""Test whether attention along time, and only it, finds motion: train the demo's model with and without it on Motion.

Examples:
    python benchmarks/motion_temporal.py
    python benchmarks/motion_temporal.py --seeds 0 1 --recipes temporal --folder runs/motion_temporal

The recipes, configs/Motion/demo.yaml and demo_space_only.yaml, differ in TIMESFORMER.ATTENTION_TYPE alone. Prints top-1
on Motion's validation clips after each epoch (one view) and of the best epoch (several views, as the demo evaluates),
and the time that training and evaluation took: minutes, and minutes of processor time of all processes together, which
say more where other programs run. Writes them with machine and versions to --out. Finished runs are kept, and a stopped
one is continued.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from motion_study_runs import read_training

from videoattn.cli.run_tool import run_tool
from videoattn.engine.log import describe_machine, package_versions
from videoattn.files import atomic_write

ROOT = Path(__file__).parents[1]
RECIPES = {"temporal": "demo", "space_only": "demo_space_only"}
CLIPS = ("--size", "32x32")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("datasets/motion_demo"), help="made if absent")
    parser.add_argument("--folder", type=Path, default=Path("runs/motion_temporal"), help="where the runs go")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/motion_temporal.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--seeds-space-only", type=int, nargs="+", default=[0, 1], help="of the variant without time")
    parser.add_argument("--recipes", choices=RECIPES, nargs="+", default=list(RECIPES))
    args = parser.parse_args(argv)

    program("datasets/make_motion.py", args.data, *CLIPS)
    rows = [
        {"recipe": name, "config": f"configs/Motion/{RECIPES[name]}.yaml", "seed": seed}
        | train_and_evaluate(RECIPES[name], args.data, args.folder / f"{name}_{seed}", seed)
        for name in args.recipes
        for seed in (args.seeds if name == "temporal" else args.seeds_space_only)
    ]
    content = {
        "date": date.today().isoformat(), "chance": 1 / 8, "runs": rows, "machine": describe_machine(),
        "versions": package_versions(), "data": json.loads((args.data / "motion.json").read_text()),
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.out) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    print("\ntop-1 on Motion's validation clips (chance 12.5 %)")
    for row in rows:
        epochs = " ".join(f"{100 * top1:5.1f}" for top1 in row["top1_by_epoch"])
        print(f"  {row['recipe']:10}  seed {row['seed']}  {100 * row['top1']:5.1f} %  by epoch {epochs}  "
              f"{row['minutes']:.1f} minutes, of processors {row['processor_minutes']:.1f}")  # fmt: skip
    print(f"written to {args.out}")


def train_and_evaluate(recipe: str, data: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Figures of one run; those of a run that is complete are read from its folder."""
    noted = folder / "figures.json"
    if noted.exists():
        return dict(json.loads(noted.read_text()))
    settings = ["--cfg", ROOT / f"configs/Motion/{recipe}.yaml", "DATA.PATH_TO_DATA_DIR", data, "OUTPUT_DIR", folder,
                "DATA.CLASS_NAMES", data / "class_names.txt", "RNG_SEED", seed]  # fmt: skip
    start, used = time.perf_counter(), processor_seconds()
    program("tools/train_net.py", *settings)
    program("tools/test_net.py", *settings)
    results = json.loads((folder / "test" / "results.json").read_text())
    figures = {
        "top1": results["top1"], "videos": results["counts"]["evaluated"],
        "top1_by_epoch": read_training(folder / "log.jsonl")["top1_by_epoch"],
        "minutes": round((time.perf_counter() - start) / 60, 2),
        "processor_minutes": round((processor_seconds() - used) / 60, 2),
    }  # fmt: skip
    with atomic_write(noted) as temporary:
        temporary.write_text(json.dumps(figures))
    return figures


def processor_seconds() -> float:
    """Processor time of all processes that were started from here and have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def program(*command: object) -> None:
    """Run one of the project's programs; raises OSError if it fails."""
    status = subprocess.run([sys.executable, str(ROOT / str(command[0])), *map(str, command[1:])]).returncode
    if status:
        raise OSError(f"{command[0]} failed with status {status}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
