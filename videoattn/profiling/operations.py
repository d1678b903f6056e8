"""Costs of single operations of a traced graph: the tables from which `videoattn.profiling.profile` counts.

Counted are multiply-accumulates (MACs: one multiply-add is one; many papers call this FLOPs) of products, convolutions
and Fourier transforms. Norms, softmax, activation functions and other element-wise work are listed apart, in elements.
An operation in none of the tables is unknown, and a total that would leave it out is refused.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.flop_counter import flop_registry

# A formula sees the arguments and outputs of one call: a tensor as its shape (a tuple), a list of tensors as a list of
# shapes, a constant as its value, anything else as None.
MacFormula = Callable[[Sequence[Any], Sequence[Any]], int]
Handle = Callable[[list[Any], list[Any]], Counter[tuple[str, str]]]


def count_product(position: int) -> MacFormula:
    """Count a product that contracts the last dimension of the argument at `position`."""
    return lambda arguments, outputs: math.prod(outputs[0]) * arguments[position][-1]


def count_convolution(arguments: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count every weight of a channel's filter, once per output element (per input element if transposed)."""
    transposed = len(arguments) > 6 and arguments[6] is True
    return math.prod(arguments[0] if transposed else outputs[0]) * math.prod(arguments[1][1:])


def count_attention(arguments: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count q·k and weights·v over every pair of tokens; a mask excludes pairs from the result, not from the work."""
    q, k, v = arguments[:3]
    return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def count_tensordot(arguments: Sequence[Any], outputs: Sequence[Any]) -> int:
    a, b, _, contracted = arguments[:4]
    return math.prod(a) * math.prod(b) // math.prod(b[dim] for dim in contracted)


def count_einsum(arguments: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count any number of operands exactly, contracted in torch's order; a step that sums nothing costs nothing.

    Such a step is an element-wise product.
    """
    equation, operands = arguments[0].replace(" ", ""), arguments[1]
    left, arrow, result = equation.partition("->")
    terms = [_expand_ellipsis(term, shape) for term, shape in zip(left.split(","), operands, strict=True)]
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, operands, strict=True):
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    letters = "".join(terms)
    kept = set(result.replace("...", "")) if arrow else {letter for letter in letters if letters.count(letter) == 1}
    kept |= {letter for letter in letters if letter.isdigit()}
    pending = [set(term) for term in terms]
    path = list(arguments[2]) if len(arguments) > 2 and arguments[2] else []
    macs = 0
    while len(pending) > 1:
        i, j = sorted((path.pop(0), path.pop(0))) if path else (0, 1)
        second, first = pending.pop(j), pending.pop(i)
        needed = kept.union(*pending)
        contracted = (first & second) - needed
        alone = (first ^ second) - needed  # summed over in its operand before the product
        if contracted:
            macs += math.prod(sizes[letter] for letter in (first | second) - alone)
        product = (first | second) & needed
        pending = [*pending, product] if path else [product, *pending]
    return macs


def _expand_ellipsis(term: str, shape: Sequence[int]) -> str:
    """Name the dimensions under `...` by digits, the last of them 0, so that they agree among operands."""
    missing = len(shape) - len(term.replace("...", ""))
    return term.replace("...", "".join(str(i) for i in reversed(range(missing))))


def count_fourier(kind: str, num_dims: int | None) -> MacFormula:
    """Count half of 5·n·log2(n) operations per complex transform of length n, half of that if one side is real.

    `kind` is "complex", "to_real" or "from_real"; `num_dims` how many dimensions are transformed where none are named
    (None: all). The figure is a convention (that of FFTW's benchmarks), not a count of what a library executes.
    """

    def formula(arguments: Sequence[Any], outputs: Sequence[Any]) -> int:
        source, result = arguments[0], outputs[0]
        dims = arguments[2] if arguments[2] is not None else list(range(-(num_dims or len(source)), 0))
        dims = [dims] if isinstance(dims, int) else dims
        real_shape = list(result)
        if kind == "from_real":
            last, halved = dims[-1], result[dims[-1]]
            real_shape[last] = source[last] if source[last] // 2 + 1 == halved else 2 * (halved - 1)
        length = math.prod(real_shape[dim] for dim in dims)
        operations = 5 * math.prod(real_shape) * math.log2(length)
        return round(operations / (2 if kind == "complex" else 4))

    return formula


