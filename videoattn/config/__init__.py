"""Settings: typed sections, YAML files, the command line, and the keys of published files."""

from videoattn.config.load import load_config
from videoattn.config.sections import Config

__all__ = ["Config", "load_config"]
