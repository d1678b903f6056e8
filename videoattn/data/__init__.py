"""From annotation files and videos to batches of clips."""

from videoattn.data.loader import Loader, build_loader

__all__ = ["Loader", "build_loader"]
