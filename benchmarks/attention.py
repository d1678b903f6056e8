#!/usr/bin/env python3
"""Compare the speed of sparse attention with torch's dense attention and other implementations, on the same tensors.

Examples:
    python benchmarks/attention.py                      # writes benchmarks/results/attention_cpu.json (or _cuda)
    python benchmarks/attention.py --lengths 196 1568 --frames --contenders dense compiled --threads 2
    python docs/write_performance.py                    # then puts the figures into docs/performance.md

Attention alone, no projections, on strided views of one packed tensor, 12 heads of 64 channels, the published Wythoff
sets unless a name says `modified`. All contenders take turns in every round; given are medians with quartiles, and the
median over rounds of dense time / own time (above 1 is faster than dense). One thread is timed by its own processor
time, which waiting for other programs does not lengthen; several threads, and GPUs, by the clock. Each contender's
first outputs are compared, since times of wrong results mean nothing.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import torch
from attention_contenders import FRAMES, HEAD_DIM, HEADS, JOINT, LENGTHS, LOCATIONS, TIME, Attend, Contender, pack
from interleave import Step, median_ratio, quartiles, release_memory, round_to, seconds_of, take_turns
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from videoattn.cli.run_tool import run_tool
from videoattn.engine.log import describe_machine, package_versions
from videoattn.files import atomic_write
from videoattn.grid import Axis
from videoattn.profiling.measure import PeakMemory

ROOT = Path(__file__).parents[1]
PASSES = ("forward", "train")
# Ways that compute another function, or over another pattern, than the published sets with other keys excluded.
OTHERS = ("dense", "in place", "multiplied", "compiled, zero_logit", "compiled, modified", "compiled, block")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="*", choices=LENGTHS, default=list(LENGTHS), metavar="N",
                        help="tokens of a joint or spatial call; default: all")  # fmt: skip
    parser.add_argument("--frames", type=int, nargs="*", choices=FRAMES, default=list(FRAMES), metavar="T",
                        help="of a temporal call; default: all")  # fmt: skip
    parser.add_argument("--contenders", nargs="+", choices=[*JOINT, *TIME], metavar="NAME",
                        help=f"default: all of {', '.join(JOINT)}")  # fmt: skip
    parser.add_argument(
        "--rounds", type=int, default=9, help="at most; fewer where they are long; default: %(default)s"
    )
    parser.add_argument("--seconds", type=float, default=40, help="about how long to stay at a length")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32, on a GPU bfloat16")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/attention_DEVICE.json")
    parser.add_argument("--keep", action="store_true", help="lengths and frames of OUT that are not measured now stay")
    args = parser.parse_args(argv)
    if min(args.rounds, args.threads) < 1:
        raise ValueError(f"--rounds and --threads expect 1 or more, got {args.rounds} and {args.threads}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, args.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    torch.set_num_threads(args.threads)
    bench = Bench(device, dtype, args.rounds, args.seconds)
    content: dict[str, Any] = {
        "date": date.today().isoformat(), "device": device.type, "dtype": str(dtype).removeprefix("torch."),
        "heads": HEADS, "head_dim": HEAD_DIM, "locations": LOCATIONS, "threads": args.threads,
        "copy_gb_per_s": round(bench.copy_bandwidth() / 1e9, 2), "joint": {}, "time": {},
        "machine": describe_machine(), "versions": package_versions(),
    }  # fmt: skip
    for axis, lengths, contenders in ((Axis.JOINT, args.lengths, JOINT), (Axis.TIME, args.frames, TIME)):
        chosen = {
            name: c for name, c in contenders.items() if not args.contenders or name in {"dense", *args.contenders}
        }
        for length in lengths:
            content[axis.value][str(length)] = rows = bench.compare(axis, length, chosen)
            print(show(f"{axis.value} {length}", rows), flush=True)
    out: Path = args.out or ROOT / f"benchmarks/results/attention_{device.type}.json"
    if args.keep and out.exists():
        earlier = json.loads(out.read_text(encoding="utf-8"))
        for axis in ("joint", "time"):
            rows = earlier[axis] | content[axis]
            content[axis] = {length: rows[length] for length in sorted(rows, key=int)}
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written to {out}")


class Bench:
    """Times contenders on one device. `seconds` is about how long they may take at one length."""

    def __init__(self, device: torch.device, dtype: torch.dtype, rounds: int, seconds: float) -> None:
        self.device, self.dtype, self.rounds, self.seconds = device, dtype, rounds, seconds

    def compare(self, axis: Axis, length: int, contenders: Mapping[str, Contender]) -> dict[str, Any]:
        """Return for each contender and pass: median and quartiles in ms, ratio to dense, memory, GB/s and kernels."""
        grid, packed = pack(axis, length, self.device, self.dtype)
        upstream = torch.ones_like(packed[..., 0, :])
        steps: dict[tuple[str, str], Step] = {}
        rows: dict[str, Any] = {}
        outputs: dict[str, Tensor] = {}
        for name, contender in contenders.items():
            if length > contender.longest:
                continue
            attend = contender.build(grid, self.device)
            recorder = KernelRecorder()
            with recorder if contender.ran is None else nullcontext():
                outputs[name] = forward(attend, packed)
            rows[name] = {"ran": contender.ran or ", ".join(sorted(recorder.ran))}
            steps[name, PASSES[0]] = lambda attend=attend: forward(attend, packed)  # type: ignore[misc]
            if contender.trains or self.device.type == "cuda":
                steps[name, PASSES[1]] = lambda attend=attend: train(attend, packed, upstream)  # type: ignore[misc]
        check_equal(outputs, axis)
        outputs.clear()
        minimum = packed.nbytes * 4 // 3  # q, k, v read and the output written
        seconds = take_turns(steps, self.device, self.rounds, self.seconds, f"{axis.value} {length}")
        for (name, kind), own in seconds.items():
            release_memory()
            memory = PeakMemory(self.device)
            steps[name, kind]()
            row = {
                "ms": 1e3 * statistics.median(own), "quartiles_ms": [1e3 * x for x in quartiles(own)],
                "times_as_fast": median_ratio(own, seconds["dense", kind]),
                "rounds": len(own), "peak_mb": (memory.peak_bytes() or 0) / 1e6,
            }  # fmt: skip
            if kind == "forward":
                row["gb_per_s"] = minimum / 1e6 / row["ms"]
            rows[name][kind] = {key: round_to(value) for key, value in row.items()}
        return rows

    def copy_bandwidth(self) -> float:
        """Bytes read and written per second when a large tensor is copied."""
        source = torch.ones(2**28 if self.device.type == "cuda" else 2**25, device=self.device)
        target = torch.empty_like(source)
        target.copy_(source)
        return (
            2
            * source.nbytes
            / statistics.median(seconds_of(lambda: target.copy_(source), self.device) for _ in range(9))
        )


class KernelRecorder(TorchDispatchMode):
    """Names of the attention kernels and products that run."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if "attention" in name or name in ("aten::bmm", "videoattn::gather_products"):
            self.ran.add(name)
        return func(*args, **(kwargs or {}))


