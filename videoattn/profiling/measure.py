"""Latency, throughput, peak memory and kernels of a model's forward (and backward) pass on a device."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from videoattn.operators import AttentionOperator, DenseHeadsAttention
from videoattn.precision import AUTOCAST, Precision

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "convolution")
CUDA_MEMORY = "most that tensors held on the GPU, weights included"
CPU_MEMORY = "most resident memory of the process, less what it held before the first pass, weights included"
NO_MEMORY = "the peak of a process's resident memory can be reset only on Linux"


@dataclass(frozen=True)
class Measurement:
    """One batch of `batch_size` clips, `repeats` times after `warmup`; latencies in milliseconds per batch.

    `implementations` says for each type of attention operator which kernels computed its products.
    """

    device: str
    device_name: str
    num_threads: int
    precision: str
    train: bool
    batch_size: int
    warmup: int
    repeats: int
    latency_ms: float
    latency_quartiles_ms: tuple[float, float]
    clips_per_second: float
    peak_memory_bytes: int | None
    memory_meaning: str
    implementations: dict[str, list[str]]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    model: nn.Module,
    clip_size: tuple[int, int, int],
    *,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    precision: Precision = "fp32",
    warmup: int = 3,
    repeats: int = 10,
    train: bool = False,
) -> Measurement:
    """Measure the median latency of a forward pass on clips of zeros, with `train` forward and backward.

    The model runs on `device` (default: where it is) and is left as it was: device, mode, gradients, buffers. Raises
    ValueError on a model without weights (meta device), and where the batch does not fit into the GPU's memory.
    """
    if min(batch_size, warmup, repeats) < 1:
        raise ValueError(f"batch_size, warmup and repeats are at least 1, got {batch_size}, {warmup} and {repeats}")
    if precision not in AUTOCAST:
        raise ValueError(f"precision expects one of {', '.join(AUTOCAST)}, got {precision!r}")
    autocast = AUTOCAST[precision]
    home = next(model.parameters(), torch.empty(0)).device
    place = read_device(device) if device is not None else home
    if "meta" in (home.type, place.type):
        raise ValueError("a model on the meta device has no weights to run; build it on the device to measure")
    with ExitStack() as stack:
        stack.enter_context(_borrowed(model, home, place, train))
        clips = example_clip(model, clip_size, batch_size)

        def step() -> None:
            with torch.set_grad_enabled(train), torch.autocast(place.type, autocast, autocast is not None):
                logits = model(clips)
                if train:
                    logits.float().square().mean().backward()
            if train:
                model.zero_grad(set_to_none=True)
            if place.type == "cuda":
                torch.cuda.synchronize(place)

        memory = PeakMemory(place)
        try:
            implementations = _record_products(model, step)
            for _ in range(warmup - 1):
                step()
            seconds = [_time(step) for _ in range(repeats)]
        except torch.OutOfMemoryError as error:
            message = f"{batch_size} clips of {clip_size} do not fit into the memory of {place}: {error}"
            raise ValueError(message) from None
        peak = memory.peak_bytes()
    low, median, high = (float(value) for value in np.percentile(seconds, [25, 50, 75]))
    return Measurement(
        device=str(place),
        device_name=torch.cuda.get_device_name(place) if place.type == "cuda" else "the CPU",
        num_threads=torch.get_num_threads(),
        precision=precision,
        train=train,
        batch_size=batch_size,
        warmup=warmup,
        repeats=repeats,
        latency_ms=1e3 * median,
        latency_quartiles_ms=(1e3 * low, 1e3 * high),
        clips_per_second=batch_size / median,
        peak_memory_bytes=peak,
        memory_meaning=memory.meaning,
        implementations=implementations,
    )


def example_clip(model: nn.Module, clip_size: tuple[int, int, int], batch_size: int = 1) -> Tensor:
    """Return zeros [batch_size, 3, T, H, W] on the device and in the type of the model's first parameter."""
    if len(clip_size) != 3 or min(clip_size) < 1:
        raise ValueError(f"a clip size is (T, H, W), all at least 1, got {clip_size}")
    first = next(model.parameters(), torch.empty(0))
    return torch.zeros(batch_size, 3, *clip_size, device=first.device, dtype=first.dtype)


def read_device(name: torch.device | str, option: str = "device") -> torch.device:
    """Return the device of that name. Raises ValueError, naming the `option`, where there is none."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"{option} expects cpu, cuda or cuda:NUMBER, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"{option} {device} can't be measured: torch sees {torch.cuda.device_count()} GPUs")
    return device


def _time(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


@contextmanager
def _borrowed(model: nn.Module, home: torch.device, place: torch.device, train: bool) -> Iterator[None]:
    """Give the model on `place` in the requested mode; on leaving, restore all, random generators included."""
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    buffers = [(buffer, buffer.detach().to("cpu", copy=True)) for buffer in model.buffers()] if train else []
    devices = [place] if place.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            model.to(place).train(train)
            yield
    finally:
        model.to(home)
        for module, mode in modes:
            module.training = mode
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for buffer, before in buffers:
            buffer.copy_(before)


class PeakMemory:
    """The peak from construction on: tensors on a GPU, else the process's resident memory above what it held."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before: int | None = None
        if device.type == "cuda":
            self.meaning = CUDA_MEMORY
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
            self.before = _read_status("VmRSS")
            self.meaning = CPU_MEMORY
        except OSError:
            self.meaning = NO_MEMORY

    def peak_bytes(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return None if self.before is None else max(_read_status("VmHWM") - self.before, 0)


def _read_status(key: str) -> int:
    """Return a figure of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


class _ProductRecorder(TorchDispatchMode):
    """Notes which kernels compute products inside attention operators, and attention kernels anywhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.operator: str | None = None
        self.ran: dict[str, set[str]] = {}

    def enter(self, module: AttentionOperator, args: Any) -> None:
        implementation = getattr(module, "implementation", None)
        self.operator = type(module).__name__ + (f" ({implementation})" if isinstance(implementation, str) else "")
        self.ran.setdefault(self.operator, set())

    def leave(self, module: AttentionOperator, args: Any, output: Any) -> None:
        self.operator = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, name = func.namespace, func._schema.name.split("::")[-1]
        attention = namespace not in ("aten", "prim", "prims") or name.startswith(("_scaled_dot_product", "_fft"))
        if not name.endswith("_backward") and (attention or (self.operator and name in PRODUCTS)):
            ran = self.ran.setdefault(self.operator or "other attention", set())
            ran.add(name if namespace == "aten" else f"{namespace}::{name}")
        return func(*args, **(kwargs or {}))


def _record_products(model: nn.Module, step: Callable[[], None]) -> dict[str, list[str]]:
    recorder = _ProductRecorder()
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, AttentionOperator) and not isinstance(module, DenseHeadsAttention):  # its parts are
                stack.callback(module.register_forward_pre_hook(recorder.enter).remove)
                stack.callback(module.register_forward_hook(recorder.leave).remove)
        stack.enter_context(recorder)
        step()
    return {operator: sorted(names) for operator, names in recorder.ran.items()}
