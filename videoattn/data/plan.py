"""Which videos make up each batch of an epoch, in one process of a run."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from videoattn.data.dataset import Draw
from videoattn.seeding import derive_seed


@dataclass(frozen=True)
class TrainPlan:
    """A new permutation of all videos each epoch, in whole optimizer steps of `accumulate` micro-batches.

    Of every micro-batch of `micro_batch` videos, a process takes the contiguous share from `first` to `last`. Videos
    left over after the last whole step wait for the next epoch's permutation.
    """

    num_videos: int
    micro_batch: int
    accumulate: int
    first: int
    last: int
    seed: int

    def __len__(self) -> int:
        return self.num_videos // (self.micro_batch * self.accumulate) * self.accumulate

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[Draw]]:
        """This process's share of each micro-batch from number `start` on."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        order = torch.randperm(self.num_videos, generator=generator).tolist()
        for batch in range(start, len(self)):
            base = batch * self.micro_batch
            yield [Draw(epoch, index) for index in order[base + self.first : base + self.last]]


@dataclass(frozen=True)
class EvaluationPlan:
    """Every video once, in the order of the list, dealt out to processes like cards and never repeated to fill up."""

    num_videos: int
    batch_size: int
    rank: int
    world_size: int

    def __len__(self) -> int:
        return -(-len(self._mine()) // self.batch_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """This process's videos in groups of `batch_size`; every epoch is the same."""
        mine = self._mine()
        for batch in range(start, len(self)):
            yield list(mine[batch * self.batch_size : (batch + 1) * self.batch_size])

    def _mine(self) -> range:
        return range(self.rank, self.num_videos, self.world_size)