def forward(attend: Attend, packed: Tensor) -> Tensor:
    with torch.no_grad():
        return attend(packed)


def train(attend: Attend, packed: Tensor, upstream: Tensor) -> None:
    torch.autograd.grad(attend(packed), packed, upstream)


def check_equal(outputs: Mapping[str, Tensor], axis: Axis) -> None:
    """Raise ValueError where contenders that compute one function differ."""
    groups = [[name for name in outputs if name not in OTHERS], ["multiplied", "compiled, zero_logit"]]
    if axis is Axis.TIME:
        groups = [["dense", "in place"], ["compiled", "auto"]]
    for group in groups:
        first, *rest = [name for name in group if name in outputs] or [""]
        for name in rest:
            difference = float((outputs[name] - outputs[first]).abs().max())
            if difference > (2e-2 if outputs[name].dtype is torch.bfloat16 else 1e-5):
                raise ValueError(f"{name} differs from {first} by {difference}, so that times mean nothing")


def show(title: str, rows: Mapping[str, Any]) -> str:
    lines = [title]
    for name, row in rows.items():
        cells = [
            f"{kind} {row[kind]['ms']:9.2f} ms {row[kind]['times_as_fast']:6.2f}x" for kind in PASSES if kind in row
        ]
        lines.append(f"  {name:22}" + "   ".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_tool(main))
