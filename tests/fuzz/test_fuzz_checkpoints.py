"""Damaged files of weights: each is refused, or loads as the undamaged file does."""

import random
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.models.small_models import small_model
from videoattn.models.weights.files import read_weight_file
from videoattn.models.weights.load import CheckpointError, save_weights

pytestmark = pytest.mark.slow
FLIPS, PICKLES = 150, 150


def read(path: Path, state: dict[str, Tensor]) -> str:
    """Return what became of a file: "refused", "equal" (loaded as `state`) or "other" (loaded as something else)."""
    try:
        tensors = read_weight_file(path).tensors
    except CheckpointError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
        return "refused"
    equal = tensors.keys() == state.keys() and all(
        tensors[name].dtype == value.dtype and torch.equal(tensors[name], value) for name, value in state.items()
    )
    return "equal" if equal else "other"


@pytest.mark.parametrize("where", ["anywhere", "ends"])
@pytest.mark.parametrize("suffix", [".pyth", ".safetensors"])
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path, suffix: str, where: str) -> None:
    state, path = small_model().state_dict(), tmp_path / f"weights{suffix}"
    save_weights(state, path, num_heads=3, cfg="DATA: {NUM_FRAMES: 4, TRAIN_CROP_SIZE: 16}")
    whole, rng = path.read_bytes(), random.Random(f"{suffix} {where}")
    counts: Counter[str] = Counter()
    for _ in range(FLIPS):
        damaged = bytearray(whole)
        position = rng.randrange(len(whole))
        if where == "ends":  # headers and directories lie there
            position = rng.choice([rng.randrange(4000), len(whole) - 1 - rng.randrange(6000)])
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        counts[read(path, state)] += 1
    print(f"{FLIPS} bit flips in {suffix}, {where}: {dict(counts)}")
    assert counts["other"] == 0 and counts["refused"] + counts["equal"] == FLIPS
    assert counts["refused"] > FLIPS // 2


def test_a_pickle_of_random_edits_never_raises_anything_else(tmp_path: Path) -> None:
    state, path, damaged = small_model().state_dict(), tmp_path / "weights.pyth", tmp_path / "damaged.pyth"
    torch.save({"model_state": state, "cfg": "DATA: {}", "more": [1, (2, 3.5), None, {"a": b"x"}]}, path)
    rng = random.Random(0)
    counts: Counter[str] = Counter()
    with zipfile.ZipFile(path) as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    for _ in range(PICKLES):
        with zipfile.ZipFile(damaged, "w") as archive:  # its checksums are right: someone wrote it so
            for name, content in members.items():
                edited = bytearray(content)
                if name.endswith("data.pkl"):
                    for _ in range(rng.randrange(1, 4)):
                        start = rng.randrange(len(edited))
                        edited[start : start + rng.randrange(4)] = rng.randbytes(rng.randrange(4))
                archive.writestr(name, bytes(edited))
        counts[read(damaged, state)] += 1
    print(f"{PICKLES} edited pickles: {dict(counts)}")
    assert sum(counts.values()) == PICKLES and counts["refused"] > PICKLES // 2
