"""Rows of video ViTs: sizes recomputed from formulas, and evaluation by each of their protocols from end to end."""

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.small_models import randomize
from tests.programs import run_program
from videoattn.cli import zoo
from videoattn.cli.train_start import start_weights
from videoattn.data.augment.transforms import resize_short_side
from videoattn.data.build import read_videos
from videoattn.data.readers.open_video import open_video
from videoattn.layers.attention import count_heads
from videoattn.models import MODELS, build_model
from videoattn.models.video_vit.model import VideoViT
from videoattn.models.video_vit.names import from_ours
from videoattn.models.weights.departures import refuse_replaced_attention
from videoattn.models.weights.load import from_checkpoint
from videoattn.zoo.prepare import prepare_row
from videoattn.zoo.protocol import Protocol, ZooRow
from videoattn.zoo.rows import ZOO, find_row, probe_file, weights_file
from videoattn.zoo.video_vits import list_video_vits


class Size(NamedTuple):
    """Width, blocks and MLP of an encoder, and its publisher's count of millions of parameters."""

    width: int
    depth: int
    mlp: int
    published: int
    norms: int = 1


# VideoMAE: its paper's table, classifiers of 400 classes; V-JEPA 2: its README, of one digit; 2.1: 87 M, and as for 2
SIZES = {
    "videomae_small": Size(384, 12, 1536, 22),
    "videomae_base": Size(768, 12, 3072, 87),
    "videomae_large": Size(1024, 24, 4096, 305),
    "videomae_huge": Size(1280, 32, 5120, 633),
    "vjepa2_large": Size(1024, 24, 4096, 300),
    "vjepa2_huge": Size(1280, 32, 5120, 600),
    "vjepa2_giant": Size(1408, 40, 6144, 1000),
    "vjepa2_giant_384": Size(1408, 40, 6144, 1000),
    "vjepa2_1_base": Size(768, 12, 3072, 87, 4),
    "vjepa2_1_large": Size(1024, 24, 4096, 300, 4),
    "vjepa2_1_giant": Size(1408, 40, 6144, 1000, 4),
    "vjepa2_1_gigantic": Size(1664, 48, 8192, 2000, 4),
}
PUBLISHED_GMACS = {"small": 57, "base": 180, "large": 597, "huge": 1192}  # VideoMAE's paper, of a view
QUICK = ("videomae_small", "videomae_base", "vjepa2_1_base")
VIDEO_ROWS = {row.name: row for row in list_video_vits()}


def linear(rows: int, columns: int, bias: bool = True) -> int:
    return rows * columns + (rows if bias else 0)


def encoder_parameters(name: str) -> int:
    """Count the parameters of an encoder with its norms: of the published tensors, one by one."""
    c, depth, mlp, *_, norms = SIZES[name]
    videomae, modality = name.startswith("videomae"), name.startswith("vjepa2_1")
    qkv = 3 * c * c + (2 * c if videomae else 3 * c)
    block = 2 * (2 * c) + qkv + linear(c, c) + linear(mlp, c) + linear(c, mlp)
    patches = linear(c, 3 * 2 * 16 * 16) + (linear(c, 3 * 16 * 16) + 2 * c if modality else 0)
    return patches + depth * block + norms * 2 * c


def probe_parameters(c: int, num_classes: int) -> int:
    self_block = 2 * (2 * c) + linear(3 * c, c) + linear(c, c) + linear(4 * c, c) + linear(c, 4 * c)
    cross = 2 * (2 * c) + linear(c, c) + linear(2 * c, c) + linear(4 * c, c) + linear(c, 4 * c)
    return c + 3 * self_block + cross + linear(num_classes, c)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in SIZES])
def test_named_sizes_have_as_many_parameters_as_their_publisher_says(name: str) -> None:
    videomae = name.startswith("videomae")
    with torch.device("meta"):
        model: Any = MODELS[name]() if videomae else MODELS[name](head="none")
    counted = sum(parameter.numel() for parameter in model.parameters())
    published = SIZES[name].published
    if videomae:
        assert counted == encoder_parameters(name) + linear(400, SIZES[name].width)
        assert abs(counted / 1e6 - published) < 1  # the paper rounds up
    else:
        assert counted == encoder_parameters(name)
        digits = 2 if published == 87 else 1
        assert float(f"{counted / 1e6:.{digits}g}") == published


