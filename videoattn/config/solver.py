"""Settings of the optimizer and its learning rate, with checks of the schedule."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from videoattn.config.types import Epochs, Fraction, FractionBelowOne, NonNegativeFloat, Rate, Section


class Solver(Section):
    """Optimizer and learning-rate schedule."""

    base_lr: Rate = 0.1
    lr_policy: Literal["cosine", "steps_with_relative_lrs", "constant"] = "cosine"
    cosine_end_lr: Rate = 0.0
    cosine_after_warmup: bool = Field(False, description="start the cosine at the end of warm-up")
    steps: tuple[NonNegativeFloat, ...] = Field((), description="epochs at which the next value of LRS applies")
    lrs: tuple[Rate, ...] = Field((), description="learning rates relative to BASE_LR")
    max_epoch: Epochs = 300
    momentum: FractionBelowOne = 0.9
    dampening: Fraction = 0.0
    nesterov: bool = True
    betas: tuple[FractionBelowOne, FractionBelowOne] = (0.9, 0.999)
    weight_decay: Rate = 1e-4
    zero_wd_1d_param: bool = Field(False, description="no weight decay on biases and norms")
    warmup_epochs: NonNegativeFloat = 0.0
    warmup_start_lr: Rate = 0.01
    optimizing_method: Literal["sgd", "adam", "adamw"] = "sgd"
    base_lr_scale_num_shards: bool = Field(False, description="multiply learning rates by the number of machines")
    clip_grad_val: NonNegativeFloat | None = None
    clip_grad_l2norm: NonNegativeFloat | None = None
    layer_decay: Annotated[float, Field(ge=0.01, le=1)] = 1.0

    @model_validator(mode="after")
    def _check(self) -> "Solver":
        top = self.base_lr
        if self.lr_policy == "steps_with_relative_lrs":
            self._check_steps()
            top *= [lr for step, lr in zip(self.steps, self.lrs, strict=True) if step <= self.warmup_epochs][-1]
        if self.lr_policy == "cosine" and self.cosine_end_lr > self.base_lr:
            raise ValueError(
                f"SOLVER.COSINE_END_LR {self.cosine_end_lr:g} expects at most SOLVER.BASE_LR {self.base_lr:g}, at "
                "which the cosine starts; otherwise the learning rate would rise"
            )
        if self.warmup_epochs >= self.max_epoch:
            raise ValueError(
                f"SOLVER.WARMUP_EPOCHS {self.warmup_epochs:g} expects less than SOLVER.MAX_EPOCH {self.max_epoch}; "
                f"otherwise warm-up would not end. For a run of {self.max_epoch} epochs set SOLVER.WARMUP_EPOCHS to "
                f"{self.max_epoch / 10:g}, say, or to 0 for none"
            )
        if self.warmup_epochs > 0 and self.warmup_start_lr > top:
            raise ValueError(
                f"SOLVER.WARMUP_START_LR {self.warmup_start_lr:g} expects at most the learning rate after warm-up, "
                f"{top:g} by SOLVER.BASE_LR {self.base_lr:g}; otherwise the rate would fall during SOLVER.WARMUP_EPOCHS"
            )
        return self

    def _check_steps(self) -> None:
        if len(self.steps) != len(self.lrs) or not self.steps or self.steps[0] != 0:
            raise ValueError(
                "SOLVER.LR_POLICY steps_with_relative_lrs expects SOLVER.STEPS starting at 0 and as many SOLVER.LRS, "
                f"got {list(self.steps)} and {list(self.lrs)}"
            )
        if any(first >= second for first, second in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError(f"SOLVER.STEPS expects rising epochs, got {list(self.steps)}")
        if self.steps[-1] >= self.max_epoch:
            raise ValueError(
                f"SOLVER.STEPS {[float(f'{step:g}') for step in self.steps]} expects epochs below SOLVER.MAX_EPOCH "
                f"{self.max_epoch}; the run would end before step {self.steps[-1]:g}. Set STEPS and LRS for "
                f"{self.max_epoch} epochs, or SOLVER.LR_POLICY to cosine"
            )
