"""Rows of plain joint video ViTs: VideoMAE, VideoMAE V2, and V-JEPA 2 and 2.1 as encoders and with probes."""

from collections.abc import Iterator
from typing import Any

from videoattn.zoo.protocol import Dataset, Protocol, ZooRow

_VIDEOMAE = "https://github.com/MCG-NJU/VideoMAE/blob/main/MODEL_ZOO.md"
_VIDEOMAE_V2 = "https://github.com/OpenGVLab/VideoMAEv2/blob/master/docs/MODEL_ZOO.md"
_VJEPA2 = "https://github.com/facebookresearch/vjepa2"
_FILES = "https://dl.fbaipublicfiles.com/vjepa2"
_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_K710_CLASSES = "classes are numbered as in label_map_k710.txt of VideoMAEv2, not by the alphabet"
_K710_TO_K400 = "on Kinetics-400 {} % with the rows of the head that its label_710to400.json names"
_DRAWN = "V-JEPA 2's code draws the window of each part at random in evaluation, too; here it is the middle of the part"
_DIVING48 = "classes are numbered as in the vocabulary of Diving48 (V2), not by the alphabet"

# name, title, data, model, top-1, top-5, millions of parameters, multiply-accumulates in G, file, address
_VIDEOMAES: tuple[tuple[str, str, Dataset, str, float, float | None, float, float, str, str], ...] = (
    ("videomae_small_k400", "VideoMAE-S", "kinetics400", "videomae_small", 79.0, 93.8, 22.03, 56.88,
     "videomae-small-finetuned-kinetics.safetensors", "hf://MCG-NJU/videomae-small-finetuned-kinetics"),
    ("videomae_base_k400", "VideoMAE-B", "kinetics400", "videomae_base", 81.5, 95.1, 86.53, 180.34,
     "videomae-base-finetuned-kinetics.safetensors", "hf://MCG-NJU/videomae-base-finetuned-kinetics"),
    ("videomae_large_k400", "VideoMAE-L", "kinetics400", "videomae_large", 85.2, 96.8, 304.27, 596.83,
     "videomae-large-finetuned-kinetics.safetensors", "hf://MCG-NJU/videomae-large-finetuned-kinetics"),
    ("videomae_huge_k400", "VideoMAE-H", "kinetics400", "videomae_huge", 86.6, 97.1, 632.12, 1190.99,
     "videomae-huge-finetuned-kinetics.safetensors", "hf://MCG-NJU/videomae-huge-finetuned-kinetics"),
    ("videomae_small_ssv2", "VideoMAE-S", "ssv2", "videomae_small", 66.8, 90.3, 21.95, 56.88, "videomae_small_ssv2.pth",
     "https://drive.usercontent.google.com/download?id=1ajlMrT06jiiM-5YjNI2X_UFyzsuYbbtZ&export=download&confirm=t"),
    ("videomae_base_ssv2", "VideoMAE-B", "ssv2", "videomae_base", 70.8, 92.4, 86.36, 180.34,
     "videomae-base-finetuned-ssv2.safetensors", "hf://MCG-NJU/videomae-base-finetuned-ssv2"),
    ("videomae_v2_small_k710", "VideoMAE V2-S, distilled", "kinetics710", "videomae_small", 77.6, None, 22.15, 56.88,
     "vit_s_k710_dl_from_giant.pth", "hf://OpenGVLab/VideoMAE2/distill/vit_s_k710_dl_from_giant.pth"),
    ("videomae_v2_base_k710", "VideoMAE V2-B, distilled", "kinetics710", "videomae_base", 81.5, None, 86.77, 180.35,
     "vit_b_k710_dl_from_giant.pth", "hf://OpenGVLab/VideoMAE2/distill/vit_b_k710_dl_from_giant.pth"),
)  # fmt: skip
_K400 = {"videomae_v2_small_k710": 83.7, "videomae_v2_base_k710": 86.6}

# name, title, model, frames and side of its clips, millions of parameters, multiply-accumulates in G, file
_ENCODERS: tuple[tuple[str, str, str, int, int, float, float, str], ...] = (
    ("vjepa2_large", "V-JEPA 2-L", "vjepa2_large", 64, 256, 303.89, 5785.32, "vitl.pt"),
    ("vjepa2_huge", "V-JEPA 2-H", "vjepa2_huge", 64, 256, 631.65, 10667.6, "vith.pt"),
    ("vjepa2_giant", "V-JEPA 2-g", "vjepa2_giant", 64, 256, 1012.17, 15844.7, "vitg.pt"),
    ("vjepa2_giant_384", "V-JEPA 2-g, 384", "vjepa2_giant_384", 64, 384, 1012.17, 56910.6, "vitg-384.pt"),
    ("vjepa2_1_base", "V-JEPA 2.1-B", "vjepa2_1_base", 64, 384, 86.83, 7849.32, "vjepa2_1_vitb_dist_vitG_384.pt"),
    ("vjepa2_1_large", "V-JEPA 2.1-L", "vjepa2_1_large", 64, 384, 304.68, 22294.1, "vjepa2_1_vitl_dist_vitG_384.pt"),
    ("vjepa2_1_giant", "V-JEPA 2.1-g", "vjepa2_1_giant", 64, 384, 1013.27, 56910.6, "vjepa2_1_vitg_384.pt"),
    ("vjepa2_1_gigantic", "V-JEPA 2.1-G", "vjepa2_1_gigantic", 64, 384, 1845.22, 88237.8, "vjepa2_1_vitG_384.pt"),
)  # fmt: skip

