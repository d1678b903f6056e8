"""The block of a transformer, the check of its clip, and running blocks one after another."""

from collections.abc import Collection, Iterable, Mapping

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videoattn.grid import Axis, TokenGrid, unfold
from videoattn.layers.attention import BuildOperator, QkvBias
from videoattn.layers.drop_path import DropPath, DropUnit
from videoattn.layers.mlp import Mlp
from videoattn.layers.skip import SkipSettings, build_mixer
from videoattn.layers.views import GridModule


class TransformerBlock(GridModule):
    """One pre-norm attention slot per axis, then an MLP; the temporal update passes through one more projection."""

    def __init__(
        self, dim: int, num_heads: int, mlp_dim: int, grid: TokenGrid, index: int,
        operators: Mapping[Axis, BuildOperator], skip: Mapping[Axis, SkipSettings],
        drop_path_rate: float, drop_path_unit: DropUnit, bias: QkvBias = "all", rotate: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.grid = grid
        self.axes = tuple(operators)
        self.mixers = nn.ModuleDict(
            {
                axis.value: build_mixer(dim, num_heads, grid, axis, index, operator, skip, bias, rotate)
                for axis, operator in operators.items()
            }
        )
        self.drop_paths = nn.ModuleDict(
            {axis.value: DropPath(drop_path_rate, axis, drop_path_unit) for axis in self.axes}
        )
        if Axis.TIME in self.axes:
            self.temporal_fc = nn.Linear(dim, dim)
        self.norm_mlp = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, mlp_dim)
        self.drop_path_mlp = DropPath(drop_path_rate)

    def place_on(self, grid: TokenGrid) -> None:
        self.grid = grid

    def forward(self, x: Tensor, carried: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Map the stream [B, N, C] and what the slots of the block before carried, by axis, to those of this block."""
        carried_next = {}
        for axis in self.axes:
            name = axis.value
            update, following = self.mixers[name](x, carried.get(name))
            if following is not None:
                carried_next[name] = following
            update = self.drop_paths[name](update)
            if axis is Axis.TIME:
                update = self.temporal_fc(update)
            x = x + unfold(update, self.grid, axis)
        return x + self.drop_path_mlp(self.mlp(self.norm_mlp(x))), carried_next


def check_clip(clip: Tensor, clip_size: tuple[int, int, int]) -> None:
    """Raise ValueError unless `clip` is [B, 3, T, H, W] of that (T, H, W)."""
    if tuple(clip.shape[1:]) != (3, *clip_size):
        raise ValueError(f"the model expects clips [B, 3, T, H, W] with T, H, W = {clip_size}, got {tuple(clip.shape)}")


def run_blocks(
    blocks: Iterable[nn.Module], x: Tensor, act_checkpoint: bool, levels: Collection[int] = ()
) -> list[Tensor]:  # fmt: skip
    """Return the stream after each block whose index is in `levels`; by default after the last one.

    Blocks also return what their attention slots carry to the next block. With `act_checkpoint`, a block's activations
    are computed again in the backward pass instead of kept.
    """
    carried: dict[str, Tensor] = {}
    outputs = []
    for index, block in enumerate(blocks):
        if act_checkpoint:
            x, carried = checkpoint(block, x, carried, use_reentrant=False)
        else:
            x, carried = block(x, carried)
        if index in levels:
            outputs.append(x)
    return outputs or [x]
