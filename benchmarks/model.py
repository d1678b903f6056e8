#!/usr/bin/env python3
"""Measure how the cost of whole models grows with the frames of a clip, for dense attention and each sparse method.

Examples:
    python benchmarks/model.py                  # writes benchmarks/results/model_cpu.json (or _cuda)
    python benchmarks/model.py --model timesformer_base --crop 224 --frames 8 32 --kinds joint --threads 2
    python docs/write_performance.py            # then puts the figures into docs/performance.md

TimeSformer with one clip at a time: `inference` is a forward pass, `train` forward, backward and a step of AdamW. In a
divided model a method takes the place of attention along both axes. All methods take turns in every round; given are
medians with quartiles, and the median over rounds of dense time / own time (above 1 is faster than dense). `exponent`
is the slope of log(time) over log(frames), least squares: 1 is a cost that grows like the frames, 2 like their square.
A method whose next clip would take longer than --longest seconds, by the growth so far, is left out there.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from interleave import Step, median_ratio, quartiles, release_memory, round_to, take_turns
from torch import nn

from videoattn.cli.run_tool import run_tool
from videoattn.engine.log import describe_machine, package_versions
from videoattn.files import atomic_write
from videoattn.grid import Axis
from videoattn.layers.skip import SkipSettings
from videoattn.models import TIMESFORMER_SIZES, TimeSformer
from videoattn.operators import OPERATORS, DenseAttention, FibonacciAttention
from videoattn.profiling.measure import PeakMemory
from videoattn.profiling.profile import profile

ROOT = Path(__file__).parents[1]
PASSES = ("inference", "train")
KINDS = {"joint": "joint_space_time", "divided": "divided_space_time"}
AXES = {"joint": (Axis.JOINT,), "divided": (Axis.TIME, Axis.SPACE)}
METHODS = {
    **OPERATORS,
    "fibonacci, block": partial(FibonacciAttention, geometry="block"),
    "skipat": DenseAttention,  # in the middle half of the blocks
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=TIMESFORMER_SIZES, help="default: timesformer_tiny, on a GPU _base")
    parser.add_argument("--crop", type=int, help="pixels, a multiple of 16; default: 112, on a GPU 224")
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32, 64, 128], metavar="T")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME",
                        help=f"dense is always there; default: all of {', '.join(METHODS)}")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="at most; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=60, help="about how long to stay at a number of frames")
    parser.add_argument("--longest", type=float, default=60, help="seconds a step may take; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/model_DEVICE.json")
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    crop = args.crop or (224 if on_gpu else 112)
    if min(args.rounds, args.threads, *args.frames) < 1 or crop < 16 or crop % 16:
        raise ValueError("--rounds, --threads and --frames expect 1 or more, --crop a multiple of 16")
    torch.set_num_threads(args.threads)
    bench = Bench(args.model or ("timesformer_base" if on_gpu else "timesformer_tiny"), crop, device, args)
    content: dict[str, Any] = {
        "date": date.today().isoformat(), "device": device.type, "dtype": bench.dtype, "model": bench.size,
        "crop": crop, "threads": args.threads,
        "kinds": {kind: bench.compare(kind, sorted(set(args.frames))) for kind in args.kinds},
        "machine": describe_machine(), "versions": package_versions(),
    }  # fmt: skip
    out = args.out or ROOT / f"benchmarks/results/model_{device.type}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written to {out}")


class Bench:
    """Times models of one size on one device; bfloat16 by autocast on a GPU."""

    def __init__(self, size: str, crop: int, device: torch.device, args: argparse.Namespace) -> None:
        self.size, self.crop, self.device, self.args = size, crop, device, args
        self.dtype = "bfloat16" if device.type == "cuda" else "float32"

    def compare(self, kind: str, frames: Sequence[int]) -> dict[str, Any]:
        """Figures by frames and method, and of each method and pass the exponent."""
        figures: dict[str, dict[str, Any]] = {}
        for count in frames:
            names = [name for name in METHODS if name in {"dense", *self.args.methods}]
            chosen = [name for name in names if self.expected_seconds(figures, name, count) <= self.args.longest]
            figures[str(count)] = rows = self.at(kind, count, chosen)
            print(show(f"{kind}, {count} frames", rows), flush=True)
        exponents = {
            name: {p: round(exponent({int(t): rows[name][p]["ms"] for t, rows in figures.items() if name in rows}), 3)
                   for p in PASSES}
            for name in figures[str(frames[0])] if sum(name in rows for rows in figures.values()) > 1
        }  # fmt: skip
        print(f"{kind}: time grows like frames to the power of {exponents}", flush=True)
        return {"frames": figures, "exponents": exponents}

    def expected_seconds(self, figures: Mapping[str, Any], name: str, count: int) -> float:
        """Return the seconds expected of a training step, from the growth between the last two numbers of frames."""
        taken = {int(t): rows[name]["train"]["ms"] / 1e3 for t, rows in figures.items() if name in rows}
        if not taken or len(taken) < len(figures):
            return math.inf if figures else 0.0
        last = max(taken)
        slope = exponent(dict(sorted(taken.items())[-2:])) if len(taken) > 1 else 2.0
        return taken[last] * (count / last) ** slope

    def at(self, kind: str, count: int, names: Sequence[str]) -> dict[str, Any]:
        clip = torch.randn(1, 3, count, self.crop, self.crop, generator=torch.Generator().manual_seed(0))
        clip = clip.to(self.device)
        steps: dict[tuple[str, str], Step] = {}
        rows: dict[str, Any] = {}
        for name in names:
            model = self.build(kind, name, count)
            rows[name] = {"gmacs": round_to(profile(model, (count, self.crop, self.crop)).macs_executed / 1e9)}
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
            steps[name, PASSES[0]] = partial(self.infer, model, clip)
            steps[name, PASSES[1]] = partial(self.train, model, clip, optimizer)
        seconds = take_turns(steps, self.device, self.args.rounds, self.args.seconds, f"{kind}, {count} frames")
        for (name, kind_), own in seconds.items():
            release_memory()
            memory = PeakMemory(self.device)
            steps[name, kind_]()
            row = {
                "ms": 1e3 * statistics.median(own), "quartiles_ms": [1e3 * x for x in quartiles(own)],
                "times_as_fast": median_ratio(own, seconds["dense", kind_]) if "dense" in names else None,
                "rounds": len(own), "peak_mb": (memory.peak_bytes() or 0) / 1e6,
            }  # fmt: skip
            rows[name][kind_] = {key: round_to(value) for key, value in row.items()}
        return rows

    def build(self, kind: str, name: str, frames: int) -> nn.Module:
        torch.manual_seed(0)
        depth = int(TIMESFORMER_SIZES[self.size]["depth"])
        middle = SkipSettings(blocks=tuple(range(depth // 4, 3 * depth // 4)))
        model = TimeSformer(
            **TIMESFORMER_SIZES[self.size], clip_size=(frames, self.crop, self.crop), num_classes=400,
            attention_type=KINDS[kind], operators=dict.fromkeys(AXES[kind], METHODS[name]),
            skip=dict.fromkeys(AXES[kind], middle) if name == "skipat" else None,
        )  # fmt: skip
        return model.to(self.device)

    def infer(self, model: nn.Module, clip: torch.Tensor) -> None:
        model.eval()
        with torch.no_grad(), self.autocast():
            model(clip)

    def train(self, model: nn.Module, clip: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        model.train()
        with self.autocast():
            loss = nn.functional.cross_entropy(
                model(clip).float(), torch.zeros(1, dtype=torch.long, device=clip.device)
            )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")


def exponent(ms: Mapping[int, float]) -> float:
    """The slope of log(time) over log(frames)."""
    return statistics.linear_regression([math.log(t) for t in ms], [math.log(x) for x in ms.values()]).slope


def show(title: str, rows: Mapping[str, Any]) -> str:
    lines = [title]
    for name, row in rows.items():
        cells = [f"{p} {row[p]['ms']:10.1f} ms {row[p]['times_as_fast'] or math.nan:6.2f}x" for p in PASSES]
        lines.append(f"  {name:18}" + "   ".join(cells) + f"   {row['gmacs']:8.1f} GMACs")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_tool(main))
