"""Videos to batches: annotation lists, sampling, decoding, transforms, and the loader that ties them together."""

from videoattn.data.augment.batch_augment import BatchAugment
from videoattn.data.augment.mixing import Mixing
from videoattn.data.build import Loader, build_loader
from videoattn.data.clips.batch import Batch, normalize

__all__ = ["Batch", "BatchAugment", "Loader", "Mixing", "build_loader", "normalize"]
