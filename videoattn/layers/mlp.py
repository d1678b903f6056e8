"""The feed-forward half of a block."""

from torch import Tensor, nn

from videoattn.kernels.mlp import mlp, pays


class Mlp(nn.Module):
    """Two linear layers around a GELU, from `dim` through `hidden_dim` to `dim_out` (`dim` by default)."""

    def __init__(self, dim: int, hidden_dim: int, dim_out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim_out or dim)

    def forward(self, x: Tensor) -> Tensor:
        if pays(x, self.fc1.weight) and self._is_plain():
            return mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        return self.fc2(self.act(self.fc1(x)))

    def _is_plain(self) -> bool:
        """Whether nothing stands in for a layer, and nobody wants to see what passes between them."""
        layers = {self.fc1: nn.Linear, self.act: nn.GELU, self.fc2: nn.Linear}
        hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
        return all(
            type(layer) is kind and not any(getattr(layer, name) for name in hooks) for layer, kind in layers.items()
        )
