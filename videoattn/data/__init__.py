"""Videos to batches: annotation lists, sampling, decoding, transforms, and the loader that ties them together."""

from videoattn.data.batch import Batch, normalize
from videoattn.data.batch_augment import BatchAugment
from videoattn.data.loader import Loader, build_loader
from videoattn.data.mixing import Mixing

__all__ = ["Batch", "BatchAugment", "Loader", "Mixing", "build_loader", "normalize"]
