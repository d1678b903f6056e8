"""Refusals of `replace_attention`, each with its message."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import videoattn
from tests.convert.supported_models import (
    CASES,
    CLIP_IN_PAIRS,
    GRID,
    ours,
    replace,
    timesformer,
    timm_vit,
    transformers,
    videomae,
    videomae_config,
    vivit,
)
from tests.models.small_models import randomize
from videoattn.operators import AttentionOperator, AttentionSite, DenseAttention


def test_attention_weights_are_refused_until_attention_is_reverted() -> None:
    for name in ("vivit", "videomae", "hf_divided", "hf_joint"):
        build, axes, shape = CASES[name]
        model, inputs = randomize(build()), torch.randn(1, *shape)
        model.config._attn_implementation = "eager"
        model(inputs, output_attentions=True)  # the library collects them by hooks, which it installs here
        replace(model, axes, "dense")
        with pytest.raises(ValueError, match="output_attentions=True asks for attention weights"):
            model(inputs, output_attentions=True)
        assert len(model(inputs, output_hidden_states=True).hidden_states) == 3
        model.config.output_attentions = True
        with pytest.raises(ValueError, match="output_attentions=True asks for attention weights"):
            model(inputs)
        videoattn.revert_attention(model, verbose=False)
        assert len(model(inputs).attentions) == 2, name


def test_inputs_that_do_not_fill_the_grid_are_refused() -> None:
    vit = timm_vit()
    replace(vit, ("space",), "dense")
    with pytest.raises(ValueError, match="does not accept attn_mask"):
        vit.blocks[0].attn(torch.zeros(1, 9, 24), attn_mask=torch.zeros(9, 9))
    with pytest.raises(ValueError, match=r"replaced for TokenGrid\(t=1, h=2, w=3, prefix=3\) of 9 tokens and got 12"):
        vit.blocks(torch.zeros(1, 12, 24))
    masked = transformers.VideoMAEModel(videomae_config())
    replace(masked, ("joint",), "dense")
    hidden = torch.arange(GRID.patches)[None] % 2 == 0
    with pytest.raises(ValueError, match="of 24 tokens and got 12; .* masked tokens form no grid"):
        masked(torch.zeros(1, *CLIP_IN_PAIRS), bool_masked_pos=hidden)


def vit_with(change: Callable[[Any], None]) -> nn.Module:
    vit = timm_vit()
    change(vit)
    return vit


def vit_of_parallel_blocks() -> nn.Module:
    from timm.models.vision_transformer import ParallelThingsBlock

    return timm_vit(block_fn=ParallelThingsBlock)


def vit_of_another_attention() -> nn.Module:
    from timm.models.vision_transformer import Attention as Theirs

    vit = timm_vit()
    vit.blocks[1].attn = type("Attention", (Theirs,), {"__module__": __name__})(24, 3)
    return vit


def refuse_block_1(site: AttentionSite) -> AttentionOperator:
    if site.block == 1:
        raise ValueError("not on this site")
    return DenseAttention(site)


def share_attention(vit: Any) -> None:
    vit.blocks[1].attn = vit.blocks[0].attn


DENSE = {"space": "dense"}
REFUSALS: list[tuple[Callable[[], nn.Module], dict[str, Any], str]] = [
    (timm_vit, {}, "an operator for at least one of space, time, joint"),
    (timm_vit, {"time": "dense"}, "VisionTransformer attends along space alone, got an operator for time"),
    (ours, {"space": "dense", "joint": "dense"}, "TimeSformer attends along space and time alone, .* for joint"),
    (videomae, DENSE, "VideoMAEModel attends along joint alone, got an operator for space"),
    (partial(nn.Linear, 2, 2), DENSE, r"replace_attention supports VisionTransformer \(timm\), .*, got Linear"),
    (lambda: nn.ModuleList([timm_vit(), ours()]), DENSE, "ModuleList contains several models, pass one of them: 0, 1"),
    (vit_of_another_attention, DENSE, "block 1 attends by tests.convert.test_refusals.Attention; replace_attention"),
    (vit_of_parallel_blocks, DENSE, "not built as replace_attention expects: .*ParallelThingsBlock.* 'attn'"),
    (partial(timm_vit, attn_drop_rate=0.1), DENSE, "Attention of block 0 drops attention weights with p = 0.1"),
    (partial(timm_vit, dynamic_img_size=True), DENSE, "dynamic_img_size=True leaves the grid open"),
    (partial(timm_vit, patch_drop_rate=0.5), DENSE, "patch_drop_rate=0.5 drops patches"),
    (lambda: vit_with(lambda vit: setattr(vit.blocks[1].attn, "scale", 1.0)), DENSE, "block 1 scales logits by 1.0"),
    (lambda: vit_with(lambda vit: setattr(vit.blocks[1].attn, "extra", nn.ReLU())), DENSE, "got .*extra, .* of timm"),
    (lambda: vit_with(lambda vit: setattr(vit.blocks[1].attn, "forward", abs)), DENSE, "has a forward of its own"),
    (lambda: vit_with(share_attention), DENSE, "share attention modules"),
    (partial(timesformer, attention_probs_dropout_prob=0.1), DENSE, "TimesformerSelfAttention .* p = 0.1"),
    (partial(vivit, attention_probs_dropout_prob=0.1), {"joint": "dense"}, r"Vivit\w*Attention .* p = 0.1"),
    (partial(videomae, attention_probs_dropout_prob=0.1), {"joint": "dense"}, "VideoMAESelfAttention .* p = 0.1"),
    (lambda: transformers.VideoMAEForPreTraining(videomae_config()), {"joint": "dense"}, "unmasked tokens alone"),
    (timm_vit, {"space": "densse"}, r"space expects the name of an operator \(dense, .*\), got 'densse'"),
    (timm_vit, {"space": {"variant": "wythoff"}}, r"space expects the name of an operator .*, got None"),
    (timm_vit, {"space": {"name": "fibonacci", "varient": 1}}, "'varient' is not an option of fibonacci .* 'variant'"),
    (timm_vit, {"space": {"name": "fibonacci", "variant": "x"}}, "got 'x'"),
    (timm_vit, {"space": {"name": "fibonacci", "dense_heads": [3]}}, r"expects pairs \(block, head\), got \[3\]"),
    (timm_vit, {"space": {"name": "fibonacci", "dense_heads": [(2, 0)]}}, r"names blocks \[2\], which are not"),
    (timm_vit, {"space": {"name": "fibonacci", "dense_heads": [(1, 3)]}}, "heads 0 to 2 in block 1, got 3"),
    (timm_vit, {"space": 3}, "space expects an operator's name, a dict .*, got 3"),
    (timm_vit, {"space": nn.Identity()}, r"space expects .*, got Identity\(\)"),
    (timm_vit, {"space": lambda site: nn.Identity()}, r"makes an AttentionOperator, got Identity\(\)"),
    (timm_vit, {"space": refuse_block_1}, "not on this site"),
    (timm_vit, {"space": "dense", "blocks": [1, 2]}, r"blocks of VisionTransformer .* along space, 0-1, got \[1, 2\]"),
    (timm_vit, {"space": "dense", "blocks": []}, r"along space, 0-1, got \[\]"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "arguments", "message"), REFUSALS, ids=[message for *_, message in REFUSALS])
def test_refusals_leave_the_model_as_it_was(
    build: Callable[[], nn.Module], arguments: dict[str, Any], message: str
) -> None:
    model = build()
    with pytest.raises(ValueError, match=message):
        videoattn.replace_attention(model, **arguments, verbose=False)
    with pytest.raises(ValueError, match="nothing to revert: no attention of this .* is replaced"):
        videoattn.revert_attention(model)
