"""The mixers that fill the attention slots of an MViT's blocks."""

from collections.abc import Mapping

from videoattn.grid import Axis
from videoattn.layers.attention import BuildOperator, TokenMixer
from videoattn.layers.pooled_attention import UNPOOLED, PooledAttention, ReusedPooledWeights
from videoattn.layers.skip import Leff, SkipAttention, SkipSettings
from videoattn.models.mvit.plan import MViTBlockPlan


def build_pooled_mixer(
    plan: MViTBlockPlan, axis: Axis, operator: BuildOperator, skip: Mapping[Axis, SkipSettings],
    before: MViTBlockPlan | None,
) -> TokenMixer:  # fmt: skip
    """Return the mixer of a block's slot along `axis`: attention with `operator`, or what `skip` puts there.

    Attention along time works on the block's width and grid before pooling; `before` is the plan of the block before.
    Raises ValueError for a skipped block whose slot has another grid or width than the one before: chains start anew
    in each stage.
    """
    along_time, block = axis is Axis.TIME, plan.block
    settings = skip.get(axis, SkipSettings(()))
    carry = settings.carry_of(block)
    dim_out = plan.dim if along_time else plan.attention_dim
    num_heads = max(1, plan.dim // plan.head_dim) if along_time else plan.num_heads
    letters = {Axis.TIME: "t", Axis.SPACE: "hw", Axis.JOINT: "thw"}[axis]
    relative = {letter: length for letter, length in plan.table_lengths.items() if letter in letters}
    pooling = (UNPOOLED, UNPOOLED) if along_time else (plan.pool_q, plan.pool_kv)
    if block not in settings.blocks:
        return PooledAttention(
            plan.dim, dim_out, num_heads, plan.grid, axis, block, operator, *pooling, relative,
            plan.residual_pooling and not along_time, plan.qkv_bias, carry,
        )  # fmt: skip
    grid = plan.grid if along_time else plan.grid_out
    assert before is not None  # SkipSettings refuses block 0
    slot_before = (before.grid, before.dim) if along_time else (before.grid_out, before.attention_dim)
    if slot_before != (grid, dim_out):
        raise ValueError(
            f"block {block} can't skip attention along {axis.name}: its {dim_out} channels on {grid} do not follow "
            f"from the {slot_before[1]} channels on {slot_before[0]} of block {block - 1}"
        )
    if settings.phi == "weights":
        if not along_time and before.pool_kv.apply_to(before.grid) != plan.pool_kv.apply_to(plan.grid):
            raise ValueError(
                f"block {block} can't reuse the attention weights of block {block - 1} along {axis.name}: its keys lie "
                f"on {plan.pool_kv.apply_to(plan.grid)}, theirs on {before.pool_kv.apply_to(before.grid)}"
            )
        return ReusedPooledWeights(dim_out, num_heads, plan.grid, axis, pooling[1], carry)
    phi = Leff(dim_out, axis, settings.expansion) if settings.phi == "leff" else None
    return SkipAttention(grid, axis, phi, carry)
