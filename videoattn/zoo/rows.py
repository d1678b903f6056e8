"""The rows of the model zoo. Accuracies are the publishers'; parameters and multiply-accumulates are counted here."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from videoattn.zoo.protocol import Dataset, Protocol, ZooRow, locate_probe, locate_weights
from videoattn.zoo.video_vits import list_video_vits

_TIMESFORMER = "https://github.com/facebookresearch/TimeSformer"
_SLOWFAST = "https://github.com/facebookresearch/SlowFast/blob/main/MODEL_ZOO.md"
_PYTORCHVIDEO = "https://github.com/facebookresearch/pytorchvideo/blob/main/docs/source/model_zoo.md"
_TORCHVISION = "https://docs.pytorch.org/vision/stable/models/video_mvit.html"
_FAIR = "https://dl.fbaipublicfiles.com/pyslowfast"
_TITLES: dict[Dataset, str] = {"kinetics400": "K400", "kinetics600": "K600", "ssv2": "SSv2", "motion": "Motion"}
_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_FAMILIES = {_SLOWFAST: "slowfast", _PYTORCHVIDEO: "pytorchvideo", _TORCHVISION: "torchvision"}
_LICENCES = {_SLOWFAST: "Apache 2.0", _PYTORCHVIDEO: "Apache 2.0", _TORCHVISION: "BSD 3-Clause (code)"}
_BGR = "frames are fed as BGR, as the weights saw them"
_FIRST_CLIP = "the single clip is the video's first, as the released code samples, not the middle one of the paper"

# size: model, frames, crop
_TIMESFORMERS = {
    "base": ("timesformer_base", 8, 224),
    "hr": ("timesformer_base_hr", 16, 448),
    "l": ("timesformer_base_l", 96, 224),
}
# size, data, Dropbox folder, file, top-1, top-5, millions of parameters, multiply-accumulates in G
_TIMESFORMER_FILES: tuple[tuple[str, Dataset, str, str, float, float, float, float], ...] = (
    ("base", "kinetics400", "g5t24we9gl5yk88", "TimeSformer_divST_8x32_224_K400.pyth", 77.9, 93.2, 121.57, 195.70),
    ("hr", "kinetics400", "6f0x172lpqy3oxt", "TimeSformer_divST_16x16_448_K400.pyth", 79.6, 94.0, 122.02, 1702.39),
    ("l", "kinetics400", "r1iuxahif3sgimo", "TimeSformer_divST_96x4_224_K400.pyth", 80.6, 94.7, 121.63, 2377.86),
    ("base", "kinetics600", "4h2qt41m2z3aqrb", "TimeSformer_divST_8x32_224_K600.pyth", 79.1, 94.4, 121.72, 195.70),
    ("hr", "kinetics600", "ft1e92g2vhvxecv", "TimeSformer_divST_16x16_448_K600.pyth", 81.8, 95.8, 122.18, 1702.39),
    ("l", "kinetics600", "857rx6xeclxfhdg", "TimeSformer_divST_96x4_224_K600.pyth", 82.2, 95.6, 121.79, 2377.86),
    ("base", "ssv2", "tybhuml57y24wpm", "TimeSformer_divST_8_224_SSv2.pyth", 59.1, 85.6, 121.39, 195.70),
    ("hr", "ssv2", "9t68uzk8w2fpfnv", "TimeSformer_divST_16_448_SSv2.pyth", 61.8, 86.9, 121.85, 1702.39),
    ("l", "ssv2", "3f1rm2al8mhprwa", "TimeSformer_divST_64_224_SSv2.pyth", 62.0, 87.5, 121.44, 1577.87),
)
_SHORT_NAMES: dict[Dataset, str] = {"kinetics400": "k400", "kinetics600": "k600", "ssv2": "ssv2", "motion": "motion"}


def _timesformers() -> Iterator[ZooRow]:
    for size, dataset, folder, file, top1, top5, parameters, gmacs in _TIMESFORMER_FILES:
        model, frames, crop = _TIMESFORMERS[size]
        ssv2 = dataset == "ssv2"
        yield ZooRow(
            name=f"timesformer_{size}_{_SHORT_NAMES[dataset]}",
            title=f"TimeSformer{'' if size == 'base' else f'-{size.upper()}'}",
            dataset=dataset,
            model=model,
            protocol=Protocol(
                num_frames=64 if ssv2 and size == "l" else frames, sampling_rate={8: 32, 16: 16, 96: 4}[frames],
                crop=crop, clips=1, crops=3, aggregate="logits", sampling="segments" if ssv2 else "dense",
                short_side=(448, 512) if crop == 448 else (256, 320), channel_order="BGR" if ssv2 else "RGB",
            ),
            file=file,
            family="timesformer",
            top1=top1,
            top5=top5,
            parameters=parameters,
            gmacs=gmacs,
            source=_TIMESFORMER,
            licence="CC BY-NC 4.0",
            urls=(f"https://www.dropbox.com/s/{folder}/{file}?dl=1",),
            note=_BGR if ssv2 else _FIRST_CLIP,
        )  # fmt: skip


# name, title, data, model, frames, rate, crop, clips, crops, top-1, top-5, parameters, G, source, file, url
_MVITS: tuple[tuple[Any, ...], ...] = (
    ("mvit_v1_b_16x4_k400", "MViTv1-B 16x4", "kinetics400", "mvit_v1_b", 16, 4, 224, 5, 1, 78.4, 93.5, 36.61, 70.60,
     _SLOWFAST, "MViT_B_16x4_K400.pyth",
     "https://drive.usercontent.google.com/download?id=194gJinVejq6A1FmySNKQ8vAN5-FOY-QL&export=download&confirm=t"),
    ("mvit_v1_b_32x3_k400", "MViTv1-B 32x3", "kinetics400", "mvit_v1_b_32x3", 32, 3, 224, 5, 1, 80.4, 94.8, 53.12,
     235.78, _SLOWFAST, "MViT_B_32x3_K400.pyth", f"{_FAIR}/model_zoo/mvit/k400.pyth"),
    ("mvit_v1_b_32x3_k600", "MViTv1-B 32x3", "kinetics600", "mvit_v1_b_32x3", 32, 3, 224, 5, 1, 83.9, 96.5, 53.27,
     235.78, _SLOWFAST, "MViT_B_32x3_K600.pyth", f"{_FAIR}/model_zoo/mvit/k600.pyth"),
    ("mvit_v2_s_16x4_k400", "MViTv2-S 16x4", "kinetics400", "mvit_v2_s", 16, 4, 224, 5, 1, 81.0, 94.6, 34.54, 64.22,
     _SLOWFAST, "MViTv2_S_16x4_k400_f302660347.pyth", f"{_FAIR}/model_zoo/mvitv2/pysf_video_models/"),
    ("mvit_v2_b_32x3_k400", "MViTv2-B 32x3", "kinetics400", "mvit_v2_b", 32, 3, 224, 5, 1, 82.9, 95.7, 51.23, 224.47,
     _SLOWFAST, "MViTv2_B_32x3_k400_f304025456.pyth", f"{_FAIR}/model_zoo/mvitv2/pysf_video_models/"),
    ("mvit_v2_l_40x3_k400", "MViTv2-L 40x3", "kinetics400", "mvit_v2_l", 40, 3, 312, 5, 3, 86.1, 97.0, 213.39, 2823.4,
     _SLOWFAST, "MViTv2_L_40x3_k400_f306903192.pyth", f"{_FAIR}/model_zoo/mvitv2/pysf_video_models/"),
    ("mvit_v2_s_16x4_ssv2", "MViTv2-S 16x4", "ssv2", "mvit_v2_s", 16, 4, 224, 1, 3, 68.2, 91.4, 34.36, 64.22,
     _SLOWFAST, "MViTv2_S_16x4_ssv2_f308341823.pyth", f"{_FAIR}/model_zoo/mvitv2/pysf_video_models/"),
    ("mvit_v2_b_32x3_ssv2", "MViTv2-B 32x3", "ssv2", "mvit_v2_b", 32, 3, 224, 1, 3, 70.5, 92.7, 51.06, 224.47,
     _SLOWFAST, "MViTv2_B_32x3_ssv2_f305803282.pyth", f"{_FAIR}/model_zoo/mvitv2/pysf_video_models/"),
    ("mvit_v2_l_40x3_ssv2", "MViTv2-L 40x3", "ssv2", "mvit_v2_l", 40, 3, 312, 1, 3, 73.3, 94.1, 213.13, 2823.4,
     _SLOWFAST, "MViTv2_L_40x3_ssv2_f309603968.pyth", f"{_FAIR}/model_zoo/mvitv2/pysf_video_models/"),
    ("mvit_v1_b_16x4_k400_pytorchvideo", "MViTv1-B 16x4", "kinetics400", "mvit_v1_b", 16, 4, 224, 5, 1, 78.85, 93.85,
     36.61, 70.60, _PYTORCHVIDEO, "MVIT_B_16x4.pyth",
     "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/MVIT_B_16x4.pyth"),
    ("mvit_v1_b_32x3_k400_pytorchvideo", "MViTv1-B 32x3, depth 16", "kinetics400", "mvit_v1_b_32x3_depth16", 32, 3, 224,
     5, 1, 80.3, 94.69, 36.61, 169.96, _PYTORCHVIDEO, "MVIT_B_32x3_f294077834.pyth",
     "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/MVIT_B_32x3_f294077834.pyth"),
    ("mvit_v1_b_16x4_k400_torchvision", "MViTv1-B 16x4", "kinetics400", "mvit_v1_b", 16, 4, 224, 5, 1, 78.477, 93.582,
     36.61, 70.60, _TORCHVISION, "mvit_v1_b-dbeb1030.pth", "https://download.pytorch.org/models/mvit_v1_b-dbeb1030.pth"),
    ("mvit_v2_s_16x4_k400_torchvision", "MViTv2-S 16x4", "kinetics400", "mvit_v2_s", 16, 4, 224, 5, 1, 80.757, 94.665,
     34.54, 64.22, _TORCHVISION, "mvit_v2_s-ae3be167.pth", "https://download.pytorch.org/models/mvit_v2_s-ae3be167.pth"),
)  # fmt: skip
_DEPTH = "the file may hold the model of depth 16 that pytorchvideo calls by the same name; its depth is checked"


def _mvits() -> Iterator[ZooRow]:
    for row in _MVITS:
        name, title, dataset, model, frames, rate, crop, clips, crops, top1, top5, parameters, gmacs = row[:13]
        source, file, url = row[13:]
        ssv2 = dataset == "ssv2"
        protocol = Protocol(
            num_frames=frames, sampling_rate=rate, crop=crop, clips=clips, crops=crops, aggregate="probabilities",
            sampling="segments" if ssv2 else "dense", spread=not ssv2,
            short_side=(356, 446) if crop == 312 else (256, 320), **(_IMAGENET if crop == 312 else {}),
        )  # fmt: skip
        note = _DEPTH if model == "mvit_v1_b_32x3" else ""
        if source == _TORCHVISION:
            note = (
                "torchvision's own number is from its evaluation: 7.5 frames a second, and clips cut apart beforehand"
            )
        url = url + file if url.endswith("/") else url
        yield ZooRow(
            name=name, title=title, dataset=dataset, model=model, protocol=protocol, file=file,
            family=_FAMILIES[source], top1=top1, top5=top5, parameters=parameters, gmacs=gmacs, source=source,
            licence=_LICENCES[source], urls=(url,), note=note,
        )  # fmt: skip


_OUR_LICENCE = "Apache 2.0"
_CLIPS = ("--num-train", "1", "--num-val", "400", "--size", "32x32")
_SMALL: dict[str, object] = {
    "TIMESFORMER.PATCH_SIZE": 8, "TIMESFORMER.EMBED_DIM": 48, "TIMESFORMER.DEPTH": 3, "TIMESFORMER.NUM_HEADS": 4,
    "DATA.TARGET_FPS": 10.0,
}  # fmt: skip
# method, its settings, the study's name of it, top-1, millions of parameters, multiply-accumulates in G
_MOTION: tuple[tuple[str, dict[str, object], str, float, float, float], ...] = (
    ("dense", {}, "divided", 91.75, 0.131384, 0.017333),
    ("fibonacci", {"ATTENTION.TIME.NAME": "fibonacci"}, "divided_fibonacci_time", 98.5, 0.131384, 0.017186),
    ("lisa", {"ATTENTION.TIME.NAME": "lisa"}, "divided_lisa_time", 98.75, 0.133400, 0.017505),
    (
        "focused_linear",
        {"ATTENTION.TIME.NAME": "focused_linear"},
        "divided_focused_linear_time",
        99.0,
        0.132896,
        0.017591,
    ),
    ("skipat", {"ATTENTION.SKIP.TIME": (1,)}, "divided_skipat_time", 97.75, 0.131819, 0.017292),
)


_SMALL_MVIT: dict[str, object] = {
    "MVIT.ATTENTION_TYPE": "divided", "MVIT.PATCH_KERNEL": (3, 7, 7), "MVIT.PATCH_STRIDE": (1, 4, 4),
    "MVIT.PATCH_PADDING": (1, 3, 3), "MVIT.EMBED_DIM": 16, "MVIT.DEPTH": 3, "MVIT.NUM_HEADS": 1,
    "MVIT.DIM_MUL": ((1, 2.0), (2, 2.0)), "MVIT.HEAD_MUL": ((1, 2.0), (2, 2.0)),
    "MVIT.POOL_Q_STRIDE": ((1, 1, 2, 2), (2, 1, 2, 2)), "MVIT.POOL_KV_STRIDE_ADAPTIVE": (1, 4, 4),
    "MVIT.POOL_KVQ_KERNEL": (3, 3, 3), "MVIT.SEP_POS_EMBED": True, "ATTENTION.TIME.NAME": "fibonacci",
    "ATTENTION.SPACE.NAME": "fibonacci", "DATA.TARGET_FPS": 10.0,
}  # fmt: skip
# by file in model_zoo/
_CHECKSUMS = {
    "motion_mvit_fibonacci.safetensors": "696630013e2fd1ca333c82173fc5afb20027f30a9fbc44e6a5fbdb23d2215f8a",
    "motion_timesformer_dense.safetensors": "0a64794bfd298dd8959cb0f96c1a84ea267985b6fa1ad221cbc0ab0c561030ed",
    "motion_timesformer_fibonacci.safetensors": "edcb78c77fb600c46967035f2c38a1a9c8ff7c2fdf2cf2acb0edf714aac3ddcc",
    "motion_timesformer_focused_linear.safetensors": "9223f7296a145471175a33dd286554f82c0126e88913f4774d700267e99a4b1d",
    "motion_timesformer_lisa.safetensors": "7ed028b8163bab0c2daa4b24db6de3b2528c066b0983bfd95d664af65db7cdae",
    "motion_timesformer_skipat.safetensors": "03c7a578e4d1340e50e5d1adf59cbc865e465630dc0f8062c32802239e7dc0f4",
}
_MOTION_PROTOCOL = Protocol(
    num_frames=8, sampling_rate=2, crop=32, clips=3, crops=1, aggregate="logits", spread=True, short_side=(32, 32)
)


def _ours() -> Iterator[ZooRow]:
    yield ZooRow(
        name="motion_mvit_fibonacci",
        title="small divided MViT, fibonacci along time and space",
        dataset="motion",
        model="mvit",
        protocol=_MOTION_PROTOCOL,
        file="motion_mvit_fibonacci.safetensors",
        sha256=_CHECKSUMS["motion_mvit_fibonacci.safetensors"],
        family="videoattn",
        top1=98.5,
        top5=None,
        parameters=0.111768,
        gmacs=0.019030,
        source="configs/Motion/mvit_divided_fibonacci_small.yaml",
        licence=_OUR_LICENCE,
        settings=_SMALL_MVIT,
        trained_by="python tools/train_net.py --cfg configs/Motion/mvit_divided_fibonacci_small.yaml",
        clips_from=_CLIPS,
    )
    for method, settings, name, top1, parameters, gmacs in _MOTION:
        yield ZooRow(
            name=f"motion_timesformer_{method}",
            title=f"small TimeSformer, {'dense' if method == 'dense' else f'{method} along time'}",
            dataset="motion",
            model="timesformer_tiny",
            protocol=_MOTION_PROTOCOL,
            file=f"motion_timesformer_{method}.safetensors",
            sha256=_CHECKSUMS[f"motion_timesformer_{method}.safetensors"],
            family="videoattn",
            top1=top1,
            top5=None,
            parameters=parameters,
            gmacs=gmacs,
            source="benchmarks/motion_study.py",
            licence=_OUR_LICENCE,
            settings={**_SMALL, **settings},
            trained_by=f"python benchmarks/motion_study.py --only 'short/{name}/seed1'",
            clips_from=_CLIPS,
        )  # fmt: skip


PREFIX = "zoo:"
ZOO: dict[str, ZooRow] = {row.name: row for row in (*_timesformers(), *_mvits(), *list_video_vits(), *_ours())}


def find_row(name: str) -> ZooRow:
    """Return the row of that name. Raises ValueError with the nearest names."""
    if name in ZOO:
        return ZOO[name]
    near = difflib.get_close_matches(name, ZOO, n=3, cutoff=0.3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ";"
    raise ValueError(f"{name} is no row of the model zoo{hint} `videoattn zoo` lists all {len(ZOO)}")


def weights_file(given: str) -> Path:
    """Return the file that `given` names: a path, or zoo:NAME for the weights of a row, fetched if need be.

    For a row with a probe that is the encoder's file; `probe_file` returns the probe's. Raises ValueError for a name
    that is no row, or with what to put where when its weights can't be had.
    """
    if given.startswith(PREFIX):
        return locate_weights(find_row(given.removeprefix(PREFIX)))
    return Path(given)


def probe_file(given: str) -> Path | None:
    """Return the file of the probe of the row that `given` names by zoo:NAME, fetched if need be; None without one."""
    return locate_probe(find_row(given.removeprefix(PREFIX))) if given.startswith(PREFIX) else None
