"""Derivatives and batches of operations beyond what their kernels compute: an output, and its first derivative.

Everything else that torch asks for takes the plain form of an operation, written in torch's own: forward-mode
derivatives, the transforms of `torch.func`, and derivatives of a gradient. Functions that call an operation ask
`is_transformed` first.
"""

import functools
import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

F = typing.TypeVar("F", bound=Callable[..., Any])

_BATCHING = torch.library.Library("videoattn", "IMPL")  # registrations live as long as it


def constant_when_compiled(function: F) -> F:
    """Mark a function whose result the compiler takes for a constant, as torch.compiler.assume_constant_result does.

    Torch's own decorator imports the compiler, which takes as long as torch itself, in every process that starts.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_compiled
def is_transformed() -> bool:
    """Return whether a transform of torch.func, or forward-mode differentiation, is in progress."""
    # torch has no public name for either
    return forward_ad._current_level >= 0 or bool(torch._C._are_functorch_transforms_active())


def without_compiling(function: F) -> F:
    """Return a function that torch.compile runs as it is; torch.compiler.disable would import the compiler."""
    return torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Autocast would round logits and sums to 16 bits, where they overflow; not every device (meta) has it."""
    return torch.autocast(device.type, enabled=False) if _has_autocast(device.type) else nullcontext()


@constant_when_compiled  # the compiler of torch 2.6 doesn't trace the question
def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def refuses_tangents(name: str, remedy: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a kernel, or its form for fake tensors, to raise NotImplementedError in forward-mode differentiation.

    Torch hands a kernel the values alone and takes the tangents of its outputs for zero.
    """

    def decorate(kernel: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(kernel)
        def run(*arguments: Any, **options: Any) -> Any:
            if forward_ad._current_level >= 0:
                raise NotImplementedError(
                    f"{name} has no derivative in forward mode (torch.func.jvp, torch.autograd.forward_ad); {remedy}"
                )
            return kernel(*arguments, **options)

        return run

    return decorate


# Types that torch 2.6 reads in the schema of an operation only under their older names.
_OLDER_NAMES: dict[Any, Any] = {Sequence: typing.Sequence, list: typing.List}  # noqa: UP006


def _readable_signature(kernel: Callable[..., Any]) -> inspect.Signature:
    """Return a kernel's signature with the names of types that every supported torch reads in a schema."""

    def rename(annotation: Any) -> Any:
        name = _OLDER_NAMES.get(typing.get_origin(annotation))
        return annotation if name is None else name[typing.get_args(annotation)]

    signature = inspect.signature(kernel)
    parameters = [one.replace(annotation=rename(one.annotation)) for one in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=rename(signature.return_annotation))


def kernel_operation(name: str, remedy: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a kernel to be a `torch.library.custom_op` that can be batched and refuses tangents.

    `torch.func.vmap` runs it once for each element of the batch. Autograd's older way to batch gradients is refused
    where torch has no loop of its own, as it has for operations without lists of tensors.
    """

    def decorate(kernel: Callable[..., Any]) -> Any:
        guarded: Any = refuses_tangents(name, remedy)(kernel)
        guarded.__signature__ = _readable_signature(kernel)
        operation = torch.library.custom_op(name, guarded, mutates_args=(), **options)

        def batch(info: Any, in_dims: Any, *arguments: Any) -> tuple[Any, Any]:
            values, spec = pytree.tree_flatten(arguments)
            dims = pytree.tree_leaves(in_dims, is_leaf=lambda x: x is None)
            results = []
            for i in range(info.batch_size):
                own = [x if dim is None else x.select(dim, i) for x, dim in zip(values, dims, strict=True)]
                results.append(operation(*pytree.tree_unflatten(own, spec)))
            stacked = pytree.tree_map(lambda *parts: torch.stack(parts), *results)
            return stacked, pytree.tree_map(lambda _: 0, stacked)

        def refuse_batch(*arguments: Any, **options: Any) -> None:
            raise NotImplementedError(
                f"{name} can't be batched by is_grads_batched or vectorize of torch.autograd; use torch.func.vmap or "
                f"torch.func.jacrev instead, or {remedy}"
            )

        operation.register_vmap(batch)
        if "Tensor[]" in str(operation._opoverload._schema):
            _BATCHING.impl(name.split("::")[1], refuse_batch, "Batched")
        return operation

    return decorate


def register_derivative(operation: Any, plain: Callable[..., Sequence[Tensor]]) -> None:
    """Let torch differentiate `operation`, which returns a list, by differentiating `plain`, which returns the same."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
        values, ctx.spec = pytree.tree_flatten(inputs)
        ctx.is_tensor = [isinstance(x, Tensor) for x in values]
        ctx.others = [None if isinstance(x, Tensor) else x for x in values]
        ctx.save_for_backward(*(x for x in values if isinstance(x, Tensor)))

    def backward(ctx: Any, gradients: Sequence[Tensor]) -> tuple[Any, ...]:
        is_repeated = torch.is_grad_enabled()
        with torch.enable_grad(), without_autocast(gradients[0].device):
            tensors = iter(_apart(ctx.saved_tensors))
            values = [next(tensors) if is_tensor else x for is_tensor, x in zip(ctx.is_tensor, ctx.others, strict=True)]
            inputs = pytree.tree_unflatten(values, ctx.spec)
            wanted = [x for x in values if isinstance(x, Tensor) and x.requires_grad]
            found = torch.autograd.grad(
                list(plain(*inputs)), wanted, list(gradients), create_graph=is_repeated, allow_unused=True
            )
        by_tensor = {id(x): gradient for x, gradient in zip(wanted, found, strict=True)}
        return tuple(
            [by_tensor.get(id(x)) for x in each] if _has_tensors(each) else by_tensor.get(id(each)) for each in inputs
        )

    operation.register_autograd(backward, setup_context=save)


def gradients_of(
    function: Callable[..., Tensor | Sequence[Tensor]], inputs: Sequence[Tensor], gradients: Tensor | Sequence[Tensor]
) -> list[Tensor]:
    """Return the gradients of `function(*inputs)`, given those by its outputs, such that they have derivatives."""
    with torch.enable_grad():
        inputs = _apart([x if x.requires_grad else x.detach().requires_grad_() for x in inputs])
        outputs = function(*inputs)
        return list(torch.autograd.grad(outputs, inputs, gradients, create_graph=True, materialize_grads=True))


def _apart(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Give each tensor a node of its own in autograd's graph, as the same one may stand in two places."""
    return [x.view_as(x) if x.requires_grad else x for x in tensors]


def _has_tensors(argument: Any) -> bool:
    return isinstance(argument, list | tuple) and len(argument) > 0 and isinstance(argument[0], Tensor)
