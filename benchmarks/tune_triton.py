#!/usr/bin/env python3
"""Find the best tile and number of warps for the Triton kernels of Fibonacci attention on this GPU.

Examples:
    python benchmarks/tune_triton.py                      # writes benchmarks/results/tune_triton.json
    python benchmarks/tune_triton.py --lengths 196 1568 --dtype float16

Times every candidate at the lengths of benchmarks/attention.py, kernel by kernel; the others run meanwhile with what
`videoattn.kernels.triton.launch.launch_of` gives them, whose table the result should then change. Needs a GPU.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
from attention_contenders import LENGTHS, fibonacci, pack
from tqdm import tqdm

from videoattn.cli.run_tool import run_tool
from videoattn.engine.log import describe_machine, package_versions
from videoattn.files import atomic_write
from videoattn.grid import Axis
from videoattn.kernels.triton.launch import Kernel, Launch, launch_of

ROOT = Path(__file__).parents[1]
TILES, WARPS = (16, 32, 64, 128), (1, 2, 4, 8)
KERNELS: tuple[Kernel, ...] = ("forward", "by_query", "by_key")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", choices=LENGTHS, default=list(LENGTHS), help="tokens a call")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/tune_triton.json")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise ValueError("tuning Triton kernels needs a GPU, and torch sees none on this machine")
    best = {str(n): tune(n, getattr(torch, arguments.dtype)) for n in arguments.lengths}
    report = {"machine": describe_machine(), "versions": package_versions(), "dtype": arguments.dtype, "best": best}
    with atomic_write(arguments.out) as path:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(best, indent=1))


def tune(length: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return for each kernel the fastest launch and the one in use, each with the milliseconds of its pass."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    device = torch.device("cuda")
    grid, packed = pack(Axis.JOINT, length, device, dtype)
    attend = fibonacci("compiled")(grid, device)
    upstream = torch.randn_like(attend(packed.detach()))
    found: dict[str, Any] = {}
    for kernel in KERNELS:
        times: dict[Launch, float] = {}
        in_use = launch_of(kernel, packed.shape[-1], dtype, length)
        candidates = {in_use, *(Launch(*pair) for pair in product(TILES, WARPS))}
        for launch in tqdm(sorted(candidates), desc=f"{length} tokens, {kernel}", leave=False, disable=None):
            with launched(kernel, launch):
                try:
                    if kernel == "forward":
                        times[launch] = do_bench(lambda: attend(packed.detach()), return_mode="median")
                    else:
                        out = attend(packed)
                        times[launch] = do_bench(
                            lambda out=out: torch.autograd.grad(out, packed, upstream, retain_graph=True),
                            return_mode="median",
                        )
                except OutOfResources:
                    continue
        fastest = min(times, key=lambda launch: times[launch])
        found[kernel] = {
            name: {**launch._asdict(), "ms": round(times[launch], 4)}
            for name, launch in (("fastest", fastest), ("in use", in_use))
        }
    return found


@contextmanager
def launched(kernel: Kernel, launch: Launch) -> Iterator[None]:
    """Launch one kernel so, and the others as ever."""

    def chosen(name: Kernel, dim: int, dtype: torch.dtype, length: int) -> Launch:
        return launch if name == kernel else launch_of(name, dim, dtype, length)

    modules = [importlib.import_module(f"videoattn.kernels.triton.offsets{part}") for part in ("", "_backward")]
    try:
        for module in modules:
            vars(module)["launch_of"] = chosen
        yield
    finally:
        for module in modules:
            vars(module)["launch_of"] = launch_of


if __name__ == "__main__":
    sys.exit(run_tool(main))
