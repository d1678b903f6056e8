"""TimeSformer (Bertasius et al., ICML 2021): a ViT whose blocks attend along time, along space, or jointly."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from videoattn.grid import Axis, TokenGrid
from videoattn.layers.attention import BuildOperator
from videoattn.layers.blocks import TransformerBlock, check_clip, run_blocks
from videoattn.layers.drop_path import DropUnit
from videoattn.layers.patch_embed import PatchEmbed
from videoattn.layers.pooler import AttentivePooler
from videoattn.layers.position import sincos_embeddings
from videoattn.layers.skip import SkipSettings
from videoattn.operators import DenseAttention

AttentionType = Literal["divided_space_time", "joint_space_time", "space_only"]
Init = Literal["published", "from_scratch"]

AXES: dict[str, tuple[Axis, ...]] = {
    "divided_space_time": (Axis.TIME, Axis.SPACE),
    "joint_space_time": (Axis.JOINT,),
    "space_only": (Axis.SPACE,),
}


class TimeSformer(nn.Module):
    """A video transformer for clips [B, 3, T, H, W] of exactly `clip_size`; returns logits [B, num_classes].

    `operators` gives the attention operator along each axis, as callables that accept an `AttentionSite` (a class or a
    `functools.partial` of one); axes left out are dense. `skip` names the blocks that skip attention along an axis
    (SkipAt). `space_only` sees frames on their own and averages them. With `probe_depth`, the head classifies what an
    attentive probe of that many blocks and `probe_heads` heads pools from all tokens, instead of the class token.
    Raises ValueError where patches do not divide the clip, or an operator cannot be built on its grid.

    Source: arXiv 2102.05095 and the released code. `drop_path_unit="call"` drops sequences, as that code does.
    """

    def __init__(
        self,
        clip_size: tuple[int, int, int] = (8, 224, 224),
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        num_classes: int = 400,
        attention_type: AttentionType = "divided_space_time",
        operators: Mapping[Axis, BuildOperator] | None = None,
        skip: Mapping[Axis, SkipSettings] | None = None,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.1,
        drop_path_unit: DropUnit = "call",
        act_checkpoint: bool = False,
        init: Init = "published",
        probe_depth: int | None = None,
        probe_heads: int = 16,
    ) -> None:
        super().__init__()
        if init not in get_args(Init):
            raise ValueError(f"init expects one of {', '.join(get_args(Init))}, got {init!r}")
        if attention_type not in AXES:
            raise ValueError(f"attention_type expects one of {', '.join(AXES)}, got {attention_type!r}")
        self.grid = TokenGrid.of_clip(clip_size, (1, patch_size, patch_size), prefix=1)
        self.clip_size = (clip_size[0], clip_size[1], clip_size[2])
        self.patch_size = patch_size
        self.num_classes = num_classes
        self.attention_type = attention_type
        self.act_checkpoint = act_checkpoint
        self.frames_apart = attention_type == "space_only"
        block_grid = self.grid.along(Axis.SPACE) if self.frames_apart else self.grid
        chosen = {axis: (operators or {}).get(axis, DenseAttention) for axis in AXES[attention_type]}

        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid.h * self.grid.w, embed_dim))
        self.time_embed = None if self.frames_apart else nn.Parameter(torch.zeros(1, self.grid.t, embed_dim))
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        mlp_dim = int(embed_dim * mlp_ratio)
        self.blocks = nn.ModuleList(
            TransformerBlock(embed_dim, num_heads, mlp_dim, block_grid, i, chosen, skip or {}, rates[i], drop_path_unit)
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.pooler = None if probe_depth is None else AttentivePooler(embed_dim, probe_heads, probe_depth)
        self.head = nn.Linear(embed_dim, num_classes)
        self.reset_parameters(init)

    def reset_parameters(self, init: Init = "published") -> None:
        """Initialise all parameters.

        "published": normal weights of deviation 0.02; time_embed and every block's temporal_fc are zero-initialised,
        so that time has no effect at the start; for width 768 and an ImageNet ViT to start from. "from_scratch": Xavier
        weights, which keep a signal's size at any width, sines and cosines in both embeddings, and no zeros in
        temporal_fc; for small models, which otherwise learn slowly what depends on the order of frames.
        """
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.pooler is not None:
            nn.init.trunc_normal_(self.pooler.query, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                if init == "from_scratch":
                    nn.init.xavier_uniform_(module.weight)
                else:
                    nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():  # after the loop above, which would fill them again
            if isinstance(module, TransformerBlock) and Axis.TIME in module.axes and init == "published":
                nn.init.zeros_(module.temporal_fc.weight)
        if init == "from_scratch":
            space, time = sincos_embeddings(self.grid, self.pos_embed.shape[-1])
            with torch.no_grad():
                self.pos_embed[:, 1:] = space
                if self.time_embed is not None:
                    self.time_embed.copy_(time)

    def embed(self, clip: Tensor) -> Tensor:
        """Map a clip [B, 3, T, H, W] to tokens [B, 1 + T·h·w, C], or [B·T, 1 + h·w, C] with separate frames."""
        patches = self.patch_embed(clip) + self.pos_embed[:, None, 1:]
        if self.time_embed is not None:
            patches = patches + self.time_embed[:, :, None]
        patches = patches.flatten(0, 1) if self.frames_apart else patches.flatten(1, 2)
        cls_token = self.cls_token + self.pos_embed[:, :1]
        return torch.cat([cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)

    def _run(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class token [B, 1, C], with separate frames the mean of theirs, and the patches [B, T·h·w, C]."""
        check_clip(clip, self.clip_size)
        x = run_blocks(self.blocks, self.embed(clip), self.act_checkpoint and self.training)[-1]
        cls_token, patches = x[:, :1], x[:, 1:]
        if self.frames_apart:
            cls_token, patches = (part.unflatten(0, (clip.shape[0], -1)) for part in (cls_token, patches))
            cls_token, patches = cls_token.mean(dim=1), patches.flatten(1, 2)
        return cls_token, patches

    def forward_tokens(self, clip: Tensor) -> Tensor:
        """Return the normalised tokens [B, 1 + T·h·w, C]: the class token, then the patches, frame after frame."""
        return self.norm(torch.cat(self._run(clip), dim=1))

    def forward_features(self, clip: Tensor) -> Tensor:
        """Return the features [B, C] that the head classifies: the normalised class token, or what the probe pools."""
        if self.pooler is not None:
            return self.pooler(self.forward_tokens(clip))
        return self.norm(self._run(clip)[0][:, 0])

    def forward(self, clip: Tensor) -> Tensor:
        return self.head(self.forward_features(clip))


# The published sizes, and two smaller ones with the widths of DeiT-Ti and DeiT-S.
TIMESFORMER_SIZES: dict[str, dict[str, Any]] = {
    "timesformer_tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "timesformer_small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "timesformer_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "timesformer_base_hr": {"embed_dim": 768, "depth": 12, "num_heads": 12, "clip_size": (16, 448, 448)},
    "timesformer_base_l": {"embed_dim": 768, "depth": 12, "num_heads": 12, "clip_size": (96, 224, 224)},
}

timesformer_tiny = partial(TimeSformer, **TIMESFORMER_SIZES["timesformer_tiny"])
timesformer_small = partial(TimeSformer, **TIMESFORMER_SIZES["timesformer_small"])
timesformer_base = partial(TimeSformer, **TIMESFORMER_SIZES["timesformer_base"])
timesformer_base_hr = partial(TimeSformer, **TIMESFORMER_SIZES["timesformer_base_hr"])
timesformer_base_l = partial(TimeSformer, **TIMESFORMER_SIZES["timesformer_base_l"])
