"""Plans of an epoch: the videos of each batch in one process of a run."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from videoattn.data.clips.dataset import Draw
from videoattn.seeding import derive_seed

_OPEN_BLOCKS = 8


@dataclass(frozen=True)
class TrainPlan:
    """Training plan: a new permutation of the videos each epoch, in steps of `accumulate` micro-batches.

    Only whole optimizer steps are taken. From every micro-batch of `micro_batch` videos, a process gets the contiguous
    share from `first` to `last`. Videos left over after the last whole step wait for the next epoch's permutation. With
    `block`, the list is cut into blocks of that many neighbours, which come in random order, and the videos of eight
    blocks at a time are mixed: if neighbours share a large file, a disk or an object store then reads few of these
    files at a time.
    """

    num_videos: int
    micro_batch: int
    accumulate: int
    first: int
    last: int
    seed: int
    block: int = 0

    def __len__(self) -> int:
        return self.num_videos // (self.micro_batch * self.accumulate) * self.accumulate

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[Draw]]:
        """Yield this process's share of each micro-batch from number `start` on."""
        order = self._order(epoch)
        for batch in range(start, len(self)):
            base = batch * self.micro_batch
            yield [Draw(epoch, index) for index in order[base + self.first : base + self.last].tolist()]

    def _order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        if not self.block:
            return torch.randperm(self.num_videos, generator=generator)
        blocks = torch.arange(self.num_videos).split(self.block)
        turns = torch.randperm(len(blocks), generator=generator).split(_OPEN_BLOCKS)
        mixed = [torch.cat([blocks[number] for number in some.tolist()]) for some in turns]
        return torch.cat([videos[torch.randperm(len(videos), generator=generator)] for videos in mixed])


@dataclass(frozen=True)
class EvaluationPlan:
    """Evaluation plan: every video once, in the order of the list, dealt out to processes in turn without padding."""

    num_videos: int
    batch_size: int
    rank: int
    world_size: int

    def __len__(self) -> int:
        return -(-len(self._mine()) // self.batch_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """Yield this process's videos in groups of `batch_size`; every epoch is the same."""
        mine = self._mine()
        for batch in range(start, len(self)):
            yield list(mine[batch * self.batch_size : (batch + 1) * self.batch_size])

    def _mine(self) -> range:
        return range(self.rank, self.num_videos, self.world_size)


@dataclass(frozen=True)
class SamplePlan:
    """Plan of up to `num` videos of a list, drawn by `seed`.

    Neither sorted lists nor those that go round in the classes leave some out, as every n-th video of them could.
    """

    num_videos: int
    num: int
    batch_size: int
    seed: int

    def __len__(self) -> int:
        return -(-min(self.num, self.num_videos) // self.batch_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """Yield the videos in groups of `batch_size`; every epoch is the same."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "sample"))
        order = torch.randperm(self.num_videos, generator=generator)[: self.num].tolist()
        for batch in range(start, len(self)):
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size]
