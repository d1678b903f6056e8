"""Mixup and cutmix of neighbouring clips, with smoothed labels."""

import math
import random
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from videoattn.seeding import derive_seed


@dataclass(frozen=True)
class _Mix:
    """The mix of one pair: the share of a clip that it keeps, and the box (rows, columns) taken from its partner."""

    share: float
    box: tuple[slice, slice] | None


class Mixing:
    """Mixup or cutmix of clips 2i and 2i + 1 of a batch: the pair is blended, or swaps a box.

    A pair is mixed with probability `prob`, and by cutmix with probability `switch_prob` if both alphas are positive.
    The share that a clip keeps is drawn from Beta(alpha, alpha); if the border cuts a box off, the share is corrected.
    Each pair draws from its own seed, so processes that share a batch in even parts mix as one process would. Raises
    ValueError if both alphas are 0.

    Source: mixup (Zhang et al., 2018), cutmix (Yun et al., 2019); timm's `Mixup` in mode "pair".
    Differs: timm pairs clip i with clip B - 1 - i. torchvision's MixUp and CutMix could mix a pair, but draw from the
    global generator and launch kernels per pair where one blend serves the whole batch.
    """

    def __init__(
        self,
        *,
        alpha: float,
        cutmix_alpha: float,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        label_smoothing: float = 0.0,
        num_classes: int,
    ) -> None:
        if alpha <= 0 and cutmix_alpha <= 0:
            raise ValueError(
                f"MIXUP.ALPHA or MIXUP.CUTMIX_ALPHA expects a positive number, got {alpha} and {cutmix_alpha}"
            )
        self.alpha = alpha
        self.cutmix_alpha = cutmix_alpha
        self.prob = prob
        self.switch_prob = switch_prob
        self.label_smoothing = label_smoothing
        self.num_classes = num_classes

    def __call__(self, clips: Tensor, labels: Tensor, seed: int, first_pair: int = 0) -> tuple[Tensor, Tensor]:
        """Return mixed clips, a new tensor like the floating `clips`, and soft targets [B, num_classes].

        `first_pair` is the number of this batch's first pair in the batch of all processes. Raises ValueError on an odd
        number of clips and on clips that are not floating.
        """
        if len(clips) % 2:
            raise ValueError(
                f"mixing expects an even number of clips per process, got {len(clips)}; change TRAIN.BATCH_SIZE"
            )
        if not clips.is_floating_point():
            raise ValueError(f"mixing expects normalised floating clips, got {clips.dtype}")
        num_pairs = len(clips) // 2
        size = (clips.shape[-2], clips.shape[-1])
        mixes = [self._draw(*size, random.Random(derive_seed(seed, "mix", first_pair + i))) for i in range(num_pairs)]
        blend = torch.tensor([1.0 if mix.box else mix.share for mix in mixes], dtype=clips.dtype, device=clips.device)
        pairs = rearrange(clips, "(pair two) ... -> pair two ...", two=2)
        partners = pairs.flip(1)
        mixed = torch.lerp(partners, pairs, blend.view(-1, *[1] * (pairs.ndim - 1)))
        for i, mix in enumerate(mixes):
            if mix.box:
                mixed[i][..., mix.box[0], mix.box[1]] = partners[i][..., mix.box[0], mix.box[1]]
        targets = smooth_labels(labels, self.num_classes, self.label_smoothing)
        targets = rearrange(targets, "(pair two) classes -> pair two classes", two=2)
        shares = torch.tensor([mix.share for mix in mixes], device=labels.device).view(-1, 1, 1)
        targets = torch.lerp(targets.flip(1), targets, shares)
        return rearrange(mixed, "pair two ... -> (pair two) ..."), rearrange(targets, "pair two ... -> (pair two) ...")

    def _draw(self, height: int, width: int, rng: random.Random) -> _Mix:
        if rng.random() >= self.prob:
            return _Mix(share=1.0, box=None)
        cutmix = self.alpha <= 0 or (self.cutmix_alpha > 0 and rng.random() < self.switch_prob)
        alpha = self.cutmix_alpha if cutmix else self.alpha
        share = rng.betavariate(alpha, alpha)
        if not cutmix:
            return _Mix(share=share, box=None)
        side = math.sqrt(1 - share)
        rows = _around(rng.randrange(height), int(height * side), height)
        columns = _around(rng.randrange(width), int(width * side), width)
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return _Mix(share=1 - area / (height * width), box=(rows, columns))


def smooth_labels(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return soft targets [B, num_classes] in float32: smoothing / num_classes everywhere, the rest on the label."""
    targets = torch.full((len(labels), num_classes), smoothing / num_classes, device=labels.device)
    return targets.scatter_(1, labels.unsqueeze(1), 1 - smoothing + smoothing / num_classes)


def _around(centre: int, length: int, size: int) -> slice:
    return slice(max(centre - length // 2, 0), min(centre + length // 2, size))
