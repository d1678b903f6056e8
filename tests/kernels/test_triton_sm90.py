"""Triton kernels compiled for an H100 or H200: nothing is spilled, and memory is read and written by whole vectors."""

import pytest
import torch

from tests.kernels.processes import compiling
from tests.kernels.test_offsets import packed, plan_of
from videoattn.grid import TokenGrid
from videoattn.kernels.layout import empty_gradients, empty_outputs
from videoattn.kernels.triton.launch import supports_short

KERNELS = ["attend_forward", "query_gradients", "key_gradients"]
# 3 of 65536 registers' worth of blocks of 128 threads stay resident
MOST_REGISTERS = 168


def launches_of_offsets(
    prefix: int = 1, dim: int = 64, dtype: torch.dtype = torch.bfloat16, zero_logit: bool = False, **shape
) -> dict:
    """Return each kernel and its launch arguments for a clip of 8x14x14 tokens, by name."""
    from tests.kernels.sm90 import record
    from videoattn.kernels.triton import background as triton_background
    from videoattn.kernels.triton import offsets as triton_offsets
    from videoattn.kernels.triton import offsets_backward as triton_offsets_backward

    grid = TokenGrid(8, 14, 14, prefix)
    plan, kv = plan_of(grid, heads=4, **shape), shape.get("kv", grid)
    tensors = packed(1, grid.tokens, 4, dim, dtype).detach().unbind(3)
    if kv != grid:
        tensors = [tensors[0], *packed(1, kv.tokens, 4, dim, dtype).detach().unbind(3)[1:]]
    (out, logsumexp), gradients = empty_outputs(tensors), empty_gradients([packed(1, grid.tokens, 4, dim, dtype)])
    views = gradients[0].unbind(3) if kv == grid else empty_gradients(tensors)
    about = (
        tensors,
        (plan.offsets, plan.counts, plan.starts, plan.queries, plan.keys),
        plan.lengths,
        prefix,
        zero_logit,
    )
    with record(triton_offsets, triton_offsets_backward, triton_background) as launches:
        triton_offsets.run_forward(*about, out, logsumexp)
        triton_offsets_backward.run_backward(*about, out, logsumexp, out, views)
    return launches


def check(launch, vectors: bool = True) -> None:
    from tests.kernels.sm90 import compile_launch, report

    found = report(compile_launch(*launch))
    assert found["stack"] == 0 and found["registers"] <= MOST_REGISTERS, found
    assert not any(kind.startswith(("LDL", "STL")) for kind in found["kinds"]), found
    if vectors:
        assert any(kind.startswith("LDG.E.128") for kind in found["kinds"]), found
        assert any(kind.startswith("STG.E.128") for kind in found["kinds"]), found


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@compiling
def test_offset_kernels_keep_all_in_registers(kernel):
    check(launches_of_offsets()[kernel])


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "options",
    [
        {"zero_logit": True},
        {"axial": True},
        {"kv": TokenGrid(8, 7, 7, 1)},
        {"prefix": 0},
        {"dim": 32},
        {"dim": 96},
        {"dim": 128},
        {"dtype": torch.float16},
        {"dtype": torch.float32},
    ],
    ids=str,
)
@compiling
def test_offset_kernels_keep_all_in_registers_with_any_options(kernel, options):
    check(launches_of_offsets(**options)[kernel])


@pytest.mark.slow
@compiling
def test_offset_kernels_compile_in_double_precision():
    from tests.kernels.sm90 import compile_launch, report

    launches = launches_of_offsets(dtype=torch.float64, zero_logit=True)
    assert set(launches) == {*KERNELS, "sum_gradients"}
    assert all(report(compile_launch(*launch))["stack"] == 0 for launch in launches.values())


