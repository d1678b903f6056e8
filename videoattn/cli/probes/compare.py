"""Time and memory of a step of probes beside those of a step of fine-tuning, measured when a run starts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from videoattn.engine.probes.grid import ProbeGrid
from videoattn.precision import Precision
from videoattn.profiling.measure import Measurement, measure

_MOST_CLIPS = 2  # fine-tuning, which is only measured, may not fit with more


class _ProbeStep(nn.Module):
    """A pass of the frozen encoder, then a forward and backward pass of each probe, as training does them."""

    def __init__(self, encode: Callable[[Tensor], Tensor], grid: ProbeGrid) -> None:
        super().__init__()
        self.encode = encode
        self.grid = grid

    def forward(self, clips: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.encode(clips)
        for _, probe in self.grid.live():
            probe(features).float().square().mean().backward()
        return torch.zeros(1, device=clips.device, requires_grad=True)


def compare_steps(
    model: nn.Module, encode: Callable[[Tensor], Tensor], grid: ProbeGrid, batch_size: int, precision: Precision
) -> str:
    """Return one line: a step of the grid and of fine-tuning, each a forward and backward pass on clips of zeros."""
    clips = min(batch_size, _MOST_CLIPS)
    how: dict[str, Any] = {"batch_size": clips, "precision": precision, "warmup": 1, "repeats": 1, "train": True}
    size: Any = model.clip_size
    probing = _ProbeStep(encode, grid)
    measure(probing, size, **how)  # the first passes of a process also take memory that it keeps
    step = measure(probing, size, **how)
    learning = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(True)
    try:
        tuning: Measurement | None = measure(model, size, **how)
    except ValueError:  # it does not fit into the GPU's memory
        tuning = None
    finally:
        for parameter, learns in zip(model.parameters(), learning, strict=True):
            parameter.requires_grad_(learns)
    number = len(grid.cells)
    probes = f"{number} probe{'s' * (number != 1)}"
    text = f"a step of {clips} clip{'s' * (clips != 1)} takes {_show(step)} with {probes}"
    text += f" and {_show(tuning)} with fine-tuning" if tuning else "; fine-tuning does not fit into the memory"
    return f"{text} (forward and backward pass; memory: {step.memory_meaning})"


def _show(measured: Measurement) -> str:
    peak = measured.peak_memory_bytes
    return f"{measured.latency_ms:.0f} ms" + (f" and {peak / 2**20:.0f} MiB" if peak and peak >= 2**20 else "")
