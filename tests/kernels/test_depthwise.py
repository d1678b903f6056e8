"""The depthwise convolution of token grids against torch's, forward and backward."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from videoattn.kernels.depthwise import depthwise_conv3d
from videoattn.kernels.pool import can_pool

Size3 = tuple[int, int, int]
KERNELS: list[Size3] = [(3, 3, 3), (1, 3, 3), (3, 1, 5), (1, 9, 9), (1, 1, 1), (5, 3, 1)]
STRIDES: list[Size3] = [(1, 1, 1), (1, 2, 2), (2, 3, 1), (1, 8, 8), (1, 4, 2)]
SIZES: list[Size3] = [(4, 5, 7), (1, 8, 3), (3, 2, 9)]


@pytest.fixture(autouse=True, params=["compiled", "plain"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "plain":
        monkeypatch.setattr("videoattn.kernels.depthwise.can_pool", lambda _: False)
    elif not can_pool(torch.zeros(1)):
        pytest.skip("no C++ compiler on this machine")


def reference(x: Tensor, weight: Tensor, stride: Size3) -> Tensor:
    padding = [k // 2 for k in weight.shape[1:]]
    out: Tensor = F.conv3d(
        x.permute(0, 4, 1, 2, 3), weight.unsqueeze(1), stride=stride, padding=padding, groups=weight.shape[0]
    )
    return out.permute(0, 2, 3, 4, 1)


def draw(size: Size3, kernel: Size3, channels: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(hash((size, kernel)) % 1000)
    x = torch.randn(2, *size, channels, generator=generator, dtype=dtype)
    return x.requires_grad_(), torch.randn(channels, *kernel, generator=generator, dtype=dtype).requires_grad_()


@pytest.mark.parametrize(("kernel", "stride", "size"), list(product(KERNELS, STRIDES, SIZES)))
def test_outputs_and_gradients_are_those_of_torchs_convolution(kernel: Size3, stride: Size3, size: Size3) -> None:
    x, weight = draw(size, kernel)
    expected, out = reference(x, weight, stride), depthwise_conv3d(x, weight, stride)
    assert out.is_contiguous()
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    gradient = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.autograd.grad(y, (x, weight), gradient) for y in (out, expected))
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-11)


def test_derivatives_are_those_of_finite_differences() -> None:
    x, weight = draw((3, 4, 5), (3, 3, 3), channels=2)
    assert torch.autograd.gradcheck(lambda a, b: depthwise_conv3d(a, b, (1, 2, 2)), (x, weight))


@pytest.mark.parametrize("needed", [(True, False), (False, True), (False, False)])
def test_only_gradients_that_are_asked_for_are_formed(needed: tuple[bool, bool]) -> None:
    x, weight = (t.detach().requires_grad_(n) for t, n in zip(draw((3, 4, 5), (3, 3, 3)), needed, strict=True))
    out = depthwise_conv3d(x, weight, (1, 2, 2))
    assert out.requires_grad == any(needed)
    if any(needed):
        out.sum().backward()
        assert [t.grad is not None for t in (x, weight)] == list(needed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype: torch.dtype) -> None:
    x, weight = draw((4, 6, 5), (3, 3, 3), dtype=dtype)
    out = depthwise_conv3d(x, weight, (1, 2, 2))
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), reference(x.double(), weight.double(), (1, 2, 2)), rtol=0.02, atol=0.05)
    out.sum().backward()
    assert x.grad is not None and weight.grad is not None and x.grad.isfinite().all() and weight.grad.isfinite().all()


def test_a_view_of_any_strides_gives_the_same_as_a_copy() -> None:
    packed = torch.randn(2, 3, 4, 5, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    _, weight = draw((3, 4, 5), (3, 3, 3), dtype=torch.float32)
    view = packed[..., 4:8]
    torch.testing.assert_close(
        depthwise_conv3d(view, weight, (1, 1, 1)), depthwise_conv3d(view.contiguous(), weight, (1, 1, 1))
    )


def test_torchs_counter_knows_it() -> None:
    x, weight = draw((4, 6, 5), (3, 3, 3))
    with FlopCounterMode(display=False) as counter:
        out = depthwise_conv3d(x, weight, (1, 2, 2))
    assert counter.get_total_flops() == 2 * out.numel() * 27


def test_shapes_are_known_without_computing() -> None:
    with torch.device("meta"):
        x, weight = torch.empty(2, 4, 6, 5, 4, requires_grad=True), torch.empty(4, 3, 3, 3, requires_grad=True)
    assert depthwise_conv3d(x, weight, (1, 2, 2)).shape == (2, 4, 3, 3, 4)
