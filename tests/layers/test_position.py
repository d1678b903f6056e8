import pytest
import torch

from videoattn.grid import TokenGrid
from videoattn.layers.position import resize_space, resize_time, sincos_embeddings


def test_resizing_to_the_same_size_changes_nothing():
    space, time = torch.randn(1, 1 + 3 * 5, 8), torch.randn(1, 4, 8)
    assert torch.equal(resize_space(space, (3, 5), (3, 5)), space)
    assert torch.equal(resize_time(time, 4), time)


def test_space_is_resized_in_two_dimensions():
    """A channel that varies along rows only must do so afterwards, and one along columns likewise; the prefix stays."""
    rows, columns = torch.arange(3.0)[:, None].expand(3, 5), torch.arange(5.0)[None].expand(3, 5)
    patches = torch.stack([rows, columns], dim=-1).reshape(1, 15, 2)
    resized = resize_space(torch.cat([torch.full((1, 1, 2), 9.0), patches], 1), (3, 5), (6, 10))
    assert resized.shape == (1, 61, 2) and (resized[:, 0] == 9).all()
    grid = resized[0, 1:].reshape(6, 10, 2)
    assert (grid[..., 0] - grid[:, :1, 0]).abs().max() < 1e-5 and (grid[..., 1] - grid[:1, :, 1]).abs().max() < 1e-5
    assert (grid[1:, 0, 0] > grid[:-1, 0, 0]).all() and (grid[0, 1:, 1] > grid[0, :-1, 1]).all()


def test_time_is_resized_linearly():
    time = torch.tensor([0.0, 1.0, 2.0, 3.0]).reshape(1, 4, 1)
    expected = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0])
    torch.testing.assert_close(resize_time(time, 8).flatten(), expected)


def test_an_embedding_of_another_grid_is_refused_with_its_shape():
    with pytest.raises(ValueError, match=r"\(1, 16, 8\) does not hold 1 \+ 4x4 positions"):
        resize_space(torch.zeros(1, 16, 8), (4, 4), (5, 5))


def test_sines_and_cosines_tell_every_place_and_time_apart():
    space, time = sincos_embeddings(TokenGrid(4, 3, 5, 1), 48)
    assert space.shape == (1, 15, 48) and time.shape == (1, 4, 48)
    for embedding in (space[0], time[0]):
        distance = torch.cdist(embedding, embedding) + 99 * torch.eye(len(embedding))
        assert distance.min() > 1
    assert (space[0].T.abs().sum(1) * time[0].T.abs().sum(1) == 0).all(), "place and time have channels of their own"
