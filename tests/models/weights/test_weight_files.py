import argparse
import errno
import json
import os
import pickle
import random
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.models.small_models import (
    assert_same,
    released,
    save,
    small_model,
)
from videoattn.models.weights.containers import DIGEST
from videoattn.models.weights.files import read_weight_file
from videoattn.models.weights.load import (
    CheckpointError,
    from_checkpoint,
    load_weights,
    save_weights,
)


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "module.model.", "_orig_mod."])
@pytest.mark.parametrize("container", ["model_state", "state_dict", "model", "module", None])
def test_containers_and_wrappers_make_no_difference(tmp_path: Path, container: str | None, prefix: str) -> None:
    source, target = small_model(), small_model(seed=5)
    state = {prefix + name: value for name, value in released(source).items()}
    path = save({"epoch": 3, container: state} if container else state, tmp_path / "a.pyth")
    report = load_weights(target, path)
    assert_same(target.state_dict(), source.state_dict())
    assert report.family == "timesformer"
    assert sorted(report.loaded) == sorted(target.state_dict())
    assert not (report.resized or report.initialised or report.dropped)


def test_only_a_prefix_of_all_names_is_a_wrapper(tmp_path: Path) -> None:
    state = released(small_model()) | {"model.extra": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="model.extra"):
        load_weights(small_model(), save(state, tmp_path / "a.pyth"))


@pytest.mark.parametrize("suffix", [".pyth", ".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("family", ["videoattn", "timesformer", "huggingface"])
def test_saved_weights_load_again(tmp_path: Path, family: Any, suffix: str) -> None:
    source, target = small_model(), small_model(seed=5)
    path = tmp_path / f"a{suffix}"
    save_weights(source.state_dict(), path, family, num_heads=3)
    assert load_weights(target, path).family == family
    assert_same(target.state_dict(), source.state_dict())


def test_the_legacy_format_of_torch_loads(tmp_path: Path) -> None:
    source, target = small_model(), small_model(seed=5)
    torch.save(source.state_dict(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    load_weights(target, tmp_path / "a.pth")
    assert_same(target.state_dict(), source.state_dict())


def test_averaged_weights_are_taken_as_asked(tmp_path: Path) -> None:
    raw, averaged, target = small_model(seed=1), small_model(seed=2), small_model(seed=3)
    content = {"epoch": 1, "model_state": raw.state_dict(), "ema_state": averaged.state_dict()}
    path = save(content, tmp_path / "a.pyth")
    assert load_weights(target, path).ema
    assert_same(target.state_dict(), averaged.state_dict())
    assert not load_weights(target, path, ema=False).ema
    assert_same(target.state_dict(), raw.state_dict())
    bare = save(raw.state_dict(), tmp_path / "b.pyth")
    assert not load_weights(target, bare).ema
    with pytest.raises(CheckpointError, match=r"b\.pyth holds no averaged weights"):
        load_weights(target, bare, ema=True)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["PAYLOAD"],)


def test_a_pickle_that_needs_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAYLOAD", str(tmp_path / "ran"))
    path = save({"model": small_model().state_dict(), "args": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))} needs code.*\(\w+\.mkdir\).*trust=True"):
        load_weights(small_model(), path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_harmless_pickle_loads_when_trusted(tmp_path: Path, zipped: bool) -> None:
    source, target = small_model(), small_model(seed=5)
    content = {"model": source.state_dict(), "args": Path("data")}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"pathlib\.\w*Path"):
        load_weights(target, tmp_path / "a.pth")
    load_weights(target, tmp_path / "a.pth", trust=True)
    assert_same(target.state_dict(), source.state_dict())


@pytest.mark.parametrize("zipped", [True, False])
def test_arguments_of_a_command_line_beside_the_tensors_are_stepped_over(tmp_path: Path, zipped: bool) -> None:
    source, target = small_model(), small_model(seed=5)
    content = {"model": source.state_dict(), "args": argparse.Namespace(lr=1.0, layers=[1, 2])}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    load_weights(target, tmp_path / "a.pth")
    assert_same(target.state_dict(), source.state_dict())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pyth", b"", "is empty"),
        ("a.pyth", b"<!DOCTYPE html>", "is an HTML page, expected a file of torch.save or safetensors"),
        ("a.safetensors", b"<!DOCTYPE html>", "is an HTML page, expected a file of torch.save or safetensors"),
        ("a.safetensors", b'{"error": "gone"}', 'is JSON that begins with \'{"error": "gone"}\''),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer; `git lfs pull` fetches"),
        ("a.pth", b"\x1f\x8b\x08 gz", "is compressed with gzip; unpack it first"),
        ("a.tar", b"sys_info".ljust(257, b"\0") + b"ustar", "is a tar archive; unpack it first"),
        ("a.pth", b"\xc8\x07\x63", r"was not written by torch.save, it begins with b'\\xc8\\x07c'"),
        ("a.pth", pickle.dumps({"w": 1}), "is a pickle, expected a file of torch.save or safetensors"),
        ("a.pyth", "short", "is damaged or cut short"),
        ("a.pyth", "short legacy", "can't be read"),
        ("a.safetensors", b"", "is empty"),
        ("a.safetensors", "short", "is not a whole safetensors file"),
        ("a.pyth", {"model_state": {}}, "holds no tensor"),
        ("a.pyth", [1, 2], "holds a list, expected tensors by name"),
        ("a.pyth", {"epoch": 3, "weights": "x"}, r"holds also epoch \(int\), weights \(str\)"),
        ("a.pyth", {"layer.weight": torch.ones(2)}, "expected a TimeSformer .* got layer.weight"),
        ("missing.pyth", None, "no such file"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        if path.suffix == ".safetensors":
            save_weights(small_model().state_dict(), path)
        else:
            torch.save(small_model().state_dict(), path, _use_new_zipfile_serialization=content == "short")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}.*{message}"):
        load_weights(small_model(), path)


@pytest.mark.parametrize(
    ("suffix", "writer"), [(".pyth", "torch.save"), (".safetensors", "safetensors.torch.save_file")]
)
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, writer: str
) -> None:
    path = tmp_path / f"a{suffix}"
    old = small_model()
    save_weights(old.state_dict(), path)

    def fail(content: Any, target: Any, *rest: Any) -> None:
        if isinstance(target, Path):
            target.write_bytes(b"half of it")
        else:
            target.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, fail)
    with pytest.raises(OSError, match=re.escape(f"can't write {path}: No space left")):
        save_weights(small_model(seed=9).state_dict(), path)
    assert os.listdir(tmp_path) == [path.name]
    target = small_model(seed=5)
    load_weights(target, path)
    assert_same(target.state_dict(), old.state_dict())


