"""ModelSpec, the description of a model that the rest of the package uses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from videoattn.config import Config
from videoattn.models.weights.adapter import WeightAdapter


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelSpec:
    """A model of a named size, and the rules that training, evaluation, profiling and checkpoints follow for it.

    Args:
        model: the class. It accepts `clip_size` (T, H, W) and `num_classes` as keywords, keeps `clip_size` as an
            attribute, and returns logits [B, num_classes] of clips [B, 3, T, H, W].
        size: the keyword arguments that make the named size.
        clip_size: (T, H, W) of the clips that the model is published for.
        section: the name of the model's own section in `Config`, or "" for none.
        arguments: returns, from a config, the keyword arguments besides `clip_size` and `num_classes`. It raises
            ValueError for settings that the model cannot follow; `settings.refuse_attention_settings` helps.
        aggregate: the scores of views that are combined for a video under TEST.AGGREGATE auto.
        no_weight_decay: tells, from the model's own section and the name of a parameter, whether the parameter is
            exempt from weight decay whatever its shape.
        layer_of: returns, from the model and the name of a parameter, the number of layers between the parameter and
            the output, for layer decay: 0 for the head, the most for embeddings.
        adapter: reads and writes the checkpoints.
        own_weights: returns the folder of weights that the model is named by, None where it holds none; training
            starts from them unless TRAIN.CHECKPOINT_FILE_PATH names others.
    """

    model: type[nn.Module]
    size: Mapping[str, Any] = field(default_factory=dict)
    clip_size: tuple[int, int, int]
    section: str = ""
    arguments: Callable[[Config], dict[str, Any]]
    aggregate: Literal["logits", "probabilities"]
    no_weight_decay: Callable[[Any, str], bool]
    layer_of: Callable[[Any, str], int]
    adapter: WeightAdapter
    own_weights: Callable[[], Path | None] | None = None

    def build(self, **arguments: Any) -> nn.Module:
        """Return the model, freshly initialised; `arguments` take precedence over the named size."""
        return self.model(**{"clip_size": self.clip_size, **self.size, **arguments})

    def __call__(self, **arguments: Any) -> nn.Module:
        """Return `build(**arguments)`, so that `MODELS[name]()` is a model."""
        return self.build(**arguments)

    def settings(self, cfg: Config) -> Any:
        """Return the model's own section of a config, or None if it has no section."""
        return getattr(cfg, self.section) if self.section else None


def layers_above(model: Any, name: str) -> int:
    """Return the number of layers above a parameter of a transformer of `blocks` that end in `norm` and `head`."""
    part, _, rest = name.partition(".")
    if part == "blocks":
        return len(model.blocks) - int(rest.partition(".")[0])
    return 0 if part in ("norm", "pooler", "head") else len(model.blocks) + 1


def decay_all(settings: Any, name: str) -> bool:
    """Return False: no parameter is exempt from weight decay because of its name."""
    return False
