"""Videos to batches: annotation lists, sampling, decoding, transforms, and the loader that ties them together."""

from videoattn.data.augment.batch_augment import BatchAugment
from videoattn.data.augment.mixing import Mixing
from videoattn.data.build import Loader, build_loader, build_prepare
from videoattn.data.clips.batch import Batch, Prepare, normalize

__all__ = ["Batch", "BatchAugment", "Loader", "Mixing", "Prepare", "build_loader", "build_prepare", "normalize"]