def test_multiply_accumulates_of_videomae_are_those_of_its_paper() -> None:
    for size, published in PUBLISHED_GMACS.items():
        assert find_row(f"videomae_{size}_k400").gmacs == pytest.approx(published, rel=0.003)


def test_every_named_size_is_checked() -> None:
    assert {name for name, spec in MODELS.items() if spec.model is VideoViT} == SIZES.keys()


@pytest.mark.parametrize("row", VIDEO_ROWS.values(), ids=lambda row: row.name)
def test_numbers_of_a_row_are_those_of_the_formulas(row: ZooRow) -> None:
    c, depth, mlp, *_ = SIZES[row.model]
    protocol, levels = row.protocol, len(row.settings.get("VIDEO_VIT.PROBE_LEVELS", (0,)))  # type: ignore[arg-type]
    tokens = protocol.num_frames // 2 * (protocol.crop // 16) ** 2  # of one segment
    block = tokens * (4 * c * c + 2 * c * mlp) + 2 * tokens**2 * c
    macs = protocol.num_segments * (tokens * c * 3 * 2 * 16 * 16 + depth * block)
    parameters = encoder_parameters(row.model)
    if row.model.startswith("videomae"):
        num_classes = {"kinetics400": 400, "kinetics710": 710, "ssv2": 174}[row.dataset]
        macs += c * num_classes
        parameters += linear(num_classes, c)
    elif row.encoder is not None:
        num_classes = {"ssv2": 174, "diving48": 48}[row.dataset]
        seen = protocol.num_segments * levels * tokens
        macs += 3 * (seen * 12 * c * c + 2 * seen**2 * c)
        macs += c * c + seen * 2 * c * c + 2 * seen * c + 8 * c * c + c * num_classes
        parameters += probe_parameters(c, num_classes)
    assert row.parameters == pytest.approx(parameters / 1e6, abs=0.0051)
    assert row.gmacs == pytest.approx(macs / 1e9, rel=1e-4)


def test_rows_follow_the_published_protocols() -> None:
    """Compare with the authors' scripts: (frames a view, rate, crop, clips, crops), and how frames are chosen."""
    expected = {
        "videomae_large_k400": ((16, 4, 224, 5, 3), "by_index", 1, "down"),
        "videomae_base_ssv2": ((16, 8, 224, 2, 3), "interleaved", 1, "down"),
        "videomae_v2_base_k710": ((16, 4, 224, 5, 3), "by_index", 1, "down"),
        "vjepa2_large_ssv2": ((32, 4, 256, 1, 3), "by_index", 2, "whole_steps"),
        "vjepa2_giant_384_ssv2": ((128, 2, 384, 1, 3), "by_index", 2, "whole_steps"),
        "vjepa2_large_diving48": ((128, 2, 256, 1, 3), "by_index", 4, "whole_steps"),
        "vjepa2_giant_384_diving48": ((128, 2, 384, 1, 3), "by_index", 4, "whole_steps"),
    }
    for name, (numbers, sampling, num_segments, rounding) in expected.items():
        cfg = find_row(name).config()
        data, test = cfg.data, cfg.test
        views = (test.num_ensemble_views, test.num_spatial_crops)
        assert (data.num_frames, data.sampling_rate, data.test_crop_size, *views) == numbers, name
        assert (data.sampling, data.num_segments, test.crop_rounding) == (sampling, num_segments, rounding), name
        assert data.mean == (0.485, 0.456, 0.406) and data.std == (0.229, 0.224, 0.225)
        assert test.aggregate == "probabilities" and not data.reverse_input_channel
    levels = {row.name: row.config().video_vit.probe_levels for row in VIDEO_ROWS.values() if row.dataset == "diving48"}
    assert levels == {
        "vjepa2_large_diving48": (17, 19, 21, 23), "vjepa2_giant_384_diving48": (24, 29, 34, 39),
    }  # fmt: skip
    assert {row.config().model.num_classes for row in VIDEO_ROWS.values() if row.dataset == "diving48"} == {48}


def test_encoders_are_no_rows_to_evaluate() -> None:
    with pytest.raises(ValueError, match="vjepa2_large is an encoder without classes, so there is nothing to evaluate"):
        prepare_row(find_row("vjepa2_large"))
    done = run_program("tools/test_net.py", "--zoo", "vjepa2_1_base")
    assert done.returncode == 2 and "TRAIN.CHECKPOINT_FILE_PATH zoo:vjepa2_1_base" in done.stderr


