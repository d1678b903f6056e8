"""Convolutional networks, and MViT, as pytorchvideo builds them: to train, evaluate and profile beside our own models.

They accept the same clips as ours, and return logits.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from videoattn.compat import import_pytorchvideo
from videoattn.config import Config
from videoattn.layers.blocks import check_clip
from videoattn.models.settings import refuse_attention_settings
from videoattn.models.spec import ModelSpec, decay_all
from videoattn.models.weights.adapter import FitOptions, WeightAdapter
from videoattn.models.weights.files import WeightFile
from videoattn.models.weights.report import LoadReport, complete

PREFIX = "pytorchvideo/"
SLOWFAST_ALPHA = 4  # frames of the fast pathway for each of the slow one


def _x3d(depth_factor: float) -> Callable[..., nn.Module]:
    def build(clip_size: tuple[int, int, int], num_classes: int, dropout: float) -> nn.Module:
        network: nn.Module = import_pytorchvideo("models.x3d").create_x3d(
            input_clip_length=clip_size[0], input_crop_size=clip_size[1], model_num_class=num_classes,
            dropout_rate=dropout, depth_factor=depth_factor, head_activation=None,
        )  # fmt: skip
        return network

    return build


def _resnet(module: str, function: str, **arguments: Any) -> Callable[..., nn.Module]:
    def build(clip_size: tuple[int, int, int], num_classes: int, dropout: float) -> nn.Module:
        create = getattr(import_pytorchvideo(f"models.{module}"), function)
        network: nn.Module = create(model_num_class=num_classes, dropout_rate=dropout, **arguments)
        return network

    return build


def _csn(clip_size: tuple[int, int, int], num_classes: int, dropout: float) -> nn.Module:
    return _resnet("csn", "create_csn", model_depth=101, stem_pool=nn.MaxPool3d)(clip_size, num_classes, dropout)


def _mvit(clip_size: tuple[int, int, int], num_classes: int, dropout: float) -> nn.Module:
    doubling = [[1, 2.0], [3, 2.0], [14, 2.0]]
    create = import_pytorchvideo("models.vision_transformers").create_multiscale_vision_transformers
    wanted = torch.empty(0).device  # torch 2.6's get_default_device misses `with torch.device(...)`
    with torch.device("cpu"):  # it asks for numbers while it builds, which no other default device need have
        network: nn.Module = create(
            spatial_size=clip_size[1:], temporal_size=clip_size[0], embed_dim_mul=doubling, atten_head_mul=doubling,
            pool_q_stride_size=[[1, 1, 2, 2], [3, 1, 2, 2], [14, 1, 2, 2]], pool_kv_stride_adaptive=[1, 8, 8],
            pool_kvq_kernel=[3, 3, 3], head_num_classes=num_classes, head_dropout_rate=dropout, head_activation=None,
        )  # fmt: skip
    return network.to(wanted)


# name: builder, and the clip (T, H, W) that the published weights are for
BASELINES: dict[str, tuple[Callable[..., nn.Module], tuple[int, int, int]]] = {
    "slow_r50": (_resnet("resnet", "create_resnet", model_depth=50, stem_conv_kernel_size=(1, 7, 7)), (8, 224, 224)),
    "slowfast_r50": (
        _resnet("slowfast", "create_slowfast", model_depth=50, slowfast_fusion_conv_kernel_size=(7, 1, 1)),
        (32, 224, 224),
    ),
    "x3d_xs": (_x3d(2.2), (4, 160, 160)),
    "x3d_s": (_x3d(2.2), (13, 160, 160)),
    "x3d_m": (_x3d(2.2), (16, 224, 224)),
    "x3d_l": (_x3d(5.0), (16, 312, 312)),
    "r2plus1d_r50": (_resnet("r2plus1d", "create_r2plus1d"), (16, 224, 224)),
    "csn_r101": (_csn, (32, 224, 224)),
    "mvit_base_16x4": (_mvit, (16, 224, 224)),
}


class Baseline(nn.Module):
    """One of pytorchvideo's networks for clips [B, 3, T, H, W] of exactly `clip_size`; returns logits.

    Means over the grid are taken at whatever size it has, so that any clip will do; at the published size that is
    what pytorchvideo computes. SlowFast gets every frame on its fast pathway and every fourth on its slow one. Raises
    ImportError where pytorchvideo is not installed, ValueError for a clip size that the network does not support.
    """

    def __init__(
        self, name: str, clip_size: tuple[int, int, int] | None = None, num_classes: int = 400, dropout: float = 0.5
    ) -> None:
        super().__init__()
        if name not in BASELINES:
            raise ValueError(f"{PREFIX}{name} is not known; expected one of {', '.join(PREFIX + n for n in BASELINES)}")
        build, published = BASELINES[name]
        self.clip_size = clip_size or published
        self.num_classes = num_classes
        self.two_pathways = name == "slowfast_r50"
        if self.two_pathways and self.clip_size[0] % SLOWFAST_ALPHA:
            raise ValueError(f"{PREFIX}{name} needs a multiple of {SLOWFAST_ALPHA} frames, got {self.clip_size[0]}")
        try:
            self.network = build(self.clip_size, num_classes, dropout)
        except ImportError as error:
            raise ImportError(f"{PREFIX}{name} needs pytorchvideo 0.1.5, which can't be imported: {error}") from error
        except AssertionError as error:  # how pytorchvideo refuses sizes
            raise ValueError(f"{PREFIX}{name} does not support clips of {self.clip_size}: {error}") from error
        for module in list(self.network.modules()):
            for child_name, child in list(module.named_children()):
                if isinstance(child, nn.AvgPool3d):
                    setattr(module, child_name, nn.AdaptiveAvgPool3d(1))
                elif type(child).__name__ == "Swish":  # the same, as an operation that torch knows
                    setattr(module, child_name, nn.SiLU())
        # for layer decay: the longest row of blocks, stages or blocks within one
        numbers = [int(n) for name, _ in self.named_parameters() for n in re.findall(r"blocks\.(\d+)\.", name)]
        self.num_layers = 1 + max(numbers)

    def forward(self, clip: Tensor) -> Tensor:
        check_clip(clip, self.clip_size)
        logits: Tensor = self.network(self._pathways(clip) if self.two_pathways else clip)
        return logits

    def _pathways(self, clip: Tensor) -> list[Tensor]:
        frames = self.clip_size[0]
        slow = torch.linspace(0, frames - 1, frames // SLOWFAST_ALPHA, device=clip.device).long()  # as published
        return [clip.index_select(2, slow), clip]


def count_layers_above(model: Baseline, name: str) -> int:
    """Return the number of layers above a parameter."""
    if block := re.search(r"\.blocks\.(\d+)\.", name):
        return model.num_layers - int(block[1])
    return model.num_layers + 1 if re.search(r"embed|token|pos", name) else 0


def fit_baseline(model: Baseline, file: WeightFile, report: LoadReport, options: FitOptions) -> dict[str, Tensor]:
    """Return the network's complete new state from a file of ours or of pytorchvideo's."""
    report.family = "pytorchvideo"
    target = model.network.state_dict()
    state = {name.removeprefix("network."): value for name, value in file.tensors.items()}
    if options.head == "may_differ":
        others = [n for n, v in target.items() if n in state and state[n].shape != v.shape and ".proj." in n]
        report.dropped += [f"network.{name}" for name in others]
        report.initialised += [f"network.{name}" for name in others]
        state |= {name: target[name] for name in others}
    return {f"network.{name}": value for name, value in complete(state, target).items()}


def read_baseline(cfg: Config) -> dict[str, Any]:
    """Return the constructor's arguments besides clip size and classes. Raises ValueError naming the key at fault."""
    refuse_attention_settings(cfg)
    return {"dropout": cfg.model.dropout_rate}


ADAPTER = WeightAdapter(held="a network of pytorchvideo", fit=fit_baseline)

BASELINE_SPECS = {
    f"{PREFIX}{name}": ModelSpec(
        model=Baseline,
        size={"name": name},
        clip_size=clip_size,
        arguments=read_baseline,
        aggregate="probabilities",  # as published: networks of pytorchvideo end in a softmax
        no_weight_decay=decay_all,
        layer_of=count_layers_above,
        adapter=ADAPTER,
    )
    for name, (_, clip_size) in BASELINES.items()
}
