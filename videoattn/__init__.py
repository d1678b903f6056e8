"""Train, evaluate and profile video transformers with replaceable attention."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videoattn import models
    from videoattn.config.load import load_config
    from videoattn.convert.replace import replace_attention, revert_attention
    from videoattn.models.build import build_model
    from videoattn.models.weights.load import from_checkpoint, load_weights

__version__ = "0.1.0"
__all__ = [
    "__version__", "build_model", "from_checkpoint", "load_config", "load_weights", "models", "replace_attention",
    "revert_attention",
]  # fmt: skip

_HOMES = {
    "build_model": "videoattn.models.build",
    "from_checkpoint": "videoattn.models.weights.load",
    "load_config": "videoattn.config.load",
    "load_weights": "videoattn.models.weights.load",
    "replace_attention": "videoattn.convert.replace",
    "revert_attention": "videoattn.convert.replace",
}


def __getattr__(name: str) -> Any:
    if name == "models":
        return import_module("videoattn.models")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'videoattn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
