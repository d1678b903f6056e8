import pytest
import torch

from videoattn.grid import Axis, TokenGrid, fold, merge_calls, split_calls, unfold

GRID = TokenGrid(2, 3, 5, prefix=2)


@pytest.mark.parametrize("axis", Axis)
def test_unfold_undoes_fold_on_patch_tokens(axis):
    x = torch.randn(4, GRID.tokens, 6)
    y = unfold(fold(x, GRID, axis), GRID, axis)
    assert torch.equal(y[:, GRID.prefix :], x[:, GRID.prefix :])


@pytest.mark.parametrize(("axis", "kept"), [(Axis.SPACE, 1.0), (Axis.JOINT, 1.0), (Axis.TIME, 0.0)])
def test_prefix_tokens_come_back_unless_time_left_them_out(axis, kept):
    x = torch.randn(4, GRID.tokens, 6, dtype=torch.float64)
    y = unfold(fold(x, GRID, axis), GRID, axis)
    torch.testing.assert_close(y[:, : GRID.prefix], kept * x[:, : GRID.prefix])


def test_space_averages_prefix_tokens_over_frames():
    folded = torch.zeros(1, GRID.t, GRID.prefix + 15, 1)
    folded[0, 0, 0], folded[0, 1, 0] = 2.0, 4.0
    assert unfold(folded, GRID, Axis.SPACE)[0, 0, 0] == 3.0


def test_folding_puts_every_token_where_its_coordinates_say():
    t, h, w = torch.meshgrid(torch.arange(2), torch.arange(3), torch.arange(5), indexing="ij")
    patches = torch.stack([t, h, w], -1).reshape(1, -1, 3)
    stream = torch.cat([torch.full((1, 2, 3), -1), patches], dim=1)
    space = fold(stream, GRID, Axis.SPACE)
    assert space.shape == (1, 2, 17, 3) and (space[0, 1, :2] == -1).all()
    assert space[0, 1, 2 + 2 * 5 + 4].tolist() == [1, 2, 4]
    time = fold(stream, GRID, Axis.TIME)
    assert time.shape == (1, 2, 15, 3)
    assert time[0, :, 2 * 5 + 4].tolist() == [[0, 2, 4], [1, 2, 4]]


@pytest.mark.parametrize("axis", Axis)
def test_calls_hold_the_tokens_that_attend_to_each_other(axis):
    heads, d = 3, 4
    stream = torch.randn(2, GRID.tokens, heads, d)
    folded = fold(stream, GRID, axis)
    calls = split_calls(folded, axis)
    n = GRID.along(axis).tokens
    groups = GRID.h * GRID.w if axis is Axis.TIME else 1
    assert calls.shape[1:] == (groups * heads, n, d)
    assert calls.shape[0] * groups == 2 * GRID.num_calls(axis)
    if axis is Axis.TIME:  # the call of location (2, 4) of clip 1, head 2
        expected = stream[1, 2:].unflatten(0, (2, 3, 5))[:, 2, 4, 2]
        assert torch.equal(calls[1, (2 * 5 + 4) * heads + 2], expected)
    assert torch.equal(merge_calls(calls, 2, heads, axis), folded.flatten(3))


@pytest.mark.parametrize("axis", Axis)
@pytest.mark.parametrize("prefix", [0, 1])
def test_splitting_calls_copies_nothing(axis, prefix):
    grid = TokenGrid(2, 3, 5, prefix)
    folded = fold(torch.randn(2, grid.tokens, 3 * 4), grid, axis).unflatten(3, (3, 4))
    assert split_calls(folded, axis).untyped_storage().data_ptr() == folded.untyped_storage().data_ptr()
    if axis is not Axis.SPACE or prefix == 0:
        stream = torch.randn(2, grid.tokens, 12)
        assert fold(stream, grid, axis).untyped_storage().data_ptr() == stream.untyped_storage().data_ptr()


def test_pooling_rounds_up_as_a_padded_convolution_does():
    grid = TokenGrid(5, 7, 8, prefix=1)
    pooled = grid.pooled((3, 3, 3), (1, 2, 2))
    conv = torch.nn.Conv3d(1, 1, 3, (1, 2, 2), 1)(torch.zeros(1, 1, 5, 7, 8))
    assert (pooled.t, pooled.h, pooled.w) == tuple(conv.shape[2:]) and pooled.prefix == 1


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 1, -1)])
def test_empty_grids_are_refused_with_their_values(sizes):
    with pytest.raises(ValueError, match="t, h, w >= 1"):
        TokenGrid(*sizes)
