"""A video ViT as a folder of transformers: the config.json of its VideoMAE or V-JEPA 2, and the tensors."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from videoattn.models.video_vit.model import VideoViT
from videoattn.models.video_vit.names import from_ours
from videoattn.models.weights.files import CheckpointError
from videoattn.models.weights.transformers_folder import HEAD_EPS

# the predictor without blocks that transformers' V-JEPA 2 must have and does not use
NO_PREDICTOR = {
    "pred_hidden_size": 1, "pred_num_attention_heads": 1, "pred_num_hidden_layers": 0, "pred_num_mask_tokens": 1,
}  # fmt: skip


def to_transformers(model: VideoViT) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config.json, and tensors under the names of transformers' class.

    Raises CheckpointError saying why transformers has no such class.
    """
    given = model.arguments
    is_videomae = given["bias"] == "qv"
    if reason := _videomae_lacks(model) if is_videomae else _vjepa2_lacks(model):
        raise CheckpointError(f"transformers has no class for this video ViT: {reason}")
    tensors = from_ours(model.state_dict(), "huggingface", given["num_heads"])
    if is_videomae:  # as in published folders: newer releases know both names, older ones these alone
        for ours, older in ((".query.bias", ".q_bias"), (".value.bias", ".v_bias")):
            tensors = {re.sub(rf"{re.escape(ours)}$", older, name): value for name, value in tensors.items()}
    model_type, name = ("videomae", "VideoMAE") if is_videomae else ("vjepa2", "VJEPA2")
    if model.head is None:
        tensors = {name.removeprefix(f"{model_type}."): value for name, value in tensors.items()}
    width, (frames, height, width_pixels) = given["embed_dim"], model.clip_size
    mlp_dim = given["mlp_dim"] or 4 * width
    config = {
        "model_type": model_type,
        "architectures": [f"{name}{'Model' if model.head is None else 'ForVideoClassification'}"],
        "hidden_size": width,
        "num_hidden_layers": given["depth"],
        "num_attention_heads": given["num_heads"],
        "patch_size": model.patch_size,
        "tubelet_size": model.tubelet,
        "hidden_act": "gelu",
        "layer_norm_eps": given["norm_eps"],
    }
    head_norms = [module for module in [model.fc_norm] if module is not None]
    head_norms += [module for module in (model.pooler or nn.Identity()).modules() if isinstance(module, nn.LayerNorm)]
    if head_norms:
        config[HEAD_EPS] = head_norms[0].eps
    if is_videomae:
        size: Any = height if height == width_pixels else [height, width_pixels]
        config |= {"image_size": size, "num_frames": frames, "intermediate_size": mlp_dim, "num_channels": 3}
        return config | {"qkv_bias": True, "use_mean_pooling": model.fc_norm is not None}, tensors
    ratio = mlp_dim / width
    config |= {"crop_size": height, "frames_per_clip": frames, "in_chans": 3, "qkv_bias": True}
    config |= {"mlp_ratio": ratio if int(width * ratio) == mlp_dim else (mlp_dim + 0.5) / width}
    config |= {"num_pooler_layers": given["probe_depth"], "attention_probs_dropout_prob": 0.0}
    return config | NO_PREDICTOR, tensors | empty_predictor("" if model.head is None else "vjepa2.", width)


_SEGMENTS = "its models see one window of a video, and this one {} together (num_segments=1 builds it for one)"


def _videomae_lacks(model: VideoViT) -> str | None:
    given = model.arguments
    if model.num_segments > 1:
        return _SEGMENTS.format(model.num_segments)
    if given["positions"] != "sincos_1d":
        return f"its VideoMAE has the positions sincos_1d, and the model has {given['positions']}"
    if given["class_token"] or given["modality"]:
        return f"its VideoMAE has no {'class token' if given['class_token'] else 'embedding of the modality'}"
    if len(model.levels) > 1:
        return f"its VideoMAE normalises the last block alone, and the model those of {list(model.levels)}"
    if model.averages_tokens:
        return "its VideoMAE normalises the mean of tokens or takes one, and the model averages normalised tokens"
    return "its VideoMAE has no attentive probe" if model.pooler is not None else None


def _vjepa2_lacks(model: VideoViT) -> str | None:
    given, (_, height, width) = model.arguments, model.clip_size
    if given["modality"]:
        return "it knows V-JEPA 2, and this is V-JEPA 2.1 (norms of several levels, an embedding of the modality)"
    if given["positions"] != "rope_tiled" or given["rotary_base"] is not None:
        return f"its V-JEPA 2 has the positions rope_tiled, and the model has {given['positions']}"
    if given["bias"] != "all" or given["class_token"]:
        return "its V-JEPA 2 has biases of q, k and v and no class token"
    if len(model.levels) > 1:
        return f"its V-JEPA 2 normalises the last block alone, and the model those of {list(model.levels)}"
    if height != width:
        return f"its V-JEPA 2 has the rows of a square whatever the clip, and the model is for {height} x {width}"
    if model.num_segments > 1:
        return _SEGMENTS.format(model.num_segments)
    if len(model.probe_levels) > 1:
        return f"its probe sees the last block alone, and the model's those of {list(model.probe_levels)}"
    if model.head is not None and model.pooler is None:
        return f"its V-JEPA 2 classifies by an attentive probe, and the model by {given['head']}"
    if model.pooler is not None and given["probe_heads"] != given["num_heads"]:
        return (
            f"its probe has as many heads as the encoder, {given['num_heads']}, and the model's has "
            f"{given['probe_heads']}"
        )
    return None


def empty_predictor(prefix: str, width: int) -> dict[str, Tensor]:
    """Return the tensors of the predictor of NO_PREDICTOR, all zero."""
    inner = NO_PREDICTOR["pred_hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.predictor_embeddings.weight": (inner, width), "embeddings.predictor_embeddings.bias": (inner,),
        "embeddings.mask_tokens": (1, 1, 1, inner), "layernorm.weight": (inner,), "layernorm.bias": (inner,),
        "proj.weight": (width, inner), "proj.bias": (width,),
    }  # fmt: skip
    return {f"{prefix}predictor.{name}": torch.zeros(shape) for name, shape in shapes.items()}
