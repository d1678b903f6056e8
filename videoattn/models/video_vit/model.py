"""A plain video ViT: tubelets, pre-norm blocks that attend jointly over all of them, and a head."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from videoattn.grid import Axis, TokenGrid
from videoattn.layers.attention import BuildOperator, QkvBias
from videoattn.layers.blocks import TransformerBlock, check_clip, run_blocks
from videoattn.layers.patch_embed import TubeletEmbed
from videoattn.layers.pooler import AttentivePooler
from videoattn.layers.position import ComputedTable, sincos_table
from videoattn.layers.rotary import Pairing, RotaryPositions
from videoattn.layers.skip import SkipSettings
from videoattn.layers.views import GridModule, Pairs, ViewCache, view_on
from videoattn.operators import DenseAttention

Positions = Literal["sincos_1d", "learned", "rope_tiled", "rope_interleaved"]
Head = Literal["mean", "mean_tokens", "class_token", "attentive", "none"]
Init = Literal["published", "from_scratch"]
_NOT_NOTED = ("self", "__class__", "operators", "skip", "drop_path_rate", "act_checkpoint", "init")
_PAIRINGS: dict[str, Pairing] = {"rope_tiled": "tiled", "rope_interleaved": "interleaved"}


class VideoViT(GridModule):
    """A video ViT for clips [B, 3, T, H, W] of `clip_size`; returns logits [B, num_classes].

    With rotary positions it accepts clips of any other size that patches divide as well, and plans for it once: the
    last few sizes are kept. `for_clips` returns the model for another size.

    Args:
        tubelet: frames of a token, and `patch_size` its height and width in pixels; they must divide the clip.
        mlp_dim: hidden width of the MLPs; 4·embed_dim by default.
        bias: the parts of the packed projection that have a bias.
        positions: a fixed 1-D table of sines over all tokens, a learned one, or rotary positions (`RotaryPositions`).
        rotary_base: scales rows and columns to a grid of that many, as V-JEPA 2.1 does.
        modality: adds a learned embedding of the modality to all tokens; clips of one frame are images, which have
            patches and an embedding of their own. Parts that clips of this size do not use are not trained.
        levels: blocks whose output is normalised, each by a norm of its own, for `forward_levels`; the last by default.
        num_segments: windows of T / num_segments frames that a clip consists of, one after another. They are encoded
            apart, each with positions of its own, and the head sees the tokens of all in a row.
        class_token: puts a learned token before the patches.
        head: "mean" averages tokens and normalises the mean; "mean_tokens" averages normalised tokens; "class_token"
            takes the first normalised token; "attentive" is V-JEPA 2's probe, with `probe_depth` blocks of
            self-attention and `probe_heads` heads; "none" leaves an encoder, whose tokens `forward_tokens` returns and
            which gives no logits.
        probe_levels: blocks whose tokens an attentive probe sees, each through the last norm, in a row; by default
            those of the last block.
        operators: the operator along Axis.JOINT, a callable that accepts an `AttentionSite`; dense by default.
        skip: the blocks that skip attention (SkipAt).
        norm_eps: eps of all norms but those of the head, which have `head_eps`; None: the authors', 1e-6 for "mean"
            and 1e-5 for a probe. transformers has others.

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
        num_segments: int = 1,
        class_token: bool = False,
        head: Head = "mean",
        probe_depth: int = 3,
        probe_heads: int = 16,
        probe_levels: Sequence[int] | None = None,
        operators: Mapping[Axis, BuildOperator] | None = None,
        skip: Mapping[Axis, SkipSettings] | None = None,
        drop_path_rate: float = 0.0,
        act_checkpoint: bool = False,
        init: Init = "published",
        norm_eps: float = 1e-6,
        head_eps: float | None = None,
    ) -> None:
        # what makes this model anew, but for its operators and how it is trained; files of ours note it
        arguments = {name: value for name, value in locals().items() if name not in _NOT_NOTED}
        super().__init__()
        for name, value, choices in (
            ("positions", positions, Positions), ("head", head, Head), ("init", init, Init), ("bias", bias, QkvBias),
        ):  # fmt: skip
            if value not in get_args(choices):
                raise ValueError(f"{name} expects one of {', '.join(get_args(choices))}, got {value!r}")
        levels = tuple(levels or (depth - 1,))
        if sorted(set(levels)) != list(levels) or not 0 <= levels[0] or levels[-1] != depth - 1:
            raise ValueError(f"levels expects rising blocks that end in {depth - 1}, got {list(levels)}")
        self.probe_levels = tuple(probe_levels or levels[-1:])
        if probe_levels and (head != "attentive" or len(levels) > 1):
            raise ValueError(
                f"probe_levels expects the head attentive and one norm, got the head {head} and {len(levels)} norms"
            )
        if sorted({*self.probe_levels} & {*range(depth)}) != list(self.probe_levels):
            raise ValueError(f"probe_levels expects rising blocks below {depth}, got {list(self.probe_levels)}")
        self.num_segments = num_segments
        if class_token and num_segments > 1:
            raise ValueError(f"num_segments expects 1 beside a class token, got {num_segments}")
        self.patch_size, self.tubelet, self.modality = patch_size, tubelet, modality
        self.num_classes = num_classes
        self.act_checkpoint = act_checkpoint
        self._views = ViewCache()
        self.levels = levels
        self.arguments: dict[str, Any] = {**arguments, "levels": levels}
        self.averages_tokens = head == "mean_tokens"
        self.positions = {"positions": positions, "rotary_base": rotary_base}
        self.described: dict[str, str] = {"VIDEO_VIT.POSITIONS": positions, "rotary base": str(rotary_base)}
        if head == "attentive":
            self.described["VIDEO_VIT.PROBE_HEADS"] = str(probe_heads)
            self.described["VIDEO_VIT.PROBE_LEVELS"] = ", ".join(map(str, self.probe_levels))
        self.grid = self._grid_of(clip_size, int(class_token))
        self.clip_size = (clip_size[0], clip_size[1], clip_size[2])
        clip_size = self._segment_of(clip_size)  # from here on
        self.is_image = modality and clip_size[0] == 1
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
        for name, module in self.named_modules():
            if isinstance(module, nn.LayerNorm) and ".operator." not in name:
                in_head = name.startswith(("fc_norm", "pooler."))
                module.eps = (head_eps or module.eps) if in_head else norm_eps
        self.described |= {"VIDEO_VIT.NORM_EPS": f"{norm_eps:g}"}
        if head in ("mean", "attentive"):
            self.described["VIDEO_VIT.HEAD_EPS"] = f"{head_eps or (1e-6 if head == 'mean' else 1e-5):g}"
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

    def for_clips(self, clip_size: tuple[int, int, int]) -> "VideoViT":
        """Return this model for clips of another size (T, H, W), with the same parameters and state dict.

        It gives what a model built for that size gives with the same state: positions that are not learned are computed
        anew, and operators planned for the new grid. Both share their parameters, and the modules that do not depend
        on the grid, so set the mode of training and the device of this one first. Raises ValueError where patches do
        not divide the clip, positions are learned, or an operator can't be moved to another grid.
        """
        return self if tuple(clip_size) == self.clip_size else self._view_for(clip_size, {})

    def _view_for(self, clip_size: tuple[int, int, int], pairs: Pairs) -> "VideoViT":
        grid = self._grid_of(clip_size, self.grid.prefix)
        where = f"clips of {' x '.join(map(str, clip_size))} in a model for {' x '.join(map(str, self.clip_size))}"
        if isinstance(self.pos_embed, nn.Parameter):
            raise ValueError(
                f"{where}: its positions are learned; build a model for them, and load weights with allow_resize=True"
            )
        try:
            view = view_on(self, grid, pairs)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        assert isinstance(view, VideoViT)
        view.clip_size = (clip_size[0], clip_size[1], clip_size[2])
        view.is_image = self.modality and self._segment_of(clip_size)[0] == 1
        return view

    def _fitting(self, clip: Tensor) -> "VideoViT":
        """Return this model, or with rotary positions its view for the size of a clip. Raises ValueError otherwise."""
        if tuple(clip.shape[1:]) == (3, *self.clip_size):
            return self
        if self.pos_embed is not None or clip.dim() != 5 or clip.shape[1] != 3:
            check_clip(clip, self.clip_size)
        frames, height, width = (int(n) for n in clip.shape[2:])
        size = (frames, height, width)
        view = self._views.get(self, size, partial(self._view_for, size))
        assert isinstance(view, VideoViT)
        return view

    def place_on(self, grid: TokenGrid) -> None:
        self.grid, self._views = grid, ViewCache()
        if isinstance(self.pos_embed, ComputedTable):
            _, dim = self.pos_embed.arguments
            self.pos_embed = self.pos_embed.remade(grid.patches, dim)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "VideoViT":
        self._views.clear()  # they would stay on the old device
        super()._apply(fn, recurse)
        return self

    def _segment_of(self, clip_size: Sequence[int]) -> tuple[int, int, int]:
        """Return the size of one segment of a clip. Raises ValueError where segments do not divide its frames."""
        frames, height, width = clip_size
        if self.num_segments < 1 or frames % self.num_segments:
            raise ValueError(
                f"num_segments expects 1, or a divisor of the {frames} frames of a clip, got {self.num_segments}"
            )
        return frames // self.num_segments, height, width

    def _grid_of(self, clip_size: Sequence[int], prefix: int) -> TokenGrid:
        """Return the grid of the tokens of one segment of a clip."""
        if len(clip_size) == 3 and self.num_segments != 1:
            clip_size = self._segment_of(clip_size)
        return TokenGrid.of_clip(clip_size, self.patch_of(clip_size), prefix)

    def patch_of(self, clip_size: Sequence[int]) -> tuple[int, int, int]:
        """Return frames, rows and columns of a patch of a clip (T, H, W); those of an image have one frame."""
        is_image = self.modality and tuple(clip_size[:1]) == (1,)
        return (1 if is_image else self.tubelet, self.patch_size, self.patch_size)

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
        """Map clips [B, 3, T, H, W] of one segment to tokens [B, N, C]."""
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
        outputs = self._encode(clip, self.levels)
        if self.norms is not None:
            outputs = [norm(x) for norm, x in zip(self.norms, outputs, strict=True)]
        return [self._join(x) for x in outputs]

    def forward_tokens(self, clip: Tensor) -> Tensor:
        """Return the tokens [B, N, C] after the last norm; the head "mean" normalises their mean instead.

        Tokens of several segments follow one another.
        """
        return self.forward_levels(clip)[-1]

    def forward_head_tokens(self, clip: Tensor) -> Tensor:
        """Return the tokens [B, N, C] that the head pools: those of `forward_tokens`, or of each of `probe_levels`."""
        if self.norms is None or self.probe_levels == self.levels[-1:]:
            return self.forward_tokens(clip)
        outputs = self._encode(clip, self.probe_levels)
        return self._join(torch.cat([self.norms[-1](x) for x in outputs], dim=1))

    def _encode(self, clip: Tensor, levels: Sequence[int]) -> list[Tensor]:
        """Return the streams of all segments of all clips [B segments, N, C] after each block of `levels`."""
        model = self._fitting(clip)
        if self.num_segments > 1:
            clip = rearrange(clip, "b c (s t) h w -> (b s) c t h w", s=self.num_segments)
        return run_blocks(model.blocks, model.embed(clip), self.act_checkpoint and self.training, levels)

    def _join(self, x: Tensor) -> Tensor:
        return x if self.num_segments == 1 else rearrange(x, "(b s) n c -> b (s n) c", s=self.num_segments)

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
        return self.pool(self.forward_head_tokens(clip))

    def forward(self, clip: Tensor) -> Tensor:
        features = self.forward_features(clip)
        assert self.head is not None
        return self.head(features)


def _tubelets(embed_dim: int, clip_size: tuple[int, ...], stride: tuple[int, int, int]) -> TubeletEmbed:
    frames, height, width = clip_size
    return TubeletEmbed(embed_dim, (frames, height, width), stride, stride, (0, 0, 0))
