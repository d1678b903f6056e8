import argparse
import errno
import os
import re
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
from videoattn.models.checkpoints import (
    CheckpointError,
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
    content = {"model": source.state_dict(), "args": argparse.Namespace(lr=1.0)}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="argparse.Namespace"):
        load_weights(target, tmp_path / "a.pth")
    load_weights(target, tmp_path / "a.pth", trust=True)
    assert_same(target.state_dict(), source.state_dict())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pyth", b"", "is empty"),
        ("a.pyth", b"<!DOCTYPE html>", r"was not written by torch.save, it begins with b'<!DOCTYPE html>'"),
        ("a.pyth", "short", "is cut short"),
        ("a.pyth", "short legacy", "can't be read"),
        ("a.safetensors", b"", "is not a whole safetensors file"),
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

    def fail(content: Any, target: Path, *rest: Any) -> None:
        Path(target).write_bytes(b"half of it")
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
