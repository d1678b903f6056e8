"""The configs that come with the package, found by name: `Motion/divided.yaml`."""

import difflib
from pathlib import Path

from videoattn.config.strict_yaml import ConfigError
from videoattn.files import shipped_folder


def shipped_configs() -> list[str]:
    """Return the names of the shipped configs, sorted."""
    folder = shipped_folder("configs")
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))


def find_config(given: str | Path) -> Path:
    """Return the config file that `given` names: a path that exists, or else a shipped config.

    A name may begin with configs/, as paths in a checkout do. Raises ConfigError with the nearest names.
    """
    path = Path(given)
    if path.exists() or path.is_absolute():
        return path
    name = path.as_posix().removeprefix("configs/")
    names = shipped_configs()
    if name in names:
        return shipped_folder("configs") / name
    by_folded = {shipped.lower(): shipped for shipped in names}
    near = [by_folded[folded] for folded in difflib.get_close_matches(name.lower(), by_folded, n=3)]
    hint = f", and no config comes with videoattn under this name; did you mean {' or '.join(near)}?" if near else ""
    raise ConfigError([f"{given}: No such file or directory{hint}"])
