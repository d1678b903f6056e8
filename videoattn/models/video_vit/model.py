"""A plain video ViT: tubelets, pre-norm blocks that attend jointly over all of them, and a head."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from videoattn.grid import Axis, TokenGrid
from videoattn.layers.attention import BuildOperator, QkvBias
from videoattn.layers.blocks import TransformerBlock, check_clip, run_blocks
from videoattn.layers.patch_embed import TubeletEmbed
from videoattn.layers.pooler import AttentivePooler
from videoattn.layers.position import ComputedTable, sincos_table
from videoattn.layers.rotary import Pairing, RotaryPositions
from videoattn.layers.skip import SkipSettings
from videoattn.operators import DenseAttention

Positions = Literal["sincos_1d", "learned", "rope_tiled", "rope_interleaved"]
Head = Literal["mean", "mean_tokens", "class_token", "attentive", "none"]
Init = Literal["published", "from_scratch"]
_PAIRINGS: dict[str, Pairing] = {"rope_tiled": "tiled", "rope_interleaved": "interleaved"}


class VideoViT(nn.Module):
    """A video ViT for clips [B, 3, T, H, W] of exactly `clip_size`; returns logits [B, num_classes].

    Args:
        tubelet: frames of a token, and `patch_size` its height and width in pixels; they must divide the clip.
        mlp_dim: hidden width of the MLPs; 4·embed_dim by default.
        bias: the parts of the packed projection that have a bias.
        positions: a fixed 1-D table of sines over all tokens, a learned one, or rotary positions (`RotaryPositions`).
        rotary_base: scales rows and columns to a grid of that many, as V-JEPA 2.1 does.
        modality: adds a learned embedding of the modality to all tokens; clips of one frame are images, which have
            patches and an embedding of their own. Parts that clips of this size do not use are not trained.
        levels: blocks whose output is normalised, each by a norm of its own, for `forward_levels`; the last by default.
        class_token: puts a learned token before the patches.
        head: "mean" averages tokens and normalises the mean; "mean_tokens" averages normalised tokens; "class_token"
            takes the first normalised token; "attentive" is V-JEPA 2's probe, with `probe_depth` blocks of
            self-attention and `probe_heads` heads; "none" leaves an encoder, whose tokens `forward_tokens` returns and
            which gives no logits.
        operators: the operator along Axis.JOINT, a callable that accepts an `AttentionSite`; dense by default.
        skip: the blocks that skip attention (SkipAt).

    Raises ValueError where tubelets do not divide the clip, or an operator cannot be built on its grid.
    Source: VideoMAE (arXiv 2203.12602), V-JEPA 2 (arXiv 2506.09985) and V-JEPA 2.1 (arXiv 2603.14482), and their
    released code.
    """

    def __init__(
        self,
        clip_size: tuple[int, int, int] = (16, 224, 224),
        patch_size: int = 16,
        tubelet: int = 2,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_dim: int | None = None,
        num_classes: int = 400,
        bias: QkvBias = "all",
        positions: Positions = "sincos_1d",
        rotary_base: int | None = None,
        modality: bool = False,
        levels: Sequence[int] | None = None,
        class_token: bool = False,
        head: Head = "mean",
        probe_depth: int = 3,
        probe_heads: int = 16,
        operators: Mapping[Axis, BuildOperator] | None = None,
        skip: Mapping[Axis, SkipSettings] | None = None,
        drop_path_rate: float = 0.0,
        act_checkpoint: bool = False,
        init: Init = "published",
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("positions", positions, Positions), ("head", head, Head), ("init", init, Init), ("bias", bias, QkvBias),
        ):  # fmt: skip
            if value not in get_args(choices):
                raise ValueError(f"{name} expects one of {', '.join(get_args(choices))}, got {value!r}")
        levels = tuple(levels or (depth - 1,))
        if sorted(set(levels)) != list(levels) or not 0 <= levels[0] or levels[-1] != depth - 1:
            raise ValueError(f"levels expects rising blocks that end in {depth - 1}, got {list(levels)}")
        self.clip_size = (num_frames, height, width) = clip_size
        self.patch_size, self.tubelet = patch_size, tubelet
        self.num_classes = num_classes
        self.act_checkpoint = act_checkpoint
        self.levels = levels
        self.averages_tokens = head == "mean_tokens"
        self.positions = {"positions": positions, "rotary_base": rotary_base}
        self.described: dict[str, str] = {"VIDEO_VIT.POSITIONS": positions, "rotary base": str(rotary_base)}
        if head == "attentive":
            self.described["VIDEO_VIT.PROBE_HEADS"] = str(probe_heads)
        self.is_image = modality and num_frames == 1
        stride = (1 if self.is_image else tubelet, patch_size, patch_size)
        if min(clip_size) < 1 or any(n % s for n, s in zip(clip_size, stride, strict=True)):
            raise ValueError(
                f"tubelets of {' x '.join(map(str, stride))} must divide the clip, got T x H x W = "
                f"{num_frames} x {height} x {width}"
            )
        t, h, w = (n // s for n, s in zip(clip_size, stride, strict=True))
        self.grid = TokenGrid(t, h, w, prefix=int(class_token))
        self.patch_embed = _tubelets(embed_dim, (tubelet, *clip_size[1:]), (tubelet, patch_size, patch_size))
        image = (1, patch_size, patch_size)
        self.patch_embed_image = _tubelets(embed_dim, (1, *clip_size[1:]), image) if modality else None
        self.video_embed, self.image_embed = (
            nn.Parameter(torch.zeros(1, 1, embed_dim)) if modality else None for _ in range(2)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        self.pos_embed: nn.Parameter | ComputedTable | None = None
        rotate = None
        if positions == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, self.grid.tokens, embed_dim))
        elif positions == "sincos_1d":
            self.pos_embed = ComputedTable(sincos_table, self.grid.patches, embed_dim)
        else:
            rotate = RotaryPositions(self.grid, embed_dim // num_heads, _PAIRINGS[positions], rotary_base)
        chosen = {Axis.JOINT: (operators or {}).get(Axis.JOINT, DenseAttention)}
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            TransformerBlock(
                embed_dim, num_heads, mlp_dim or 4 * embed_dim, self.grid, i, chosen, skip or {}, rates[i], "sample",
                bias, rotate,
            )
            for i in range(depth)
        )  # fmt: skip
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dim, eps=1e-6) for _ in levels) if head != "mean" else None
        self.fc_norm = nn.LayerNorm(embed_dim, eps=1e-6) if head == "mean" else None
        self.pooler = AttentivePooler(embed_dim, probe_heads, probe_depth) if head == "attentive" else None
        self.head = nn.Linear(embed_dim, num_classes) if head != "none" else None
        self.reset_parameters(init)
        # without gradients, since processes that train together wait for the gradient of every parameter
        unused = [self.video_embed, *self.patch_embed.parameters()] if self.is_image else [self.image_embed]
        if self.patch_embed_image is not None and not self.is_image:
            unused += self.patch_embed_image.parameters()
        for norm in (self.norms or [])[:-1]:
            unused += norm.parameters()
        for parameter in unused:
            if parameter is not None:
                parameter.requires_grad_(False)

    def reset_parameters(self, init: Init = "published") -> None:
        """Initialise all parameters with normal weights of deviation 0.02; "from_scratch": Xavier, for small widths."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 3 and parameter.shape[0] == 1:  # tokens and positions
                nn.init.trunc_normal_(parameter, std=0.02)
            elif parameter.dim() == 2 and init == "from_scratch":
                nn.init.xavier_uniform_(parameter)
            elif parameter.dim() == 2 and ".operator." not in name:
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def embed(self, clip: Tensor) -> Tensor:
        """Map a clip [B, 3, T, H, W] to tokens [B, N, C]."""
        if self.patch_embed_image is not None and self.is_image:
            x = self.patch_embed_image(clip) + self.image_embed
        else:
            x = self.patch_embed(clip)
            if self.video_embed is not None:
                x = x + self.video_embed
        if isinstance(self.pos_embed, ComputedTable):
            x = x + self.pos_embed()
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        if isinstance(self.pos_embed, nn.Parameter):
            x = x + self.pos_embed
        return x

    def forward_levels(self, clip: Tensor) -> list[Tensor]:
        """Return the tokens [B, N, C] after each block of `levels`, normalised (with the head "mean": as they are)."""
        check_clip(clip, self.clip_size)
        outputs = run_blocks(self.blocks, self.embed(clip), self.act_checkpoint and self.training, self.levels)
        if self.norms is None:
            return outputs
        return [norm(x) for norm, x in zip(self.norms, outputs, strict=True)]

    def forward_tokens(self, clip: Tensor) -> Tensor:
        """Return the tokens [B, N, C] after the last norm; the head "mean" normalises their mean instead."""
        return self.forward_levels(clip)[-1]

    def pool(self, tokens: Tensor) -> Tensor:
        """Pool tokens [B, N, C], of one clip or of several in a row, into the features [B, C] of the head.

        Raises ValueError for an encoder without a head.
        """
        if self.head is None:
            raise ValueError("this video ViT is an encoder without a head: call forward_tokens, or load a probe")
        if self.pooler is not None:
            return self.pooler(tokens)
        if self.fc_norm is not None:
            return self.fc_norm(tokens.mean(dim=1))
        return tokens.mean(dim=1) if self.averages_tokens else tokens[:, 0]

    def forward_features(self, clip: Tensor) -> Tensor:
        """Return the features [B, C] that the head classifies."""
        return self.pool(self.forward_tokens(clip))

    def forward(self, clip: Tensor) -> Tensor:
        features = self.forward_features(clip)
        assert self.head is not None
        return self.head(features)


def _tubelets(embed_dim: int, clip_size: tuple[int, ...], stride: tuple[int, int, int]) -> TubeletEmbed:
    frames, height, width = clip_size
    return TubeletEmbed(embed_dim, (frames, height, width), stride, stride, (0, 0, 0))