def count_kernel(operation: Any) -> MacFormula:
    """Return the formula that a kernel of this package has registered for torch's counter, two for a multiply-add."""

    def formula(arguments: Sequence[Any], outputs: Sequence[Any]) -> int:
        out = outputs[0] if len(outputs) == 1 else tuple(outputs)
        return int(flop_registry[operation](*arguments, out_val=out)) // 2

    return formula


def kernel_formulas() -> dict[str, MacFormula]:
    """Return the formulas of all kernels that are imported, by the names of their operations in a traced graph."""
    operations = [operation for operation in flop_registry if str(operation).startswith("videoattn.")]
    return {str(operation).replace(".", "::"): count_kernel(operation) for operation in operations}


# Operations whose MACs are counted, by the name in the traced graph: "namespace::name" for a custom operation,
# "prim::PythonOp.Name" for a custom autograd function. Kernels of this package state theirs (`kernel_formulas`).
MAC_FORMULAS: dict[str, MacFormula] = {
    "aten::linear": count_product(0),
    "aten::matmul": count_product(0),
    "aten::mm": count_product(0),
    "aten::bmm": count_product(0),
    "aten::mv": count_product(0),
    "aten::dot": count_product(0),
    "aten::addmm": count_product(1),
    "aten::addmv": count_product(1),
    "aten::baddbmm": count_product(1),
    "aten::addbmm": lambda arguments, outputs: math.prod(arguments[1]) * arguments[2][-1],
    "aten::tensordot": count_tensordot,
    "aten::einsum": count_einsum,
    "aten::_convolution": count_convolution,
    "aten::_convolution_mode": count_convolution,
    "aten::scaled_dot_product_attention": count_attention,
    "aten::fft_fft": count_fourier("complex", 1),
    "aten::fft_ifft": count_fourier("complex", 1),
    "aten::fft_fft2": count_fourier("complex", 2),
    "aten::fft_ifft2": count_fourier("complex", 2),
    "aten::fft_fftn": count_fourier("complex", None),
    "aten::fft_ifftn": count_fourier("complex", None),
    "aten::fft_rfft": count_fourier("from_real", 1),
    "aten::fft_rfft2": count_fourier("from_real", 2),
    "aten::fft_rfftn": count_fourier("from_real", None),
    "aten::fft_irfft": count_fourier("to_real", 1),
    "aten::fft_irfft2": count_fourier("to_real", 2),
    "aten::fft_irfftn": count_fourier("to_real", None),
}

# Arithmetic listed apart: elements of the largest tensor that the operation reads or writes. In-place forms included.
ELEMENTWISE = frozenset(
    f"aten::{name}"
    for name in """
    layer_norm batch_norm group_norm instance_norm rms_norm norm linalg_vector_norm
    softmax log_softmax logsumexp sigmoid tanh gelu silu relu relu6 elu leaky_relu hardswish hardsigmoid hardtanh mish
    softplus prelu erf exp exp2 log log2 log1p sqrt rsqrt reciprocal square pow sin cos abs neg sign
    add sub rsub mul div true_divide addcmul addcdiv lerp maximum minimum clamp clamp_min clamp_max round floor ceil
    remainder fmod floor_divide
    sum mean var std var_mean std_mean prod cumsum cumprod amax amin max min argmax argmin topk sort argsort
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d
    upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d
    """.split()
)

