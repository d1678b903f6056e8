"""The feed-forward half of a block."""

from torch import Tensor, nn


class Mlp(nn.Module):
    """Two linear layers around a GELU, from `dim` through `hidden_dim` to `dim_out` (`dim` by default)."""

    def __init__(self, dim: int, hidden_dim: int, dim_out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim_out or dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))