def test_saved_files_hold_what_their_readers_expect(tmp_path: Path) -> None:
    state = small_model().state_dict()
    save_weights(state, tmp_path / "a.pyth", "timesformer", num_heads=3)
    content = torch.load(tmp_path / "a.pyth")
    assert all(name.startswith("model.") for name in content["model_state"])
    save_weights(state, tmp_path / "a.safetensors")
    assert_same(safetensors.torch.load_file(tmp_path / "a.safetensors"), state)
    with pytest.raises(ValueError, match=r"a\.txt: expected a name that ends in \.safetensors"):
        save_weights(state, tmp_path / "a.txt")
    with pytest.raises(ValueError, match="num_heads is needed"):
        save_weights(state, tmp_path / "a.pyth", "huggingface")


@pytest.mark.parametrize("suffix", [".pyth", ".safetensors"])
def test_a_flipped_bit_is_found(tmp_path: Path, suffix: str) -> None:
    state, path, rng = small_model().state_dict(), tmp_path / f"a{suffix}", random.Random(0)
    save_weights(state, path, cfg="DATA: {NUM_FRAMES: 4}")
    whole = path.read_bytes()
    refused = 0
    for position in [*range(0, 400, 20), *rng.sample(range(len(whole)), 40), *range(len(whole) - 60, len(whole), 4)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            tensors = read_weight_file(path).tensors
        except CheckpointError as error:
            assert str(error).startswith(str(path))
            refused += 1
        else:
            assert_same(tensors, state)  # it was in a place without meaning, such as a date
    assert refused > 50


def test_the_same_weights_make_the_same_archive(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_weights(small_model().state_dict(), tmp_path / f"{name}.pyth")
    assert (tmp_path / "a.pyth").read_bytes() == (tmp_path / "b.pyth").read_bytes()


def test_a_digest_covers_tensors_and_notes_and_files_without_one_are_read(tmp_path: Path) -> None:
    state, path = small_model().state_dict(), tmp_path / "a.safetensors"
    save_weights(state, path, num_heads=3)
    with safetensors.safe_open(path, framework="pt") as file:
        notes = file.metadata()
    first = next(iter(state))
    changed_state = {**state, first: state[first] + 1}
    swapped = {**state, "blocks.0.norm_mlp.bias": state["blocks.1.norm_mlp.bias"],
               "blocks.1.norm_mlp.bias": state["blocks.0.norm_mlp.bias"]}  # fmt: skip
    for tensors, metadata in ((changed_state, notes), (swapped, notes), (state, {**notes, "num_heads": "6"})):
        safetensors.torch.save_file(tensors, path, metadata)
        with pytest.raises(
            CheckpointError, match=f"^{re.escape(str(path))} is damaged: its tensors or notes .*{DIGEST}"
        ):
            read_weight_file(path)
        safetensors.torch.save_file(tensors, path, {k: v for k, v in metadata.items() if k != DIGEST})
        assert_same(read_weight_file(path).tensors, tensors)


def test_every_type_of_tensor_has_a_digest(tmp_path: Path) -> None:
    types = (torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.uint8, torch.bool)
    state = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in types}
    state |= {"scalar": torch.tensor(3.0), "none": torch.ones(0, 4), "turned": torch.arange(6.0).reshape(2, 3).t()}
    save_weights(state, tmp_path / "a.safetensors")
    found = read_weight_file(tmp_path / "a.safetensors").tensors
    assert {name: value.dtype for name, value in found.items()} == {name: v.dtype for name, v in state.items()}
    assert all(torch.equal(found[name].double(), value.double()) for name, value in state.items())


@pytest.mark.parametrize(
    ("written", "named"), [(".pyth", ".safetensors"), (".safetensors", ".pth"), (".pyth", ".ckpt")]
)
def test_the_content_says_how_a_file_is_read_not_its_ending(tmp_path: Path, written: str, named: str) -> None:
    source, target = small_model(), small_model(seed=5)
    save_weights(source.state_dict(), tmp_path / f"a{written}")
    load_weights(target, (tmp_path / f"a{written}").rename(tmp_path / f"b{named}"))
    assert_same(target.state_dict(), source.state_dict())


def repack(source: Path, target: Path, compression: int = zipfile.ZIP_STORED, leave_out: str = "?") -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for member in old.infolist():
            if not member.filename.endswith(leave_out):
                new.writestr(member.filename, old.read(member))
    return target


def test_a_compressed_archive_loads_the_same_numbers(tmp_path: Path) -> None:
    source, target = small_model(), small_model(seed=5)
    path = save(source.state_dict(), tmp_path / "a.pyth")
    load_weights(target, repack(path, tmp_path / "b.pyth", zipfile.ZIP_DEFLATED))
    assert_same(target.state_dict(), source.state_dict())


def test_archives_of_other_programs_are_named(tmp_path: Path) -> None:
    path = save(small_model().state_dict(), tmp_path / "a.pyth")
    other = repack(path, tmp_path / "b.pyth", leave_out="data.pkl")
    with pytest.raises(CheckpointError, match=r"b\.pyth is a zip archive that torch\.save did not write"):
        load_weights(small_model(), other)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/constants.pkl", b"")
    with pytest.raises(CheckpointError, match=r"a\.pyth is a TorchScript program"):
        load_weights(small_model(), path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_a_later_protocol_is_refused_without_advice_to_run_it(tmp_path: Path, zipped: bool) -> None:
    source, target, path = small_model(), small_model(seed=5), tmp_path / "a.pth"
    torch.save(source.state_dict(), path, pickle_protocol=4, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"a\.pth needs code to be loaded \(pickle protocol 4 or 5\)"):
        load_weights(target, path)
    load_weights(target, path, trust=True)
    assert_same(target.state_dict(), source.state_dict())


@pytest.mark.parametrize("damage", [b"\xff", b"R", b"\x95", b"c"])
def test_a_damaged_pickle_is_named_and_nobody_is_told_to_run_it(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "a.pth"
    torch.save(small_model().state_dict(), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    middle = content.index(b"OrderedDict")
    path.write_bytes(content[: middle - 20] + damage * 40 + content[middle + 20 :])
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))} ") as caught:
        load_weights(small_model(), path)
    assert "Re-running" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda ones: ones.to_sparse(), "torch.sparse_coo"),
        (lambda ones: ones.to("meta"), "without data"),
        (lambda ones: torch.quantize_per_tensor(ones, 1.0, 0, torch.qint8), "quantized Tensor, torch.qint8"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*[Qq]uanti|.*TypedStorage")
def test_tensors_that_hold_no_plain_numbers_are_named(tmp_path: Path, make: Any, kind: str) -> None:
    path = save({"model_state": {"cls_token": make(torch.ones(3))}}, tmp_path / "a.pyth")
    with pytest.raises(CheckpointError, match=rf"a\.pyth holds also cls_token \(.*{kind}"):
        read_weight_file(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"<html>", "is not JSON .*the file is an HTML page"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        ({"num_attention_heads": "three"}, "says num_attention_heads 'three', expected positive whole numbers"),
        ({"image_size": [16, 16, 16]}, r"says image_size \[16, 16, 16\]"),
        ({"num_frames": 0}, "says num_frames 0"),
    ],
)
def test_a_damaged_config_beside_the_weights_is_named(tmp_path: Path, config: Any, message: str) -> None:
    save_weights(small_model().state_dict(), tmp_path / "model.safetensors", "huggingface", num_heads=3)
    said = config if isinstance(config, bytes) else json.dumps({"model_type": "timesformer", **config}).encode()
    (tmp_path / "config.json").write_bytes(said)
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(tmp_path / 'config.json'))}.*{message}"):
        from_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ("DATA: {NUM_FRAMES: many, TRAIN_CROP_SIZE: 224}", "says DATA.NUM_FRAMES 'many'"),
        ("TIMESFORMER: {NUM_HEADS: [3]}", r"says TIMESFORMER.NUM_HEADS \[3\]"),
        ("DATE: 2001-99-99", "is not YAML"),
        ("A: " + "[" * 600, "is not YAML"),
    ],
)
def test_a_damaged_cfg_is_named(tmp_path: Path, cfg: str, message: str) -> None:
    path = save({"model_state": released(small_model()), "cfg": cfg}, tmp_path / "a.pyth")
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))}: its cfg {message}"):
        from_checkpoint(path)