# Operations without arithmetic: views, copies, index look-ups, comparisons, masks, constants. In-place forms included.
UNCOUNTED = frozenset(
    f"aten::{name}"
    for name in """
    view view_as reshape reshape_as flatten unflatten squeeze unsqueeze transpose swapaxes permute movedim t numpy_T
    expand expand_as select slice narrow index index_select gather take_along_dim diagonal chunk split
    split_with_sizes tensor_split unbind unfold as_strided alias detach contiguous clone copy to type_as
    view_as_real view_as_complex real imag resolve_conj resolve_neg conj
    cat concat stack hstack vstack repeat repeat_interleave tile roll flip pad constant_pad_nd lift_fresh
    zeros ones full empty arange linspace eye zeros_like ones_like full_like empty_like new_zeros new_ones new_full
    new_empty scalar_tensor tensor fill zero tril triu meshgrid one_hot embedding where masked_fill masked_scatter
    scatter index_put index_fill index_copy nonzero dropout feature_dropout alpha_dropout
    eq ne lt le gt ge isnan isinf isfinite logical_and logical_or logical_not logical_xor bitwise_and bitwise_or
    bitwise_not bitwise_xor __and__ __or__ __xor__ any all bucketize
    size numel dim Int Float Bool IntImplicit FloatImplicit ScalarImplicit item
    """.split()
)


def _known(value: Any) -> Any:
    """Return what the trace knows of a value: a tensor's shape, a list's elements, a constant, else None."""
    if value.isCompleteTensor():
        return tuple(value.type().sizes())
    if value.node().kind() == "prim::ListConstruct":
        return [_known(item) for item in value.node().inputs()]
    return value.toIValue()


def _is_complex(value: Any) -> bool:
    return value.isCompleteTensor() and str(value.type().scalarType()).startswith("Complex")


def _shapes(arguments: Sequence[Any]) -> list[tuple[int, ...]]:
    return [argument for argument in arguments if isinstance(argument, tuple) and argument]


def _count_elements(name: str, inputs: list[Any], outputs: list[Any]) -> Counter[tuple[str, str]]:
    shapes = _shapes([_known(value) for value in [*inputs, *outputs]])
    return Counter({("elements", name): max(math.prod(shape) for shape in shapes)} if shapes else {})


def _formula_handle(operation: str, formula: MacFormula) -> Handle:
    name = operation.removeprefix("aten::").removeprefix("prim::PythonOp.").lstrip("_")

    def handle(inputs: list[Any], outputs: list[Any]) -> Counter[tuple[str, str]]:
        arguments, results = [_known(value) for value in inputs], [_known(value) for value in outputs]
        macs = formula(arguments, results)
        if macs == 0 and operation == "aten::einsum":
            return _count_elements(name, inputs, outputs)
        if not operation.startswith("aten::fft") and any(_is_complex(value) for value in outputs):
            macs *= 4  # a complex product is four real ones
        return Counter({("macs", name): macs, ("activations", name): sum(map(math.prod, _shapes(results)))})

    return handle


def build_handles() -> dict[str, Handle]:
    """Return fvcore handles for every known operation, whose counters are keyed (quantity, operation).

    Quantities: macs; activations, the output elements of an operation with MACs; elements of element-wise work; calls
    of ignored operations.
    """

    def element_handle(name: str) -> Handle:
        return lambda inputs, outputs: _count_elements(name, inputs, outputs)

    def call_handle(name: str) -> Handle:
        return lambda inputs, outputs: Counter({("calls", name): 1})

    handles: dict[str, Handle] = {}
    for table, build in ((UNCOUNTED, call_handle), (ELEMENTWISE, element_handle)):
        for operation in table:
            handle = build(operation.removeprefix("aten::"))
            handles[operation] = handles[f"{operation}_"] = handle
    formulas = MAC_FORMULAS | kernel_formulas()
    handles.update({operation: _formula_handle(operation, formula) for operation, formula in formulas.items()})
    return handles
