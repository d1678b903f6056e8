"""Cache of values computed from a module's parameters alone, kept between the calls of an evaluation."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from videoattn.kernels.transforms import is_transformed

Signature = tuple[object, ...]


class Derived:
    """Remembers one tensor that is a function of one parameter, for as long as the parameter has the same values.

    Only without gradients, and never in what is compiled, exported, traced or transformed by torch.func: there it is
    computed in place. On a CPU a copy of the parameter is compared by value, so that nothing can change it unseen.
    Elsewhere comparing would wait for the device, and the address and torch's count of in-place changes stand for the
    values: writing through `.data` escapes them, and `clear` is for that. At most `max_bytes` are kept; a larger tensor
    is computed in every call.

    Copies of a module, its pickles and its checkpoints start without what is remembered.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.clear()

    def clear(self) -> None:
        self._kept: tuple[Signature, Tensor, Tensor] | None = None

    def __call__(self, parameter: Tensor, signature: Signature, compute: Callable[[], Tensor]) -> Tensor:
        """Return `compute()`, which depends on `parameter` and on what `signature` says, and nothing else."""
        if not may_keep(parameter):
            return compute()
        signature = (*signature, parameter.dtype, parameter.device, parameter.shape)
        if parameter.device.type != "cpu":
            signature = (*signature, parameter.data_ptr(), parameter._version)
        kept = self._kept
        if kept is not None and kept[0] == signature and (kept[1] is parameter or torch.equal(kept[1], parameter)):
            return kept[2]
        result = compute()
        if result.untyped_storage().nbytes() <= self.max_bytes:
            values = parameter.detach().clone() if parameter.device.type == "cpu" else parameter
            self._kept = (signature, values, result)
        else:
            self._kept = None
        return result

    def __deepcopy__(self, memo: object) -> "Derived":
        return Derived(self.max_bytes)

    def __reduce__(self) -> tuple[type["Derived"], tuple[int]]:
        return Derived, (self.max_bytes,)


def may_keep(parameter: Tensor) -> bool:
    """Return whether to keep a value: not with gradients, while tracing, or for a substitute of a parameter."""
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or is_transformed()
        or torch._C._get_tracing_state() is not None
        or not isinstance(parameter, nn.Parameter)
        or parameter.is_inference()
        or parameter.is_meta
    )
