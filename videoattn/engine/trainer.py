"""The optimizer step, with the model, averaged weights and loss scale that it changes."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from videoattn.data.clips.batch import Batch, Prepare
from videoattn.engine.checkpoint.check import check_fit, first_not_finite, tensors_of_optimizer
from videoattn.engine.distributed import Process
from videoattn.engine.evaluate import evaluation_mode
from videoattn.engine.log import Stopwatch
from videoattn.engine.optim import GradientClip, set_learning_rate
from videoattn.precision import AUTOCAST, Precision
from videoattn.seeding import derive_seed

# fp16's loss scale begins at 65536 and halves whenever gradients overflow; below this it is the training that diverges.
_MIN_LOSS_SCALE = 1e-4

Criterion = Callable[[Tensor, Tensor], Tensor]


class Trainer:
    """A model with its optimizer, loss scale and averaged weights.

    `prepare(batch, seed)` turns a batch into the model's input and targets on the device, with a seed that is the same
    in every process; `criterion(logits, targets)` is a mean over clips.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        process: Process,
        prepare: Prepare,
        criterion: Criterion,
        *,
        seed: int = 0,
        precision: Precision = "fp32",
        clip: GradientClip | None = None,
        ema_decay: float | None = None,
        compile_model: bool = False,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.process = process
        self.prepare = prepare
        self.criterion = criterion
        self.seed = seed
        self.autocast = AUTOCAST.get(precision)
        self.clip = clip or GradientClip()
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=precision == "fp16")
        self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay)) if ema_decay is not None else None
        self.network: Any = torch.compile(model) if compile_model else model
        if process.world_size > 1:
            ids = [process.local_rank] if process.device.type == "cuda" else None
            # our models' buffers are tables that every process builds alike; running means are not
            running = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
            self.network = DistributedDataParallel(self.network, device_ids=ids, broadcast_buffers=running)

    def step(
        self, batches: Iterator[Batch], *, number: int, num_micro: int, lr: float, stopwatch: Stopwatch
    ) -> tuple[Tensor, float, list[Batch]]:
        """Run optimizer step `number` of the run, over `num_micro` batches of equal size.

        Returns the mean loss (on the device), the gradients' norm before clipping, and the batches. Raises
        FloatingPointError where the norm is not finite, before anything is changed; fp16 skips such a step instead, as
        long as its loss scale can fall.
        """
        self.model.train()
        set_learning_rate(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        total, seen = torch.zeros((), device=self.process.device), []
        for micro in range(num_micro):
            with stopwatch.waiting():
                batch = next(batches)
            clips, targets = self.prepare(batch, derive_seed(self.seed, "mix", number, micro))
            torch.manual_seed(derive_seed(self.seed, "step", number, micro, self.process.rank))
            waits = isinstance(self.network, DistributedDataParallel) and micro + 1 < num_micro
            with self.network.no_sync() if waits else nullcontext():
                with torch.autocast(self.process.device.type, self.autocast, enabled=self.autocast is not None):
                    loss = self.criterion(self.network(clips), targets) / num_micro
                self.scaler.scale(loss).backward()
            total += loss.detach()
            stopwatch.clips += len(clips) * self.process.world_size
            seen.append(batch)
        self.scaler.unscale_(self.optimizer)
        norm = self.clip(self.model.parameters())
        if not math.isfinite(norm) and not (self.scaler.is_enabled() and self.scaler.get_scale() >= _MIN_LOSS_SCALE):
            raise FloatingPointError(f"with a loss of {float(total):.4g}, the gradient norm became {norm}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        return total, norm, seen

    def averaged_model(self) -> nn.Module:
        """Return the model to evaluate: the averaged one where averaging is on."""
        return self.ema.module if self.ema is not None else self.model

    def check_finite(self, batch: Batch, number: int) -> None:
        """Raise FloatingPointError, naming what it is, where training can't go on from this state.

        Weights, averaged weights and the optimizer's state have to be finite, and so have the loss of `batch` and its
        gradients: weights that are finite but too large have none. `number` is that of the optimizer step before. Only
        the main process looks.
        """
        if not self.process.is_main:
            return
        tensors = list(self.model.state_dict().items())
        if self.ema is not None:
            tensors += [(f"{name}, averaged", value) for name, value in self.ema.module.state_dict().items()]
        odd = first_not_finite([*tensors, *tensors_of_optimizer(self.optimizer.state_dict())])
        if odd:
            raise FloatingPointError(f"{odd} became infinite or NaN")
        self.optimizer.zero_grad(set_to_none=True)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        autocast = torch.autocast(self.process.device.type, self.autocast, enabled=self.autocast is not None)
        with evaluation_mode(self.model):  # running means of a norm stay as they are
            with autocast:
                clips, targets = self.prepare(batch, derive_seed(self.seed, "mix", number, 0))
                loss = self.criterion(self.model(clips), targets)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)  # not shared with other processes
        norm = float(torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None]))
        value = loss.item()
        if not (math.isfinite(value) and math.isfinite(norm)):
            what = f"the loss became {value:.4g} and its gradients' norm {norm}"
            raise FloatingPointError(f"with the new weights, {what}")

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "model_state": self.model.state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "scaler_state": self.scaler.state_dict(),
        }
        state["num_moments"] = len(state["optimizer_state"]["state"])
        if self.ema is not None:
            state |= {"ema_state": self.ema.module.state_dict(), "ema_updates": int(self.ema.n_averaged)}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the optimizer's settings stay as they are here.

        Raises BadCheckpointError, before anything is changed, where the state does not fit.
        """
        averaged, scaled = self.ema is not None, self.scaler.is_enabled()
        check_fit(state, self.model, self.optimizer, averaged=averaged, scaled=scaled)
        self.model.load_state_dict(state["model_state"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer_state"]["state"], "param_groups": groups})
        if scaled and state["scaler_state"]:  # it is empty where the precision was another before
            self.scaler.load_state_dict(state["scaler_state"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema_state"])
            self.ema.n_averaged.fill_(state["ema_updates"])
