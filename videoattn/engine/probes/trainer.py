"""The optimizer step of a grid of probes: the encoder runs once, and each probe is trained apart from the others."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from videoattn.data.clips.batch import Batch, Prepare
from videoattn.engine.checkpoint.check import check_fit, check_weights
from videoattn.engine.checkpoint.files import BadCheckpointError
from videoattn.engine.distributed import Process, all_reduce_sum
from videoattn.engine.log import Stopwatch, logger
from videoattn.engine.optim import GradientClip, set_learning_rate
from videoattn.engine.probes.grid import ProbeGrid
from videoattn.engine.trainer import Criterion
from videoattn.precision import AUTOCAST, Precision
from videoattn.seeding import derive_seed


class ProbeTrainer:
    """A grid of probes with its optimizer, in the place of a `Trainer`.

    `features(batch, seed)` returns the encoder's features of a batch and their targets, without gradients. `model` is
    the whole model; checkpoints hold it with the weights of the best probe, and the grid beside it. Gradients are
    clipped for each probe. A probe whose loss or gradients are not finite is dropped before they change it.
    """

    def __init__(
        self,
        model: nn.Module,
        grid: ProbeGrid,
        optimizer: torch.optim.Optimizer,
        process: Process,
        features: Prepare,
        criterion: Criterion,
        *,
        seed: int = 0,
        precision: Precision = "fp32",
        clip: GradientClip | None = None,
    ) -> None:
        self.model = model
        self.grid = grid
        self.optimizer = optimizer
        self.process = process
        self.features = features
        self.criterion = criterion
        self.seed = seed
        self.autocast = AUTOCAST.get(precision)
        self.clip = clip or GradientClip()

    def step(
        self, batches: Iterator[Batch], *, number: int, num_micro: int, lr: float, stopwatch: Stopwatch
    ) -> tuple[Tensor, float, list[Batch]]:
        """Run optimizer step `number` of the run, over `num_micro` batches of equal size.

        Returns the loss (on the device) and the gradients' norm before clipping, both the mean over probes, and the
        batches. Raises FloatingPointError where no probe is left.
        """
        set_learning_rate(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        live, seen = list(self.grid.live()), []
        losses = torch.zeros(len(live), device=self.process.device)
        for micro in range(num_micro):
            with stopwatch.waiting():
                batch = next(batches)
            features, targets = self.features(batch, derive_seed(self.seed, "mix", number, micro))
            for place, (_, probe) in enumerate(live):  # one after another: the activations of one probe are kept
                losses[place] += self._backward(probe, features, targets, num_micro)
            stopwatch.clips += len(features) * self.process.world_size
            seen.append(batch)
        losses = self._share(live, losses)
        norms = [self.clip(probe.parameters()) for _, probe in live]
        finite = [
            math.isfinite(loss) and math.isfinite(norm) for loss, norm in zip(losses.tolist(), norms, strict=True)
        ]
        for place, (probe_number, _) in enumerate(live):
            if not finite[place]:
                self._drop(probe_number, number, f"the gradient norm became {norms[place]}")
        self.optimizer.step()
        kept = [place for place, good in enumerate(finite) if good]
        return losses[kept].mean(), sum(norms[place] for place in kept) / len(kept), seen

    def _backward(self, probe: nn.Module, features: Tensor, targets: Tensor, num_micro: int) -> Tensor:
        with torch.autocast(self.process.device.type, self.autocast, enabled=self.autocast is not None):
            loss = self.criterion(probe(features), targets) / num_micro
        loss.backward()
        return loss.detach()

    def _share(self, live: Sequence[tuple[int, nn.Module]], losses: Tensor) -> Tensor:
        """Replace losses and gradients by their means over all processes, with one message."""
        if self.process.world_size == 1:
            return losses
        gradients = [p.grad for _, probe in live for p in probe.parameters() if p.grad is not None]
        total = all_reduce_sum(torch.cat([losses, *(gradient.flatten() for gradient in gradients)]))
        parts = (total / self.process.world_size).split([len(losses), *(gradient.numel() for gradient in gradients)])
        for gradient, part in zip(gradients, parts[1:], strict=True):
            gradient.copy_(part.view_as(gradient))
        return parts[0]

    def _drop(self, number: int, step: int, reason: str) -> None:
        if self.process.is_main:
            logger.warning("probe %d (%s) is dropped in step %d: %s", number, self.grid.cells[number], step + 1, reason)
        self.grid.drop(number, f"{reason} in step {step + 1}", self.optimizer)

    def averaged_model(self) -> nn.Module:
        """Return the grid, which `GridValidation` evaluates."""
        return self.grid

    def check_finite(self, batch: Batch, number: int) -> None:
        """Drop the probes whose weights or moments are not finite, the same ones in every process."""
        for probe_number, _ in list(self.grid.live()):
            odd = self.grid.first_not_finite(probe_number, self.optimizer)
            if odd:
                self._drop(probe_number, number, f"{odd} became infinite or NaN")

    def state_dict(self) -> dict[str, Any]:
        """Return the model with the chosen probe, as an ordinary checkpoint, and the whole grid."""
        state: dict[str, Any] = {
            "model_state": self.model.state_dict() | self.grid.probes[self.grid.chosen].state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "scaler_state": {},
            "probe_state": self.grid.probes.state_dict(),
            "probes": self.grid.progress(),
        }
        return state | {"num_moments": len(state["optimizer_state"]["state"])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the optimizer's settings stay as they are here.

        Raises BadCheckpointError where the state does not fit.
        """
        if not isinstance(state.get("probe_state"), dict):
            raise BadCheckpointError("lacks the grid of probes: probe_state")
        check_fit(state, self.model, self.optimizer, averaged=False, scaled=False)
        check_weights(state["probe_state"], self.grid.probes.state_dict(), "probe_state")
        self.grid.restore_progress(state.get("probes"), self.optimizer)
        self.model.load_state_dict(state["model_state"])
        self.grid.probes.load_state_dict(state["probe_state"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer_state"]["state"], "param_groups": groups})


def build_features(
    encode: Callable[[Tensor], Tensor], prepare: Prepare, device: torch.device, precision: Precision
) -> Prepare:
    """Return the function that maps a batch and a seed to the features `encode` makes of its clips, and the targets."""
    dtype = AUTOCAST.get(precision)

    def features(batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
        clips, targets = prepare(batch, seed)
        autocast = torch.autocast(device.type, dtype, enabled=dtype is not None)
        with torch.no_grad(), autocast:
            return encode(clips), targets

    return features
