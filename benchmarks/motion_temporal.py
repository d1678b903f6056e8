#!/usr/bin/env python3
"""Does attention along time see motion, and only it? Trains the demo's model and its space-only twin on Motion.

Examples:
    python benchmarks/motion_temporal.py
    python benchmarks/motion_temporal.py --seeds 0 1 2 --folder runs/motion_temporal

Prints top-1 on Motion's validation clips of both recipes, which differ in TIMESFORMER.ATTENTION_TYPE alone, with the
minutes that training and evaluation took, and writes them with machine and versions to --out. Finished runs are kept.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from videoattn.command_line import run_tool
from videoattn.engine.log import describe_machine, package_versions
from videoattn.files import atomic_write

ROOT = Path(__file__).parents[1]
RECIPES = {"temporal": "divided_fibonacci_time", "space_only": "space_only"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("datasets/motion"), help="made if absent")
    parser.add_argument("--folder", type=Path, default=Path("runs/motion_temporal"), help="where the runs go")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/motion_temporal.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args(argv)

    program("datasets/make_motion.py", args.data)
    rows = []
    for seed in args.seeds:
        for name, recipe in RECIPES.items():
            folder = args.folder / f"{name}_{seed}"
            minutes = train_and_evaluate(recipe, args.data, folder, seed)
            results = json.loads((folder / "test" / "results.json").read_text())
            rows.append(
                {"recipe": name, "config": f"configs/Motion/{recipe}.yaml", "seed": seed, "top1": results["top1"],
                 "videos": results["counts"]["evaluated"], "minutes": minutes}
            )  # fmt: skip
    content = {
        "date": date.today().isoformat(), "chance": 1 / 8, "runs": rows, "machine": describe_machine(),
        "versions": package_versions(), "data": json.loads((args.data / "motion.json").read_text()),
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.out) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    print("\ntop-1 on Motion's validation clips (chance 12.5 %)")
    for row in rows:
        print(f"  {row['recipe']:10}  seed {row['seed']}  {100 * row['top1']:5.1f} %  {row['minutes']:.1f} minutes")
    print(f"written to {args.out}")


def train_and_evaluate(recipe: str, data: Path, folder: Path, seed: int) -> float:
    """Minutes for one run; a run that is complete is left as it is, and its first time is given."""
    noted = folder / "minutes.json"
    if noted.exists():
        return float(json.loads(noted.read_text()))
    settings = ["--cfg", ROOT / f"configs/Motion/{recipe}.yaml", "DATA.PATH_TO_DATA_DIR", data, "OUTPUT_DIR", folder,
                "DATA.CLASS_NAMES", data / "class_names.txt", "RNG_SEED", seed]  # fmt: skip
    start = time.perf_counter()
    program("tools/train_net.py", *settings)
    program("tools/test_net.py", *settings)
    minutes = round((time.perf_counter() - start) / 60, 2)
    with atomic_write(noted) as temporary:
        temporary.write_text(json.dumps(minutes))
    return minutes


def program(*command: object) -> None:
    """Run one of the project's programs; raises OSError if it fails."""
    status = subprocess.run([sys.executable, str(ROOT / str(command[0])), *map(str, command[1:])]).returncode
    if status:
        raise OSError(f"{command[0]} failed with status {status}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