def test_licences_are_stated_for_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(row.licence for row in ZOO.values())
    zoo.main(["vjepa2_large_ssv2"])
    said = capsys.readouterr().out
    assert "licence     MIT (code)" in said
    assert "encoder     vjepa2_large: vitl.pt, from https://dl.fbaipublicfiles.com/vjepa2/vitl.pt" in said
    assert "probe       ssv2-vitl-16x2x3.pt, from https://" in said
    zoo.main([])
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == len(ZOO) + 1 and len({len(line.rstrip()) for line in listed}) <= 2


def test_clips_of_several_segments_are_named_by_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    zoo.main(["vjepa2_large_diving48"])
    said = capsys.readouterr().out
    assert "DATA.NUM_SEGMENTS 4" in said and "VIDEO_VIT.PROBE_LEVELS (17, 19, 21, 23)" in said


TINY: dict[str, object] = {
    "VIDEO_VIT.EMBED_DIM": 48, "VIDEO_VIT.DEPTH": 3, "VIDEO_VIT.NUM_HEADS": 3, "VIDEO_VIT.PATCH_SIZE": 16,
}  # fmt: skip
SMALL_PROBE: dict[str, Any] = {
    "clip_size": (4, 32, 32), "embed_dim": 48, "depth": 3, "num_heads": 3, "probe_heads": 3, "head": "attentive",
    "positions": "rope_tiled", "probe_levels": (0, 2),
}  # fmt: skip
PROBED = {**TINY, "VIDEO_VIT.PROBE_DEPTH": 1, "VIDEO_VIT.PROBE_HEADS": 4}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NUM_FRAMES = 21


def tiny_row(model: str, protocol: dict[str, Any], settings: dict[str, object], **changes: Any) -> ZooRow:
    whole = Protocol(
        **{"sampling_rate": 8, "crop": 32, "crops": 3, "aggregate": "probabilities", "short_side": (32, 40)} | protocol,
        mean=IMAGENET[0], std=IMAGENET[1],
    )  # fmt: skip
    fixed: dict[str, Any] = {
        "name": "tiny", "title": "tiny", "dataset": "kinetics710", "model": model, "file": "tiny.pth", "top1": 50.0,
        "top5": None, "parameters": 0, "gmacs": 0, "source": "", "licence": "", "family": "videomae",
    }  # fmt: skip
    return ZooRow(**fixed | changes, protocol=whole, settings=settings)


def interleaved() -> list[list[int]]:
    tick = NUM_FRAMES / 4
    both = sorted([int(tick / 2 + tick * x) for x in range(4)] + [int(tick * x) for x in range(4)])
    return [both[::2], both[1::2]]


