"""Small grids on features of made-up clips, for the tests of probes."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from videoattn.config.load import load_config
from videoattn.data.clips.batch import Batch
from videoattn.engine.distributed import Process
from videoattn.engine.log import Stopwatch
from videoattn.engine.optim import GradientClip, build_probe_optimizer
from videoattn.engine.probes.grid import Cell, Probe, ProbeGrid
from videoattn.engine.probes.trainer import ProbeTrainer, build_features
from videoattn.layers.pooler import AttentivePooler
from videoattn.models import TimeSformer

LRS, WEIGHT_DECAYS = (0.002, 0.02), (0.0, 0.3)
ATTENTIVE = ["PROBE.TYPE", "attentive", "PROBE.DEPTH", 1, "PROBE.HEADS", 2]


def build_trainer(
    lrs: tuple[float, ...] = LRS, weight_decays: tuple[float, ...] = WEIGHT_DECAYS, *, attentive: bool = False,
    method: str = "adamw", precision: Any = "fp32", process: Process | None = None, clip: float | None = 0.1,
) -> ProbeTrainer:  # fmt: skip
    """Return the trainer of a grid on a frozen TimeSformer with drop path, all from one seed."""
    settings = ["MODEL.FREEZE", "encoder", "PROBE.LRS", lrs, "PROBE.WEIGHT_DECAYS", weight_decays, "SOLVER.BASE_LR",
                0.01, "SOLVER.OPTIMIZING_METHOD", method, *(ATTENTIVE if attentive else [])]  # fmt: skip
    cfg = load_config(None, settings)
    process = process or Process()
    torch.manual_seed(0)
    model = TimeSformer(
        (2, 16, 16), 8, 12, 2, 2, 4, drop_path_rate=0.5, **({"probe_depth": 1, "probe_heads": 2} if attentive else {})
    )
    model.eval().requires_grad_(False)
    pooler = model.pooler
    assert (pooler is not None) == attentive and isinstance(pooler, AttentivePooler | None)
    cells = [Cell(*cell) for cell in cfg.probe.list_grid(cfg.solver.base_lr, cfg.solver.weight_decay)]
    grid = ProbeGrid(Probe(model.head, pooler), cells)
    encode = model.forward_tokens if attentive else model.forward_features
    return ProbeTrainer(
        model, grid, build_probe_optimizer(cfg, grid.probes), process,
        build_features(encode, prepare, process.device, precision), F.cross_entropy, precision=precision,
        clip=GradientClip(norm=clip),
    )  # fmt: skip


def prepare(batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
    return batch.clips.float() / 255, batch.labels


def batches(number: int = 6, size: int = 4, mine: slice = slice(None)) -> Iterator[Batch]:
    """Yield batches in which the label is the brightest quarter of the frame, of each batch the clips `mine`."""
    generator = torch.Generator().manual_seed(7)
    for _ in range(number):
        clips = torch.randint(0, 100, (size, 3, 2, 16, 16), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 4, (size,), generator=generator)
        for clip, label in zip(clips, labels.tolist(), strict=True):
            y, x = divmod(label, 2)
            clip[..., 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] += 100
        zeros = torch.zeros(len(labels[mine]), dtype=torch.int64)
        yield Batch(clips[mine], labels[mine], zeros, zeros, draws=len(zeros))


def train(trainer: ProbeTrainer, steps: int = 6, num_micro: int = 1, mine: slice = slice(None)) -> list[float]:
    """Run some steps, and return the mean loss of each."""
    feed, watch = batches(steps * num_micro, mine=mine), Stopwatch()
    return [
        float(trainer.step(feed, number=step, num_micro=num_micro, lr=0.01 / (1 + step), stopwatch=watch)[0])
        for step in range(steps)
    ]
