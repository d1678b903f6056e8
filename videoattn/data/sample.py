"""Decoded clips of some videos of a list, for what passes over the same clips several times."""

import logging

import torch
from tqdm import tqdm

from videoattn.config import Config
from videoattn.data.build import Split, build_sample
from videoattn.data.clips.batch import Batch

logger = logging.getLogger("videoattn")


class Sample:
    """Decoded clips of some videos of a list, in batches, with their labels."""

    def __init__(self, cfg: Config, split: Split, num_videos: int) -> None:
        loader = build_sample(cfg, split, num_videos)
        self.source, self.class_names = loader.videos.source, loader.class_names
        try:
            batches = list(
                tqdm(loader.epoch(0), total=loader.num_batches, desc=f"decoding {split}", leave=False, disable=None)
            )
        finally:
            loader.close()
        self.failures = [failure for batch in batches for failure in batch.failures]
        self.batches: list[Batch] = [batch for batch in batches if len(batch.labels)]
        for failure in self.failures:
            logger.warning("left out, since it can't be decoded: %s", failure.reason)
        if not self.batches:
            raise ValueError(f"{self.source}: no video could be decoded; the first: {self.failures[0].reason}")
        self.labels = torch.cat([batch.labels for batch in self.batches])

    @property
    def num_clips(self) -> int:
        return len(self.labels)


def decode_sample(cfg: Config, split: Split, num_videos: int) -> Sample:
    """Return decoded clips of up to `num_videos` videos; those that can't be decoded are logged and left out."""
    sample = Sample(cfg, split, num_videos)
    if sample.num_clips < num_videos:
        logger.warning("%s has %d of the %d videos that were asked for", sample.source, sample.num_clips, num_videos)
    return sample