# name, title, data, encoder's row, frames, rate, segments, levels, top-1, millions of parameters, G, file of the probe
_PROBES: tuple[tuple[Any, ...], ...] = (
    ("vjepa2_large_ssv2", "V-JEPA 2-L, probe", "ssv2", "vjepa2_large", 16, 4, 2, (), 73.7, 353.40, 1922.02,
     "ssv2-vitl-16x2x3.pt"),
    ("vjepa2_giant_384_ssv2", "V-JEPA 2-g, probe", "ssv2", "vjepa2_giant_384", 64, 2, 2, (), 77.3, 1105.67, 128078.9,
     "ssv2-vitg-384-64x2x3.pt"),
    ("vjepa2_large_diving48", "V-JEPA 2-L, probe", "diving48", "vjepa2_large", 32, 2, 4, (17, 19, 21, 23), 89.0,
     353.27, 37271.9, "diving48-vitl-256.pt"),
    ("vjepa2_giant_384_diving48", "V-JEPA 2-g, probe", "diving48", "vjepa2_giant_384", 32, 2, 4, (24, 29, 34, 39), 90.2,
     1105.49, 270349.0, "diving48-vitg-384-32x4x3.pt"),
)  # fmt: skip


def list_video_vits() -> Iterator[ZooRow]:
    """Yield the rows, encoders before the rows of their probes."""
    for name, title, data, model, top1, top5, parameters, gmacs, file, url in _VIDEOMAES:
        ssv2, v2 = data == "ssv2", data == "kinetics710"
        yield ZooRow(
            name=name, title=title, dataset=data, model=model,
            protocol=_protocol(
                16, 4, 224, clips=2 if ssv2 else 5, sampling="interleaved" if ssv2 else "by_index", rounding="down"
            ),
            file=file, family="huggingface" if file.endswith(".safetensors") else "videomae", top1=top1, top5=top5,
            parameters=parameters, gmacs=gmacs, source=_VIDEOMAE_V2 if v2 else _VIDEOMAE, urls=(url,),
            licence="MIT (code)" if v2 else "CC BY-NC 4.0",
            note=f"{_K710_CLASSES}; {_K710_TO_K400.format(_K400[name])}" if v2 else "",
        )  # fmt: skip
    encoders = {}
    for name, title, model, frames, side, parameters, gmacs, file in _ENCODERS:
        encoders[name] = ZooRow(
            name=name, title=title, dataset="unlabelled", model=model, protocol=_protocol(frames, 4, side),
            file=file, family="vjepa2", top1=None, top5=None, parameters=parameters, gmacs=gmacs, source=_VJEPA2,
            urls=(f"{_FILES}/{file}",), licence="MIT (code)", settings={"VIDEO_VIT.HEAD": "none"},
        )  # fmt: skip
        yield encoders[name]
    for name, title, data, encoder, frames, rate, segments, levels, top1, parameters, gmacs, file in _PROBES:
        yield ZooRow(
            name=name, title=title, dataset=data, model=encoder,
            protocol=_protocol(
                frames, rate, encoders[encoder].protocol.crop, num_segments=segments, rounding="whole_steps"
            ),
            file=file, family="vjepa2", top1=top1, top5=None, parameters=parameters, gmacs=gmacs, source=_VJEPA2,
            urls=(f"{_FILES}/evals/{file}",), licence="MIT (code)", encoder=encoders[encoder],
            settings={"VIDEO_VIT.PROBE_LEVELS": levels} if levels else {},
            note=f"{_DIVING48}; {_DRAWN}" if data == "diving48" else _DRAWN,
        )  # fmt: skip


def _protocol(
    frames: int, rate: int, side: int, *, clips: int = 1, sampling: Any = "by_index", num_segments: int = 1,
    rounding: Any = "up",
) -> Protocol:  # fmt: skip
    return Protocol(
        num_frames=frames, sampling_rate=rate, crop=side, clips=clips, crops=3, aggregate="probabilities",
        sampling=sampling, num_segments=num_segments, crop_rounding=rounding, short_side=(side, side * 5 // 4),
        **_IMAGENET,
    )  # fmt: skip
