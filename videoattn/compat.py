"""Imports of torchvision, timm and pytorchvideo, and fixes for their builds and for older releases of torch.

A torchvision built for CUDA beside a CPU build of torch cannot load its compiled operators; its Python part then fails
on registering them. Declaring the operators' schemas beforehand is enough for models and transforms to work.
"""

import importlib
import sys
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

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


@lru_cache(maxsize=1)
def complete_meta_convolution() -> None:
    """Give `torch._convolution` its form for meta tensors where torch has none (2.6), as later releases do."""
    operation = torch.ops.aten._convolution.default
    if operation.has_kernel_for_dispatch_key(torch._C.DispatchKey.Meta):
        return

    def convolve(*arguments: Any) -> Tensor:
        return torch.ops.aten.convolution(*arguments[:9])  # the rest chooses among kernels of cuDNN

    library = torch.library.Library("aten", "IMPL", "Meta")
    library.impl(operation, convolve)
    _LIBRARIES.append(library)
