"""Kept features are those of the encoder, or are refused."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from videoattn.data.clips.batch import Batch, Failure
from videoattn.engine.distributed import Process
from videoattn.engine.probes.cache import CachedLoader, FeatureCache, checksum, encoder_tensors, fill_cache, from_cache
from videoattn.models import TimeSformer

FACTS = {"DATA.NUM_FRAMES": 8, "DATA.MEAN": (0.45, 0.45, 0.45), "the training list": "12 videos, abc"}


class Loader:
    """A loader of random clips, the same ones for an epoch and a batch; `opened` are the batches that were read."""

    num_batches, accumulate, batch_size, num_videos, videos, class_names = 6, 2, 3, 18, None, None

    def __init__(self) -> None:
        self.opened: list[tuple[int, int]] = []
        self.dies_after = 100

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        for number in range(start_batch, self.num_batches):
            if len(self.opened) == self.dies_after:
                raise KeyboardInterrupt
            self.opened.append((epoch, number))
            generator = torch.Generator().manual_seed(100 * epoch + number)
            clips = torch.randint(0, 255, (3, 3, 2, 4, 4), dtype=torch.uint8, generator=generator)
            indices = torch.arange(3) + 3 * number
            failures = (Failure(7, "v7", "v7: no frames"),) if number == 1 else ()
            yield Batch(clips, indices % 2, indices, torch.zeros(3, dtype=torch.int64), failures, number, 4, ("slow",))

    def close(self) -> None:
        pass


def features(batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
    """Return features that depend on the clips and, as augmentation on the device would, on the seed."""
    return batch.clips.float().mean(dim=(2, 3, 4)) + seed % 97, batch.labels


def fill(folder: Path, loader: Any = None, epochs: int = 2, facts: Any = FACTS) -> CachedLoader:
    cache = FeatureCache(folder, facts, Process())
    return fill_cache(cache, loader or Loader(), "train", epochs, features, seed=5)


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_kept_batches_are_those_of_the_loader_and_epochs_go_round_in_them(tmp_path: Path) -> None:
    cached = fill(tmp_path / "cache")
    assert (cached.num_batches, cached.accumulate, cached.batch_size) == (6, 2, 3)
    for epoch in range(4):
        there = list(Loader().epoch(epoch % 2))
        seen: set[float] = set()
        for number, (batch, own) in enumerate(zip(cached.epoch(epoch), there, strict=True)):
            values, labels = from_cache(torch.device("cpu"))(batch, 0)
            shift = values - features(own, 0)[0]
            assert torch.equal(labels, own.labels) and torch.equal(batch.videos, own.videos)
            assert float(shift.max() - shift.min()) < 1e-3  # one seed for a batch
            seen.add(round(float(shift.mean())))
            assert (batch.failures, batch.num_short, batch.draws) == (own.failures, number, 4)
            assert batch.sequential == ("slow",)
        assert len(seen) > 3  # and another one for the next
    assert [b.num_short for b in cached.epoch(1, 4)] == [4, 5]


def test_a_second_run_opens_no_video(tmp_path: Path) -> None:
    fill(tmp_path / "cache")
    loader = Loader()
    fill(tmp_path / "cache", loader)
    assert loader.opened == []


def test_a_run_that_was_killed_goes_on_where_it_was_and_uses_nothing_half_written(tmp_path: Path) -> None:
    fill(tmp_path / "whole")
    loader = Loader()
    loader.dies_after = 8
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "cache", loader)
    assert len(files_of(tmp_path / "cache")) == 8
    half = files_of(tmp_path / "cache")[-1]
    half.with_name(f".{half.name}.0123.tmp").write_bytes(
        half.read_bytes()[:50]
    )  # as a process that is killed leaves it
    again = Loader()
    fill(tmp_path / "cache", again)
    assert again.opened == [(1, number) for number in range(2, 6)]
    both = [[path.read_bytes() for path in files_of(tmp_path / name)] for name in ("whole", "cache")]
    assert both[0] == both[1] and len(both[0]) == 12


def test_a_file_that_is_cut_short_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path / "cache")
    path = files_of(tmp_path / "cache")[3]
    whole = path.read_bytes()
    for size in (0, 5, 60, len(whole) - 1):
        path.write_bytes(whole[:size])
        with caplog.at_level(logging.WARNING, logger="videoattn"):
            fill(tmp_path / "cache")
        assert f"{path} is damaged and made again" in caplog.text
        assert path.read_bytes() == whole
        caplog.clear()


def test_a_file_that_is_damaged_while_a_run_reads_is_named(tmp_path: Path) -> None:
    cached = fill(tmp_path / "cache")
    path = files_of(tmp_path / "cache")[0]
    whole = path.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    for content in (whole[:-1], flipped, b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"{path} is damaged")) as error:
            list(cached.epoch(0))
        assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(ValueError, match=re.escape(f"{path} is damaged")):
        list(cached.epoch(0))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (FACTS | {"DATA.NUM_FRAMES": 16}, "is stale: DATA.NUM_FRAMES is 16, was 8; set another folder"),
        (FACTS | {"the training list": "b"}, "the training list is b, was 12 videos, abc;"),
        ({key: FACTS[key] for key in list(FACTS)[:2]}, "the training list is None, was 12 videos, abc"),
    ],
)
def test_a_stale_cache_is_refused_with_what_differs(tmp_path: Path, facts: Any, message: str) -> None:
    fill(tmp_path / "cache")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        fill(tmp_path / "cache", facts=facts)
    assert "\n" not in str(error.value) and str(tmp_path / "cache") in str(error.value)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="is no cache of features; expected an empty or new folder"):
        fill(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "cache.json").write_text("{")
    with pytest.raises(ValueError, match=r"cache.json is damaged"):
        fill(tmp_path / "cache")
    (tmp_path / "cache" / "cache.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match=r"cache.json is damaged"):
        fill(tmp_path / "cache")


def test_the_checksum_depends_on_every_number_name_and_shape_of_the_encoder_alone() -> None:
    torch.manual_seed(0)
    model = TimeSformer((2, 16, 16), 8, 12, 1, 2, 4, probe_depth=1, probe_heads=2)
    tensors = encoder_tensors(model)
    before = checksum(tensors)
    assert {name.partition(".")[0] for name in set(model.state_dict()) - set(tensors)} == {"head", "pooler"}
    with torch.no_grad():
        model.head.weight.zero_()
        model.pooler.query.zero_()  # type: ignore[union-attr]
    assert checksum(encoder_tensors(model)) == before == checksum(dict(reversed(tensors.items())))
    name = "blocks.0.mlp.fc1.weight"
    changed = [
        tensors | {name: tensors[name].flip(0)},
        tensors | {name: tensors[name].view(12, 48)},
        tensors | {name: tensors[name].double()},
        {("other" if key == name else key): value for key, value in tensors.items()},
    ]
    assert len({before, *map(checksum, changed)}) == 5
