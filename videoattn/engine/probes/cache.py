"""Features of an encoder on disk, a safetensors file for each batch, so that later runs need no encoder and no videos.

Random clips are drawn anew in every epoch, so the cache holds the draws of a number of epochs, and training goes round
in them: epoch e sees those of epoch e modulo that number.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from videoattn.data.clips.batch import Batch, Failure, Prepare
from videoattn.data.loader import Loader
from videoattn.engine.distributed import Process, gather_objects, shared_errors
from videoattn.engine.log import logger, progress_bar
from videoattn.files import atomic_write
from videoattn.seeding import derive_seed

MANIFEST = "cache.json"
_TENSORS = ("clips", "labels", "videos", "views")


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return a checksum of names, types, shapes and numbers, which does not depend on the device."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def encoder_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a model besides its head and probe."""
    state = model.state_dict()
    return {name: value for name, value in state.items() if name.partition(".")[0] not in ("head", "pooler")}


class FeatureCache:
    """A folder of features of one encoder, of the clips of one training and one validation list.

    `facts` are all that the features depend on, by descriptive name; the folder notes them when it is new. Raises
    ValueError in one line where it was made with others, or holds something else.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], process: Process) -> None:
        self.folder = folder
        self.process = process
        with shared_errors():
            if process.is_main:
                self._claim(json.loads(json.dumps(dict(facts))))

    def _claim(self, facts: Mapping[str, Any]) -> None:
        file = self.folder / MANIFEST
        if not file.is_file():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise ValueError(f"PROBE.CACHE {self.folder} is no cache of features; expected an empty or new folder")
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as temporary:
                temporary.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            return
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            before = None
        if not isinstance(before, dict):
            raise ValueError(f"{file} is damaged: expected what the features depend on; delete the folder")
        changed = [key for key in dict.fromkeys([*facts, *before]) if facts.get(key) != before.get(key)]
        if changed:
            texts = [f"{key} is {facts.get(key)}, was {before.get(key)}" for key in changed]
            raise ValueError(
                f"PROBE.CACHE {self.folder} is stale: {'; '.join(texts)}; set another folder, or delete this one"
            )

    def path(self, split: str, epoch: int, number: int) -> Path:
        """Return the file of this process's batch `number` of an epoch."""
        return self.folder / split / f"epoch_{epoch:03d}" / f"batch_{number:06d}_rank_{self.process.rank}.safetensors"

    def is_kept(self, path: Path) -> bool:
        """Return whether a file is there and whole; one that is cut short is named in a warning."""
        if not path.is_file():
            return False
        try:
            with safe_open(path, "pt"):
                return True
        except SafetensorError as error:
            logger.warning("%s is damaged and made again: %s", path, error)
            return False

    def write(self, path: Path, batch: Batch, features: Tensor) -> None:
        """Write the features of a batch, whole or not at all, with what is known of its videos."""
        tensors = {"clips": features.detach().cpu().contiguous()}
        tensors |= {name: getattr(batch, name).cpu().contiguous() for name in _TENSORS[1:]}
        notes = {
            "failures": [list(failure) for failure in batch.failures], "num_short": batch.num_short,
            "draws": batch.draws, "sequential": list(batch.sequential), "crc32": _crc32(tensors),
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, {"batch": json.dumps(notes)})

    def read(self, path: Path) -> Batch:
        """Return a batch with features in the place of clips. Raises ValueError naming a damaged file."""
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
                notes = json.loads(file.metadata()["batch"])
            if notes.pop("crc32") != _crc32(tensors):
                raise ValueError("its checksum (CRC-32) is wrong")
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it, and the run makes it again") from None
        failures = tuple(Failure(*failure) for failure in notes.pop("failures"))
        return Batch(**tensors, failures=failures, **notes | {"sequential": tuple(notes["sequential"])})


class CachedLoader:
    """The batches of a loader with features in the place of clips, from `epochs` epochs of a complete cache."""

    def __init__(self, loader: Loader, cache: FeatureCache, split: str, epochs: int) -> None:
        self.videos, self.num_videos, self.class_names = loader.videos, loader.num_videos, loader.class_names
        self.num_batches, self.accumulate, self.batch_size = loader.num_batches, loader.accumulate, loader.batch_size
        self._cache, self._split, self._epochs = cache, split, epochs

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, beginning with batch `start_batch`."""
        for number in range(start_batch, self.num_batches):
            yield self._cache.read(self._cache.path(self._split, epoch % self._epochs, number))


def fill_cache(
    cache: FeatureCache, loader: Loader, split: str, epochs: int, features: Prepare, seed: int
) -> CachedLoader:
    """Make the features that the cache does not have yet, and return the loader of all of them.

    Seeds are those of `ProbeTrainer.step`, so that a run from the cache sees what it would see without. A run that was
    killed goes on at the first batch that is missing.
    """
    epoch_batches = [
        [cache.path(split, epoch, number) for number in range(loader.num_batches)] for epoch in range(epochs)
    ]
    steps = loader.num_batches // loader.accumulate
    with (
        shared_errors(),
        progress_bar(epochs * loader.num_batches, 0, f"features of {split}", cache.process.is_main) as bar,
    ):
        for epoch, paths in enumerate(epoch_batches):
            first = next((number for number, path in enumerate(paths) if not cache.is_kept(path)), len(paths))
            bar.update(first)
            if first == len(paths):
                continue
            for number, batch in enumerate(loader.epoch(epoch, first), first):
                step, micro = divmod(number, loader.accumulate)
                if len(batch.videos):
                    values, labels = features(batch, derive_seed(seed, "mix", epoch * steps + step, micro))
                    batch = replace(batch, labels=labels)
                else:
                    values = batch.clips.float()
                cache.write(paths[number], batch, values)
                if cache.process.is_main and epoch == number == 0:
                    size = paths[0].stat().st_size * epochs * loader.num_batches / 2**20
                    logger.info("features of %s take about %.0f MiB in %s for each process", split, size, cache.folder)
                bar.update()
    gather_objects(None)  # files of every process are there
    loader.close()
    return CachedLoader(loader, cache, split, epochs)


def from_cache(device: torch.device) -> Prepare:
    """Return the function that puts a cached batch's features and targets on a device."""

    def features(batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
        return batch.clips.to(device), batch.labels.to(device)

    return features


def _bytes(value: Tensor) -> Any:
    flat = value.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy() if flat.numel() else b""


def _crc32(tensors: Mapping[str, Tensor]) -> str:
    total = 0
    for name in _TENSORS:
        total = zlib.crc32(_bytes(tensors[name]), total)
    return f"{total:08x}"
