"""Work around the blocks of a transformer: checking the clip, and running the blocks one after another."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def check_clip(clip: Tensor, clip_size: tuple[int, int, int]) -> None:
    """Raise ValueError unless `clip` is [B, 3, T, H, W] of that (T, H, W)."""
    if tuple(clip.shape[1:]) != (3, *clip_size):
        raise ValueError(f"the model expects clips [B, 3, T, H, W] with T, H, W = {clip_size}, got {tuple(clip.shape)}")


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, act_checkpoint: bool) -> Tensor:
    """Return the stream after all blocks; each also returns what its attention slots carry to the next block.

    With `act_checkpoint`, a block's activations are computed again in the backward pass instead of kept.
    """
    carried: dict[str, Tensor] = {}
    for block in blocks:
        if act_checkpoint:
            x, carried = checkpoint(block, x, carried, use_reentrant=False)
        else:
            x, carried = block(x, carried)
    return x
