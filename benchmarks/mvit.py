#!/usr/bin/env python3
"""Compare the speed of an MViT on a CPU with torchvision's and pytorchvideo's of the same shape: MViTv1-B 16x4.

Examples:
    python benchmarks/mvit.py
    python benchmarks/mvit.py --bfloat16
    python benchmarks/mvit.py --blocks 0 1 4 --rounds 3 --out mvit.json

Every block that differs is timed by itself, then the whole model; forward, and forward with backward. The three take
turns, round by round, on one thread, and thread CPU time is taken, since other processes take the cores now and then.
All hold the same weights (a block of ours is checked against torchvision's before it is timed).

"At most" is how many times slower than a block made of nothing but its products the slower of the others is: no
implementation with the same products can be much further ahead of it. It takes the rate of one large product, the
fastest of twenty timed just after, for all of them, and two products backward for each forward.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from videoattn.cli.run_tool import run_tool
from videoattn.compat import import_torchvision
from videoattn.engine.log import describe_machine, package_versions
from videoattn.files import atomic_write
from videoattn.models import mvit_v1_b
from videoattn.models.baselines import Baseline
from videoattn.models.weights.load import mvit_from_ours

RESULTS = Path(__file__).parent / "results"
BLOCKS = {0: 1, 1: 1, 2: 1, 3: 1, 4: 10, 14: 1, 15: 1}  # block: how many of the sixteen are like it
Run = Callable[[], Tensor]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs="*", choices=BLOCKS, default=list(BLOCKS), metavar="N")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--model-rounds", type=int, default=3, help="of the whole model; default: %(default)s")
    parser.add_argument("--bfloat16", action="store_true", help="all three under autocast")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/mvit_cpu.json or mvit_cpu_bfloat16.json")
    args = parser.parse_args(argv)
    dtype = torch.bfloat16 if args.bfloat16 else torch.float32
    out = args.out or RESULTS / f"mvit_cpu{'_bfloat16' if args.bfloat16 else ''}.json"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models = build_models()
    rows = []
    for block in args.blocks:
        runs = {name: cast(run, dtype) for name, run in block_runs(models, block).items()}
        rows.append({"block": block, "alike": BLOCKS[block], **time_runs(runs, args.rounds)})
        rows[-1]["products"] = measure_products(runs["ours"], rows[-1]["seconds"], dtype)
        print(show(f"block {block}", rows[-1]), flush=True)
    whole = None
    if args.model_rounds:
        clip = torch.randn(1, 3, 16, 224, 224)
        runs = {name: cast(lambda m=model: m(clip), dtype) for name, model in models.items()}
        whole = time_runs(runs, args.model_rounds)
        whole["products"] = measure_products(runs["ours"], whole["seconds"], dtype)
        print(show("whole model", whole))
    content = {
        "what": f"MViTv1-B 16x4, batch of 1, {dtype}, thread CPU seconds, medians of interleaved rounds",
        "date": date.today().isoformat(), "blocks": rows, "model": whole,
        "machine": describe_machine(), "versions": package_versions(),
    }  # fmt: skip
    with atomic_write(out) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written: {out}")


def build_models() -> dict[str, nn.Module]:
    """Ours, torchvision's and pytorchvideo's, with the same weights and nothing random."""
    import_torchvision()
    from torchvision.models.video import mvit_v1_b as torchvisions

    ours = mvit_v1_b(drop_path_rate=0.0, dropout=0.0)
    theirs = torchvisions(dropout=0.0, stochastic_depth_prob=0.0)
    theirs.load_state_dict(mvit_from_ours(ours.state_dict(), "torchvision"))
    other = Baseline("mvit_base_16x4", dropout=0.0).network
    state = mvit_from_ours(ours.state_dict(), "pytorchvideo")
    other.load_state_dict({name: value for name, value in state.items() if name in other.state_dict()})
    return {"ours": ours, "torchvision": theirs, "pytorchvideo": other}


def block_runs(models: dict[str, nn.Module], number: int) -> dict[str, Run]:
    """The three's block of that number on the same stream. Raises ValueError if ours and torchvision's differ."""
    ours, theirs, other = (model.blocks[number] for model in models.values())  # type: ignore[index, union-attr]
    plan = ours.plan
    size = (plan.grid.t, plan.grid.h, plan.grid.w)
    x = torch.randn(1, plan.grid.tokens, plan.dim, requires_grad=True)
    runs: dict[str, Run] = {
        "ours": lambda: ours(x, {})[0],
        "torchvision": lambda: theirs(x, size)[0],
        "pytorchvideo": lambda: other(x, list(size))[0],
    }
    with torch.no_grad():
        difference = float((runs["ours"]() - runs["torchvision"]()).abs().max())
    if difference > 1e-4:
        raise ValueError(f"block {number} differs from torchvision's by {difference}, so that times mean nothing")
    return runs


def cast(run: Run, dtype: torch.dtype) -> Run:
    """The same under autocast, unless that is float32's."""

    def autocast() -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return run()

    return autocast


def time_runs(runs: dict[str, Run], rounds: int) -> dict[str, Any]:
    """Median thread seconds of each, in turns after a round that does not count; and how much slower others are."""
    taken: dict[str, dict[str, list[float]]] = {name: {"forward": [], "train": []} for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.thread_time()
            with torch.no_grad():
                run()
            middle = time.thread_time()
            run().sum().backward()
            if number:
                taken[name]["forward"].append(middle - start)
                taken[name]["train"].append(time.thread_time() - middle)
    medians = {name: {what: statistics.median(times) for what, times in kinds.items()} for name, kinds in taken.items()}
    ratios = {
        name: {what: medians[name][what] / medians["ours"][what] for what in ("forward", "train")}
        for name in runs
        if name != "ours"
    }
    return {"seconds": medians, "times_slower": ratios, "all_seconds": taken}


def measure_products(run: Run, seconds: dict[str, dict[str, float]], dtype: torch.dtype) -> dict[str, Any]:
    """Return the time of a forward pass's products alone, and how far ahead of the others that is."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which the counter doesn't know
    formulas = {attention: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        run()
    x, weight = torch.randn(1569, 768, dtype=dtype), torch.randn(2304, 768, dtype=dtype)
    taken = []
    for _ in range(20):
        start = time.thread_time()
        F.linear(x, weight)
        taken.append(time.thread_time() - start)
    rate = 2 * x.numel() * weight.shape[0] / min(taken)
    floor = {what: times * counter.get_total_flops() / rate for what, times in (("forward", 1), ("train", 3))}
    slower = {what: max(kinds[what] for kinds in seconds.values()) for what in floor}
    return {
        "flops_per_second": rate, "seconds": floor, "at_most": {what: slower[what] / floor[what] for what in floor},
    }  # fmt: skip


def show(title: str, row: dict[str, Any]) -> str:
    parts = [f"{title:12}"]
    for what in ("forward", "train"):
        parts.append(f"{what} {1e3 * row['seconds']['ours'][what]:7.1f} ms")
        parts += [f"{name} {kinds[what]:.2f}x" for name, kinds in row["times_slower"].items()]
        parts.append(f"(at most {row['products']['at_most'][what]:.2f}x)")
    return "  ".join(parts)


if __name__ == "__main__":
    sys.exit(run_tool(main))
