"""Cost of a model: multiply-accumulates executed and needed, parameters, activations, by module.

MACs: one multiply-add is one (many papers call this FLOPs; torch's own counter gives twice as many). Counted are
products, convolutions and Fourier transforms; norms and element-wise work are listed apart, in elements. *Executed* is
what runs; *needed* counts in each attention operator only the pairs that attend (`AttentionOperator.macs`). A masked
dense product executes more than it needs. Latency and memory are measured by `videoattn.profiling.measure`, and
`videoattn.profiling.table` prints both.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from videoattn.compat import complete_meta_convolution
from videoattn.operators import AttentionOperator
from videoattn.operators.dense_heads import outer_operators
from videoattn.profiling.measure import Measurement, example_clip, measure
from videoattn.profiling.operations import ELEMENTWISE, MAC_FORMULAS, UNCOUNTED, build_handles

__all__ = [
    "ELEMENTWISE",
    "UNCOUNTED",
    "MAC_FORMULAS",
    "Measurement",
    "ModuleCost",
    "Profile",
    "UnknownOperationError",
    "measure",
    "profile",
]


class UnknownOperationError(ValueError):
    """Raised for operations that are in no table, whose arithmetic a total would leave out."""


@dataclass(frozen=True)
class ModuleCost:
    """One module with all that it contains, for one clip. `name` is dotted, "" for the whole model."""

    name: str
    kind: str
    macs_executed: int
    macs_needed: int
    parameters: int
    activations: int


@dataclass(frozen=True)
class Profile:
    """Costs of one clip (one view); a video has `views` of them.

    `activations` counts elements of the outputs of everything that has MACs; fused attention never forms its weights,
    so they are not among them. `attention_*` is what attention operators execute and need, plus calls of
    scaled_dot_product_attention elsewhere, and products of activations in other libraries' attention modules.
    `elements` is norm and element-wise work by operation, in elements of the largest tensor of each call; `uncounted`
    the calls of operations without arithmetic.
    """

    model: str
    clip_shape: tuple[int, ...]
    views: int
    macs_executed: int
    macs_needed: int
    attention_executed: int
    attention_needed: int
    parameters: int
    activations: int
    macs_by_operation: Mapping[str, int]
    elements: Mapping[str, int]
    uncounted: Mapping[str, int]
    modules: tuple[ModuleCost, ...]

    @property
    def macs_executed_per_video(self) -> int:
        return self.macs_executed * self.views

    @property
    def macs_needed_per_video(self) -> int:
        return self.macs_needed * self.views

    @property
    def attention_share_executed(self) -> float:
        """Return the share of attention products in the executed MACs."""
        return self.attention_executed / max(self.macs_executed, 1)

    @property
    def attention_share_needed(self) -> float:
        """Return the share of attention products in the needed MACs."""
        return self.attention_needed / max(self.macs_needed, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values, the derived figures included."""
        return asdict(self) | {
            "macs_executed_per_video": self.macs_executed_per_video,
            "macs_needed_per_video": self.macs_needed_per_video,
            "attention_share_executed": self.attention_share_executed,
            "attention_share_needed": self.attention_share_needed,
        }


def profile(model: nn.Module, clip: tuple[int, int, int] | Tensor, *, views: int = 1) -> Profile:
    """Count what one clip costs in `model`, evaluation mode; `clip` is its (T, H, W), or an example with batch size 1.

    The model runs once where its parameters are: build it under `torch.device("meta")` to count without computing.
    It is left as it was. Raises UnknownOperationError where an operation is in no table of
    `videoattn.profiling.operations`.
    """
    from fvcore.nn import FlopCountAnalysis

    if views < 1:
        raise ValueError(f"views expects at least 1, got {views}")
    clip = clip if isinstance(clip, Tensor) else example_clip(model, clip)
    if clip.dim() < 2 or clip.shape[0] != 1:
        raise ValueError(f"expected one clip [1, 3, T, H, W], got {tuple(clip.shape)}")
    if hasattr(model, "for_clips") and clip.dim() == 5:  # whose modules are those that run
        model = model.for_clips(tuple(clip.shape[2:]))  # type: ignore[operator]
    complete_meta_convolution()
    num_calls: Counter[str] = Counter()
    with _unchanged(model), torch.no_grad(), _TraceableMetaConvolutions():
        model.eval()
        for name, operator in outer_operators([*model.named_modules()]).items():
            operator.register_forward_pre_hook(_count_calls(num_calls, name), with_kwargs=True)
        analysis = FlopCountAnalysis(model, (clip,)).clear_op_handles().set_op_handle(**build_handles())
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counts = analysis.by_module_and_operator()
    _refuse_unknown({name: analysis.unsupported_ops(name) for name in counts})
    return _collect(model, clip, views, counts, num_calls)


def _plain_attention(model: nn.Module) -> list[str]:
    """Return the names of other libraries' attention modules, outermost ones.

    Their products outside linear layers are those of attention.
    """
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        ours = any(isinstance(part, AttentionOperator) for part in module.modules())
        if type(module).__name__.endswith("Attention") and not inside and not ours:
            found.append(name)
    return found


