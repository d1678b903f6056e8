"""Imports of torchvision, timm and pytorchvideo, with fixes for builds that do not match that of torch.

A torchvision built for CUDA beside a CPU build of torch cannot load its compiled operators; its Python part then fails
on registering them. Declaring the operators' schemas beforehand is enough for models and transforms to work.
"""

import importlib
import sys
from functools import lru_cache
from types import ModuleType

import torch

_MISSING_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_LIBRARIES: list[torch.library.Library] = []  # a schema lives as long as its library object


@lru_cache(maxsize=1)
def import_torchvision() -> ModuleType:
    """Import torchvision, after declaring the schemas of its compiled operators if those could not be loaded.

    Afterwards `from torchvision.transforms import v2` works as usual. Raises ImportError where it is not installed.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _MISSING_SCHEMAS:
        library.define(schema)
    _LIBRARIES.append(library)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    return importlib.import_module("torchvision")


def import_timm() -> ModuleType:
    """Import timm, after making torchvision importable."""
    import_torchvision()
    return importlib.import_module("timm")


def import_pytorchvideo(submodule: str = "") -> ModuleType:
    """Import pytorchvideo or one of its submodules, e.g. `import_pytorchvideo("models.vision_transformers")`.

    Its transforms look for a torchvision module that has been renamed; the new one stands in under the old name.
    """
    import_torchvision()
    old = "torchvision.transforms.functional_tensor"
    if old not in sys.modules:
        sys.modules[old] = importlib.import_module("torchvision.transforms._functional_tensor")
    return importlib.import_module("pytorchvideo" + (f".{submodule}" if submodule else ""))
