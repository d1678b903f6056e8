"""Settings of a frozen encoder and the grid of probes that is trained on it."""

from typing import Literal

from pydantic import Field, model_validator

from videoattn.config.types import Epochs, Heads, NotNegative, Rate, Section


class Probe(Section):
    """A probe on the features of an encoder; with MODEL.FREEZE encoder, a grid of them is trained at once."""

    type: Literal["linear", "attentive"] = Field(
        "linear", description="linear: on the features of the model's own head; attentive: V-JEPA 2's, on all tokens"
    )
    depth: NotNegative = Field(3, description="blocks of self-attention in an attentive probe")
    heads: Heads = Field(16, description="heads of an attentive probe")
    lrs: tuple[Rate, ...] = Field((), description="learning rates of the grid; (): SOLVER.BASE_LR alone")
    weight_decays: tuple[Rate, ...] = Field((), description="weight decays of the grid; (): SOLVER.WEIGHT_DECAY alone")
    cache: str = Field("", description="folder to keep features in; '': none are kept")
    cache_epochs: Epochs = Field(1, description="epochs of random clips in the cache; training goes round in them")
    compare: bool = Field(True, description="measure a step beside one of fine-tuning when a run starts")

    @model_validator(mode="after")
    def _check(self) -> "Probe":
        for name in ("lrs", "weight_decays"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"PROBE.{name.upper()} expects each value once, got {list(values)}")
        if self.cache_epochs != 1 and not self.cache:
            raise ValueError("PROBE.CACHE_EPOCHS expects PROBE.CACHE, the folder of the cache, to be set")
        if self.type == "linear" and (self.depth, self.heads) != (3, 16):
            raise ValueError("PROBE.DEPTH and PROBE.HEADS expect PROBE.TYPE attentive, got linear")
        return self

    def list_grid(self, base_lr: float, weight_decay: float) -> list[tuple[float, float]]:
        """Return learning rate and weight decay of each probe; the arguments stand where PROBE gives none."""
        return [(lr, decay) for lr in self.lrs or (base_lr,) for decay in self.weight_decays or (weight_decay,)]
