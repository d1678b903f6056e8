"""Number formats of a forward pass: float32, or autocast to a half-precision type."""

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
