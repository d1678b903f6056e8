"""A TimeSformer as a folder of transformers: its config.json, and the tensors."""

from typing import Any

from torch import Tensor

from videoattn.layers.attention import count_heads
from videoattn.models.timesformer.model import TimeSformer
from videoattn.models.timesformer.names import release_state
from videoattn.models.weights.files import CheckpointError
from videoattn.models.weights.transformers_folder import TIMESFORMER_EPS


def to_transformers(model: TimeSformer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config.json, and tensors under the names of transformers' class.

    Raises CheckpointError saying why transformers' class would compute something else.
    """
    frames, height, width = model.clip_size
    if height != width:
        raise CheckpointError(
            f"transformers' TimeSformer has square clips alone, and the model is for {height} x {width}"
        )
    if model.frames_apart:
        raise CheckpointError(
            "transformers' TimeSformer does not average the frames of space_only, so its logits would be those of "
            "frames"
        )
    heads = count_heads(model)
    tensors = release_state(model.state_dict(), "huggingface", heads)
    mlp_dim, embed_dim = tensors["timesformer.encoder.layer.0.intermediate.dense.weight"].shape
    config = {
        "model_type": "timesformer",
        "architectures": ["TimesformerForVideoClassification"],
        "attention_type": model.attention_type,
        "hidden_size": embed_dim,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": heads,
        "intermediate_size": mlp_dim,
        "image_size": height,
        "num_frames": frames,
        "patch_size": model.patch_size,
        "num_channels": 3,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "layer_norm_eps": TIMESFORMER_EPS,
    }
    return config, tensors