def launches_of_blocks(
    prefix: int = 1, dim: int = 64, dtype: torch.dtype = torch.bfloat16, zero_logit: bool = False, order: str = "thw"
) -> dict:
    """Return the kernels that multiply blocks and their launch arguments for a clip of 8x14x14 tokens."""
    from tests.kernels.sm90 import record
    from videoattn.kernels.triton import background as triton_background
    from videoattn.kernels.triton import blocks as triton_blocks
    from videoattn.kernels.triton import blocks_backward as triton_blocks_backward
    from videoattn.kernels.triton import offsets as triton_offsets
    from videoattn.kernels.triton import offsets_backward as triton_offsets_backward

    grid = TokenGrid(8, 14, 14, prefix)
    plan, x = plan_of(grid, heads=4, order=order, block=16), packed(1, grid.tokens, 4, dim, dtype).detach()
    (out, logsumexp), (gradient,) = empty_outputs([x]), empty_gradients([x])
    tables = (plan.offsets, plan.counts, plan.starts, plan.queries, plan.keys)
    about = (x.unbind(3), tables, prefix, plan.block, zero_logit, out, logsumexp)
    of_prefix = record(triton_offsets, triton_offsets_backward, triton_background)
    with of_prefix, record(triton_blocks, triton_blocks_backward) as launches:
        triton_blocks.run_forward(*about)
        triton_blocks_backward.run_backward(*about, out, gradient.unbind(3))
    return launches


def check_blocks(**options) -> None:
    from tests.kernels.sm90 import compile_launch, report

    launches = launches_of_blocks(**options)
    assert set(launches) == {"attend_blocks", "block_query_gradients", "block_key_gradients"}
    for launch in launches.values():
        check(launch)
        kinds = report(compile_launch(*launch))["kinds"]
        if options.get("dtype") is not torch.float32:  # which tensor cores don't take as it is
            assert any(kind.startswith(("HMMA", "HGMMA")) for kind in kinds), kinds


@pytest.mark.slow
@compiling
def test_kernels_of_blocks_multiply_on_tensor_cores_without_spilling():
    check_blocks()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"zero_logit": True},
        {"order": "hwt"},
        {"prefix": 0},
        {"dim": 32},
        {"dim": 96},
        {"dim": 128},
        {"dtype": torch.float16},
        {"dtype": torch.float32},
        {"dtype": torch.float32, "dim": 128},
    ],
    ids=str,
)
@compiling
def test_kernels_of_blocks_keep_all_in_registers_with_any_options(options):
    check_blocks(**options)


def launches_of_short_sequences(
    length: int = 8,
    dim: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    by_offsets: bool = True,
    zero_logit: bool = False,
) -> dict:
    from tests.kernels.sm90 import record
    from videoattn.kernels.triton import short as triton_short

    plan, x = plan_of(TokenGrid(length, 1, 1), heads=4), packed(1, length, 64, dim, dtype).detach()
    (out, logsumexp), (gradient,) = empty_outputs([x]), empty_gradients([x])
    pattern = (plan.offsets, plan.counts, zero_logit) if by_offsets else ()
    with record(triton_short) as launches:
        triton_short.run_forward(x.unbind(3), out, logsumexp, *pattern)
        triton_short.run_backward(x.unbind(3), logsumexp, out, gradient.unbind(3), *pattern)
    return launches


@pytest.mark.slow
@pytest.mark.parametrize("by_offsets", [False, True])
@compiling
def test_kernels_of_short_sequences_multiply_on_tensor_cores_without_spilling(by_offsets):
    from tests.kernels.sm90 import compile_launch, report

    for launch in launches_of_short_sequences(by_offsets=by_offsets).values():
        check(launch)
        kinds = report(compile_launch(*launch))["kinds"]
        assert any(kind.startswith("HGMMA") for kind in kinds), kinds


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"length": 64},
        {"length": 32, "zero_logit": True},
        {"dtype": torch.float16},
        {"dtype": torch.float32, "length": 32},
        {"length": 32, "dim": 128},
    ],
    ids=str,
)
@compiling
def test_kernels_of_short_sequences_keep_all_in_registers_with_any_options(options):
    assert supports_short(options.get("dim", 64), options.get("dtype", torch.bfloat16), options.get("length", 8))
    for launch in launches_of_short_sequences(**options).values():
        check(launch)
