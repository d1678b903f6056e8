"""Fibonacci attention from attending pairs alone: the masked form's values and gradients at the pattern's cost."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.operators.test_fibonacci import site
from tests.samples import first_quick, sampled
from videoattn.grid import Axis, TokenGrid
from videoattn.kernels.offsets import is_compiled
from videoattn.operators import AttentionSite, FibonacciAttention
from videoattn.operators.fibonacci import operator as module


def inputs_of(at: AttentionSite, groups: int = 1, dtype=torch.float64, seed: int = 0) -> list[Tensor]:
    """q, k, v and a bias that need gradients; the bias differs by head and is the same for all rows."""
    generator = torch.Generator().manual_seed(seed)
    nq, nk, heads = at.q_grid.tokens, at.kv_grid.tokens, groups * at.num_heads
    shapes = [(2, heads, nq, at.head_dim), *[(2, heads, nk, at.head_dim)] * 2, (heads, nq, nk)]
    return [torch.randn(s, dtype=torch.float64, generator=generator).to(dtype).requires_grad_() for s in shapes]


SEMANTICS = ["exclude", "zero_logit", "mean_logit"]
SPARSE = ["gather", *(["compiled"] if is_compiled() else [])]


OPTIONS = [
    {},
    {"variant": "wythoff", "order": "hwt"},
    {"geometry": "axial", "order": "hwt"},
    {"geometry": "block", "order": "hwt"},
    {"geometry": "axial", "variant": "wythoff", "keep_self": False},
    {"keep_self": False},
]


@pytest.mark.parametrize(
    ("axis", "prefix", "unequal", "options", "semantics", "form"),
    sampled(list(Axis), [0, 1, 2], [False, True], OPTIONS, SEMANTICS, SPARSE, every=5),
)
def test_sparse_forms_equal_the_masked_one_with_all_gradients(axis, prefix, unequal, options, semantics, form):
    grid = TokenGrid(4, 3, 5, prefix).along(axis)
    kv = TokenGrid(max(grid.t // 2, 1), (grid.h + 1) // 2, (grid.w + 1) // 2, grid.prefix) if unequal else grid
    at = site(grid, kv, block=1)
    masked, sparse = (
        FibonacciAttention(at, semantics=semantics, **options, implementation=name) for name in ("masked", form)
    )
    *qkv, bias = inputs_of(at, groups=4 if axis is Axis.TIME else 1)
    biases = ([], [bias], [bias[:1, :1]], [bias[:, :, :1]]) if form == "gather" else ([],)
    for inputs in ([*qkv, *bias] for bias in biases):
        expected, found = masked(*inputs), sparse(*inputs)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        cotangent = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(1))
        for x, y in zip(*(torch.autograd.grad(out, inputs, cotangent) for out in (found, expected)), strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", SPARSE)
@pytest.mark.parametrize("semantics", SEMANTICS)
def test_gradients_equal_numerical_ones(semantics, form):
    at = site(TokenGrid(2, 1, 3, 1), d=2)
    operator = FibonacciAttention(at, semantics=semantics, implementation=form)
    inputs = inputs_of(at) if form == "gather" else inputs_of(at)[:3]
    assert torch.autograd.gradcheck(operator, inputs, fast_mode=True)


@pytest.mark.parametrize("form", ["masked", *SPARSE])
@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("prefix", [0, 2])
def test_mean_logits_are_those_of_the_mean_key_with_all_gradients(prefix, unequal, form):
    """By the definition: n other keys of summed value V weigh exp(q·mean key / sqrt d) each."""
    grid = TokenGrid(4, 3, 5, prefix)
    at = site(grid, TokenGrid(2, 2, 3, prefix) if unequal else grid, block=1)
    operator = FibonacciAttention(at, semantics="mean_logit", implementation=form)
    keep = FibonacciAttention(at, implementation="masked").keep
    q, k, v, _ = inputs_of(at)
    assert not keep.all()
    scale = at.head_dim**-0.5
    attended = torch.where(keep, (q @ k.transpose(-2, -1) * scale).exp(), 0.0)
    mean = (q @ k.mean(dim=2, keepdim=True).transpose(-2, -1) * scale).exp()
    others = (~keep).double()
    expected = (attended @ v + mean * (others @ v)) / (attended.sum(-1, True) + mean * others.sum(-1, True))
    found = operator(q, k, v)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    cotangent = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(1))
    for x, y in zip(*(torch.autograd.grad(out, (q, k, v), cotangent) for out in (found, expected)), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)
    rows = attended + mean * others
    torch.testing.assert_close(operator.weights(q, k), rows / rows.sum(-1, True), rtol=0, atol=1e-12)


def test_zero_logits_of_a_pattern_that_is_full_are_plain_softmax():
    """No key is left outside, so the weight that the others share belongs to nobody."""
    at = site(TokenGrid(2, 1, 1), heads=1)
    operator = FibonacciAttention(at, semantics="zero_logit", implementation="gather")
    q, k, v, bias = inputs_of(at)
    expected = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(operator(q, k, v), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["masked", *SPARSE])
@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_loses_no_more_than_its_rounding(dtype, size, semantics, form):
    """Against float64 on the same rounded inputs; logits of 1e4-sized inputs are far beyond float16."""
    at = site(TokenGrid(2, 3, 4, 1))
    operator = FibonacciAttention(at, semantics=semantics, implementation=form)
    generator = torch.Generator().manual_seed(0)
    q, k, v = ((size / 4 * torch.randn(2, 3, 25, 8, generator=generator)).to(dtype) for _ in range(3))
    expected = operator(*(x.double() for x in (q, k, v)))
    bound = 4 * torch.finfo(dtype).eps * float(v.abs().max())
    assert (operator(q, k, v).double() - expected).abs().max() < bound
    low = torch.float32 if dtype is torch.float16 else dtype
    with torch.autocast("cpu", torch.bfloat16):
        found = operator(*(x.to(low) for x in (q, k, v)))
    assert found.dtype == low and found.isfinite().all()


class Recorder(TorchDispatchMode):
    """Names of the package's own operations that run, and how many elements the largest tensor made has."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "videoattn":
            self.names.add(func._schema.name)
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.largest = max(self.largest, out.untyped_storage().nbytes() // out.element_size())
        return out


@pytest.mark.parametrize("form", SPARSE)
def test_auto_takes_the_kernel_on_a_cpu_else_pairs_from_a_number_of_keys_on(monkeypatch, form):
    monkeypatch.setattr(module, "has_kernel", lambda device_type: device_type == "cuda" or form == "compiled")
    at = site(TokenGrid(2, 3, 4, 1))
    *qkv, _ = inputs_of(at)
    kernel, pairs = {"videoattn::offset_attention"}, {"videoattn::gather_products", "videoattn::gather_sums"}
    for threshold, names in ((25, pairs), (26, set())):
        expected = kernel if form == "compiled" else names
        monkeypatch.setattr(module, "GATHER_FROM_KEYS", threshold)
        with Recorder() as recorder:
            FibonacciAttention(at)(*qkv)
        assert recorder.names == expected


def test_auto_leaves_a_bias_and_values_of_another_width_to_other_forms():
    at = site(TokenGrid(2, 3, 4, 1), d=4)
    *qkv, bias = inputs_of(at)
    with Recorder() as recorder:
        FibonacciAttention(at)(*qkv, bias)
        FibonacciAttention(at)(*qkv[:2], torch.cat([qkv[2]] * 2, dim=-1))
    assert "videoattn::offset_attention" not in recorder.names


def test_the_compiled_form_is_refused_where_it_cannot_be(monkeypatch):
    grid = TokenGrid(2, 3, 4, 1)
    with pytest.raises(ValueError, match="does not support a bias"):
        FibonacciAttention(AttentionSite(grid, grid, 3, 8, 0, has_bias=True), implementation="compiled")
    monkeypatch.setattr(module, "has_kernel", lambda device_type: False)
    with pytest.raises(ValueError, match=r"C\+\+ compiler.* or Triton for a GPU"):
        FibonacciAttention(site(grid), implementation="compiled")


@pytest.mark.parametrize("form", SPARSE)
def test_sparse_forms_make_nothing_of_queries_times_keys(form):
    at = site(TokenGrid(4, 14, 14, 1), d=4)
    *qkv, _ = inputs_of(at, dtype=torch.float32)
    for semantics in ("exclude", "zero_logit"):
        operator = FibonacciAttention(at, semantics=semantics, implementation=form)
        with Recorder() as recorder:
            operator(*qkv).sum().backward()
        assert 0 < recorder.largest < 2 * 3 * 785 * 785 / 20


@pytest.mark.parametrize(("form", "limit"), list(zip(SPARSE, (15e6, 2**16), strict=False)))
def test_tables_of_a_large_joint_site_are_small(form, limit):
    operator = FibonacciAttention(site(TokenGrid(32, 14, 14, 1), heads=12), implementation=form)
    assert operator.keep is None
    assert sum(buffer.nbytes for buffer in operator.buffers()) < limit


@pytest.mark.parametrize("form", SPARSE)
@pytest.mark.parametrize("semantics", first_quick(["exclude", "zero_logit"]))
def test_sparse_forms_are_exported_for_any_batch_size(semantics, form):
    at = site(TokenGrid(2, 3, 5, 1))
    operator = FibonacciAttention(at, semantics=semantics, implementation=form)
    example = [x.detach() for x in inputs_of(at)[:3]]
    program = torch.export.export(operator, tuple(example), dynamic_shapes=({0: torch.export.Dim("batch")},) * 3)
    batch = [torch.cat([x, 2 * x, -x]) for x in example]
    torch.testing.assert_close(program.module()(*batch), operator(*batch))


@pytest.mark.slow
@pytest.mark.parametrize("form", SPARSE)
@pytest.mark.parametrize("semantics", ["exclude", "zero_logit"])
def test_traced_and_compiled_they_have_the_same_output_and_gradients(semantics, form):
    at = site(TokenGrid(2, 3, 5, 1))
    operator = FibonacciAttention(at, semantics=semantics, implementation=form)
    *qkv, _ = inputs_of(at, dtype=torch.float32)
    compiled = torch.compile(operator, fullgraph=True)
    outputs = compiled(*qkv), operator(*qkv)
    torch.testing.assert_close(*outputs)
    for x, y in zip(*(torch.autograd.grad(out.square().sum(), qkv) for out in outputs), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["auto", "masked", "gather"])
@pytest.mark.parametrize("semantics", ["exclude", "zero_logit"])
def test_every_form_gives_on_a_gpu_what_it_gives_on_a_cpu(semantics, form):
    at = site(TokenGrid(4, 3, 9, 1))
    operator = FibonacciAttention(at, semantics=semantics, implementation=form)
    *qkv, _ = inputs_of(at)
    there = [x.detach().cuda().requires_grad_() for x in qkv]
    outputs = operator(*qkv), operator.cuda()(*there)
    torch.testing.assert_close(outputs[0], outputs[1].cpu(), rtol=0, atol=1e-12)
    for x, y in zip(
        torch.autograd.grad(outputs[0].square().sum(), qkv),
        torch.autograd.grad(outputs[1].square().sum(), there),
        strict=True,
    ):
        torch.testing.assert_close(x, y.cpu(), rtol=0, atol=1e-12)