# a row, the frames of each clip, and where its crops begin: of 41 x 32 pixels, 9 are left over
CASES: dict[str, tuple[ZooRow, list[list[int]], list[int]]] = {
    "by index": (
        tiny_row("videomae_small",
                 {"num_frames": 4, "sampling_rate": 2, "clips": 5, "sampling": "by_index", "crop_rounding": "down"},
                 TINY),
        # frames 0, 2 ... 20 are 11, which is 7 more than a clip: int(c * 7 / 4) is 0, 1, 3, 5, 7
        [list(range(2 * start, 2 * start + 8, 2)) for start in (0, 1, 3, 5, 7)],
        [0, 4, 9],
    ),
    "interleaved": (
        tiny_row("videomae_small",
                 {"num_frames": 4, "clips": 2, "sampling": "interleaved", "crop_rounding": "down"}, TINY,
                 family="huggingface", file="tiny.safetensors"),
        interleaved(),
        [0, 4, 9],
    ),
    "two segments": (
        tiny_row("vjepa2_large", {"num_frames": 4, "sampling_rate": 1, "clips": 1, "sampling": "by_index",
                                  "num_segments": 2, "crop_rounding": "whole_steps"}, PROBED, family="vjepa2"),
        # parts of 10 frames, of which a window of 4 leaves 6: linspace(3, 7, 4), the last within the window
        [[3, 4, 5, 6, 13, 14, 15, 16]],
        [0, 4, 8],
    ),
    "two segments and two levels": (
        tiny_row("vjepa2_large", {"num_frames": 4, "sampling_rate": 3, "clips": 1, "sampling": "by_index",
                                  "num_segments": 2, "crop_rounding": "whole_steps"},
                 PROBED | {"VIDEO_VIT.PROBE_LEVELS": (0, 2)}, family="vjepa2"),
        # windows of 12 frames begin at 0 and at 21 - 12: linspace(0, 11, 3), then the window's last frame but one
        [[0, 5, 10, 10, 9, 14, 19, 19]],
        [0, 4, 8],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a list of a wide and an upright video."""
    folder = tmp_path_factory.mktemp("videos")
    for name, (height, width) in {"wide": (48, 62), "upright": (62, 48)}.items():
        generator = np.random.default_rng(len(name))
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream: Any = container.add_stream("mpeg4", rate=12)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for _ in range(NUM_FRAMES):
                coarse = generator.integers(0, 256, (height // 2, width // 2, 3), dtype=np.uint8)
                picture = coarse.repeat(2, axis=0).repeat(2, axis=1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    (folder / "test.csv").write_text("wide.mp4 3\nupright.mp4 5\n")
    return folder


def views(path: Path, clips: list[list[int]], begins: list[int]) -> Tensor:
    """Return the normalised views [clips crops, 3, T, 32, 32] of a video, cut by hand."""
    with open_video(path) as reader:
        assert reader.num_frames == NUM_FRAMES
        frames = reader.read(list(range(NUM_FRAMES))).permute(0, 3, 1, 2)
    frames = resize_short_side(frames, 32)
    upright = frames.shape[-2] > frames.shape[-1]
    assert sorted(frames.shape[-2:]) == [32, 41]
    cut = [
        frames[clip][..., begin : begin + 32, :] if upright else frames[clip][..., begin : begin + 32]
        for clip in clips
        for begin in begins
    ]
    mean, std = (torch.tensor(numbers).view(3, 1, 1, 1) for numbers in IMAGENET)
    return torch.stack([(view.transpose(0, 1) / 255 - mean) / std for view in cut])


def write_published(row: ZooRow, model: VideoViT, folder: Path) -> list[str]:
    """Write a model's weights in the publisher's form, and return the options of an evaluation that name the files."""
    named = from_ours(model.state_dict(), row.family, count_heads(model))  # type: ignore[arg-type]
    probe = {name: value for name, value in named.items() if name.startswith(("pooler.", "linear."))}
    rest = {name: value for name, value in named.items() if name not in probe}
    if not probe:
        torch.save({"module": rest}, folder / row.file)
        return ["--weights", str(folder / row.file)]
    torch.save(
        {"encoder": {}, "target_encoder": {f"module.backbone.{k}": v for k, v in rest.items()}}, folder / "encoder.pt"
    )
    torch.save({"classifiers": [{f"module.{k}": v for k, v in probe.items()}], "epoch": 1}, folder / "probe.pt")
    return ["--weights", str(folder / "encoder.pt"), "--probe", str(folder / "probe.pt")]


def apart(model: VideoViT, row: ZooRow, clips: Tensor) -> Tensor:
    """Return logits [B, classes] with every segment encoded by a model of one segment."""
    with torch.device("meta"):
        small: Any = build_model(row.config(["DATA.NUM_SEGMENTS", 1, "DATA.NUM_FRAMES", row.protocol.num_frames]))
    small.to_empty(device="cpu").load_state_dict(model.state_dict())
    for name, buffer in small.named_buffers():
        buffer.copy_(dict(model.named_buffers())[name])
    segments = clips.split(row.protocol.num_frames, dim=2)
    tokens = torch.cat([small.eval().forward_head_tokens(segment) for segment in segments], dim=1)
    logits: Tensor = small.head(small.pool(tokens))
    return logits


@pytest.mark.parametrize("case", CASES)
def test_evaluation_of_a_row_follows_its_protocol(
    case: str, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, clips, begins = CASES[case]
    monkeypatch.setitem(ZOO, row.name, row)
    torch.manual_seed(0)
    model: Any = build_model(row.config())
    randomize(model)
    files = write_published(row, model.eval(), tmp_path)
    done = run_program(
        "tools/test_net.py", "--zoo", row.name, *files, "DATA.PATH_TO_DATA_DIR", videos, "DATA.PATH_PREFIX", videos,
        "DATA_LOADER.NUM_WORKERS", 0, "OUTPUT_DIR", tmp_path / "run", "DEVICE", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "too few to compare with the published 50.00 %" in done.stdout + done.stderr
    assert "not the published protocol" not in done.stdout + done.stderr
    with (tmp_path / "run/test/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name, found in zip(("wide", "upright"), rows, strict=True):
        with torch.no_grad():
            probabilities = apart(model, row, views(videos / f"{name}.mp4", clips, begins)).softmax(dim=1)
        best = probabilities.mean(dim=0).topk(5)
        assert [int(found[f"class_{place}"]) for place in range(1, 6)] == best.indices.tolist()
        scores = torch.tensor([float(found[f"score_{place}"]) for place in range(1, 6)])
        torch.testing.assert_close(scores / scores[0], best.values / best.values[0], rtol=1e-4, atol=0)
    results = json.loads((tmp_path / "run/test/results.json").read_text())
    assert results["protocol"]["num_segments"] == row.protocol.num_segments
    assert ("probe_sha256" in results["checkpoint"]) == ("--probe" in files)


def test_published_files_are_built_for_several_segments_and_levels(tmp_path: Path) -> None:
    row, *_ = CASES["two segments and two levels"]
    model: Any = build_model(row.config())
    randomize(model)
    _, encoder, _, probe = write_published(row, model.eval(), tmp_path)
    built = from_checkpoint(
        encoder, probe=probe, num_heads=3, probe_heads=4, clip_size=(8, 32, 32), num_segments=2, probe_levels=(0, 2)
    )
    clip = torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(built(clip), model(clip))
    other = from_checkpoint(encoder, probe=probe, num_heads=3, probe_heads=4, clip_size=(8, 32, 32))
    assert (other(clip) - model(clip)).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"transformers' probe sees .* those of blocks 0, 2, .* --to vjepa2"):
        refuse_replaced_attention(VideoViT(**SMALL_PROBE), "huggingface")


def test_one_message_names_both_files_of_a_row_with_a_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOATTN_CACHE", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(ValueError) as caught:
        prepare_row(find_row("vjepa2_large_diving48"))
    said = str(caught.value)
    assert f"needs vitl.pt, which is not at {tmp_path / 'vitl.pt'}" in said
    assert "\nand diving48-vitl-256.pt, its probe, from https://dl.fbaipublicfiles.com/vjepa2/evals/diving48" in said
    assert f", at {tmp_path / 'diving48-vitl-256.pt'} (or --probe FILE)" in said
    assert "needs DATA.PATH_TO_DATA_DIR FOLDER with test.csv of its test set (diving48)" in said


def test_a_row_with_a_probe_finds_both_files_in_the_cache(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDEOATTN_CACHE", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    row = CASES["two segments"][0]
    encoder = tiny_row(
        "vjepa2_large", {"num_frames": 4, "clips": 1}, {**TINY, "VIDEO_VIT.HEAD": "none"},
        name="tiny_encoder", dataset="unlabelled", file="encoder.pt", top1=None, family="vjepa2",
        urls=("https://127.0.0.1/encoder.pt",),
    )  # fmt: skip
    probed = ZooRow(**{**vars(row), "encoder": encoder, "file": "probe.pt", "urls": ("https://127.0.0.1/probe.pt",)})
    monkeypatch.setitem(ZOO, "tiny", probed)
    monkeypatch.setitem(ZOO, "tiny_encoder", encoder)
    model: Any = build_model(row.config())
    write_published(row, model, tmp_path)
    assert weights_file("zoo:tiny") == weights_file("zoo:tiny_encoder") == tmp_path / "encoder.pt"
    assert probe_file("zoo:tiny") == tmp_path / "probe.pt" and probe_file("zoo:tiny_encoder") is None
    assert probe_file("mine.pt") is None
    cfg = row.config(["TRAIN.CHECKPOINT_FILE_PATH", "zoo:tiny", "DATA.PATH_TO_DATA_DIR", str(videos)])
    started: Any = build_model(cfg)
    start_weights(cfg, started, read_videos(cfg, "test"))
    torch.testing.assert_close(started.state_dict(), model.state_dict())
    (tmp_path / "probe.pt").unlink()
    with pytest.raises(ValueError, match=r"(?s)^tiny needs probe\.pt, .*put it at .*/probe\.pt, .*: --probe FILE\)$"):
        probe_file("zoo:tiny")
    (tmp_path / "probe.pt.sha256").unlink()
    torch.save({"classifiers": [{"module.linear.weight": torch.zeros(710, 48)}]}, tmp_path / "probe.pt")
    with pytest.raises(ValueError, match=r"^tiny needs probe\.pt: .*probe\.pt is not the file that is wanted"):
        probe_file("zoo:tiny")
