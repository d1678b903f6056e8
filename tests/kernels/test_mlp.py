"""The MLP in pieces against two linear layers around a GELU."""

import pytest
import torch
import torch.nn.functional as F

from videoattn.kernels import mlp as kernel
from videoattn.layers.mlp import Mlp


def run(function, layers, x, cotangent):
    x = x.detach().requires_grad_()
    parameters = [layers.fc1.weight, layers.fc1.bias, layers.fc2.weight, layers.fc2.bias]
    out = function(x, *parameters)
    return [out, *torch.autograd.grad(out, [x, *parameters], cotangent)]


def plain(x, w_in, b_in, w_out, b_out):
    return F.linear(F.gelu(F.linear(x, w_in, b_in)), w_out, b_out)


@pytest.mark.parametrize("shape", [(700, 6), (2, 300, 6), (1, 1, 6), (2, 0, 6), (4, 64, 6)])
def test_outputs_and_gradients_are_those_of_plain_layers(shape, monkeypatch):
    monkeypatch.setattr(kernel, "CACHE_BYTES", 1)  # as few rows at a time as there are
    torch.manual_seed(0)
    layers = Mlp(6, 24, 5).double()
    x, cotangent = torch.randn(shape, dtype=torch.float64), torch.randn(*shape[:-1], 5, dtype=torch.float64)
    for ours, expected in zip(run(kernel.mlp, layers, x, cotangent), run(plain, layers, x, cotangent), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-11)


def test_frozen_inputs_and_no_gradients_at_all():
    torch.manual_seed(0)
    layers = Mlp(6, 24)
    x = torch.randn(300, 6)
    parameters = [layers.fc1.weight, layers.fc1.bias, layers.fc2.weight, layers.fc2.bias]
    kernel.mlp(x, *parameters).sum().backward()
    assert all(p.grad is not None for p in parameters) and x.grad is None
    with torch.no_grad():
        torch.testing.assert_close(kernel.mlp(x, *parameters), plain(x, *parameters))


def test_the_layer_takes_it_where_it_pays_and_only_there(monkeypatch):
    taken = []
    monkeypatch.setattr(kernel._ChunkedMlp, "apply", lambda *a: taken.append(1) or plain(*a))
    layers = Mlp(8, 32)
    big = torch.zeros(1, kernel.WORTH_BYTES // (32 * 4), 8)
    layers(big)
    assert taken == [1]
    layers(big[:, 1:])  # too small
    with torch.autocast("cpu", torch.bfloat16):
        layers(big)
    torch.jit.trace(layers, big, check_trace=False)
    Mlp(2 * kernel.WORTH_CHANNELS, 512)(torch.zeros(kernel.WORTH_BYTES // (512 * 4), 2 * kernel.WORTH_CHANNELS))
    seen = []
    handle = layers.act.register_forward_hook(lambda *_: seen.append(1))
    layers(big)
    assert seen == [1]
    handle.remove()
    layers.fc2 = torch.nn.Sequential(layers.fc2)
    layers(big)
    assert taken == [1]


def test_training_step_of_a_wide_grid_equals_that_of_plain_layers(monkeypatch):
    torch.manual_seed(0)
    layers, x = Mlp(16, 64, 24), torch.randn(2, 20_000, 16)
    assert kernel.pays(x, layers.fc1.weight)
    gradients = []
    for is_plain in (False, True):
        if is_plain:
            monkeypatch.setattr("videoattn.layers.mlp.pays", lambda *_: False)
        layers.zero_grad()
        layers(x).square().mean().backward()
        gradients.append([p.grad for p in layers.parameters()])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