def _collect(
    model: nn.Module, clip: Tensor, views: int, counts: Mapping[str, Counter[Any]], num_calls: Mapping[str, int]
) -> Profile:
    def total(name: str, quantity: str) -> int:
        return sum(count for (kind, _), count in counts[name].items() if kind == quantity)

    def by_operation(quantity: str) -> dict[str, int]:
        found = {operation: count for (kind, operation), count in counts[""].items() if kind == quantity}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    # named_modules and fvcore both give a shared module its first name
    operators = outer_operators([*model.named_modules()])
    executed = {name: total(name, "macs") for name in operators}
    needed = {name: operator.macs() * num_calls[name] for name, operator in operators.items()}
    fused = ("macs", "scaled_dot_product_attention")
    elsewhere = counts[""][fused] - sum(counts[name][fused] for name in operators)
    elsewhere += sum(counts[name]["macs", kind] for name in _plain_attention(model) for kind in ("matmul", "bmm"))

    modules = []
    for name, module in model.named_modules():
        inside = [operator for operator in operators if not name or operator == name or operator.startswith(f"{name}.")]
        macs = total(name, "macs")
        modules.append(
            ModuleCost(
                name=name,
                kind=type(module).__name__,
                macs_executed=macs,
                macs_needed=macs + sum(needed[operator] - executed[operator] for operator in inside),
                parameters=sum(parameter.numel() for parameter in module.parameters()),
                activations=total(name, "activations"),
            )
        )
    whole = modules[0]
    return Profile(
        model=whole.kind,
        clip_shape=tuple(clip.shape),
        views=views,
        macs_executed=whole.macs_executed,
        macs_needed=whole.macs_needed,
        attention_executed=sum(executed.values()) + elsewhere,
        attention_needed=sum(needed.values()) + elsewhere,
        parameters=whole.parameters,
        activations=whole.activations,
        macs_by_operation=by_operation("macs"),
        elements=by_operation("elements"),
        uncounted=by_operation("calls"),
        modules=tuple(modules),
    )


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Restore training flags and hooks of every module (fvcore leaves its own when a forward pass fails).

    Meanwhile, attention does not use torch's fused fast path, a single operation that hides its products.
    """
    before = [(m, m.training, set(m._forward_hooks), set(m._forward_pre_hooks)) for m in model.modules()]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, training, hooks, pre_hooks in before:
            module.training = training
            for table, kept in ((module._forward_hooks, hooks), (module._forward_pre_hooks, pre_hooks)):
                for key in set(table) - kept:
                    del table[key]
                    module._forward_pre_hooks_with_kwargs.pop(key, None)


def _count_calls(num_calls: Counter[str], name: str) -> Callable[..., None]:
    def hook(module: AttentionOperator, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        q = args[0] if args else kwargs["q"]
        rows, groups_times_heads = int(q.shape[0]), int(q.shape[1])
        num_calls[name] += rows * groups_times_heads // module.site.num_heads

    return hook


def _refuse_unknown(unknown: Mapping[str, Counter[str]]) -> None:
    """Raise UnknownOperationError naming each unknown operation and the innermost modules that called it."""
    if not unknown[""]:
        return
    lines = []
    for operation, count in sorted(unknown[""].items()):
        callers = [name for name, operations in unknown.items() if operation in operations]
        innermost = [name for name in callers if not any(other != name and _contains(name, other) for other in callers)]
        shown = [name or "the model itself" for name in innermost[:4]] + ["..."] * (len(innermost) > 4)
        lines.append(f"{operation} (called {count} times, in {', '.join(shown)})")
    raise UnknownOperationError(
        f"a total would leave out the arithmetic of {'; '.join(lines)}; enter each in MAC_FORMULAS, ELEMENTWISE or "
        "UNCOUNTED of videoattn.profiling.operations"
    )


def _contains(name: str, other: str) -> bool:
    return not name or other == name or other.startswith(f"{name}.")


class _TraceableMetaConvolutions(TorchFunctionMode):
    """Call convolutions of meta tensors in the form that the tracer records.

    The tracer records `_convolution`, below `convolution`, whose meta implementation fails while tracing.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _CONVOLUTIONS:
            return func(*args, **kwargs)
        num_dims, transposed, names = _CONVOLUTIONS[func]
        given: dict[str, Any] = dict(zip(names, args, strict=False)) | kwargs
        if not given["input"].is_meta or isinstance(given.get("padding"), str):
            return func(*args, **kwargs)

        def option(name: str, default: int) -> list[int]:
            value = given.get(name, default)
            return [value] * num_dims if isinstance(value, int) else list(value)

        return torch._convolution(
            given["input"], given["weight"], given.get("bias"), option("stride", 1), option("padding", 0),
            option("dilation", 1), transposed, option("output_padding", 0), given.get("groups", 1),
            False, False, False, False,
        )  # fmt: skip


_PLAIN = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_CONVOLUTIONS: dict[Callable[..., Any], tuple[int, bool, tuple[str, ...]]] = {
    torch.conv1d: (1, False, _PLAIN),
    torch.conv2d: (2, False, _PLAIN),
    torch.conv3d: (3, False, _PLAIN),
    torch.conv_transpose1d: (1, True, _TRANSPOSED),
    torch.conv_transpose2d: (2, True, _TRANSPOSED),
    torch.conv_transpose3d: (3, True, _TRANSPOSED),
}
