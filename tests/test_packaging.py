"""One version in all places, and dependencies that are those of the code."""

import ast
import configparser
import re
import sys
from pathlib import Path

import yaml

import videoattn

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")

# Distributions whose import has another name.
IMPORT_NAMES = {"pillow": "PIL", "pyyaml": "yaml"}
# Declared, and imported by a library on the package's behalf: its import there, which the package must contain.
IMPORTED_FOR_US = {"tensorboard": "torch.utils.tensorboard"}
# Imported where it is installed; the package works without it, and says what is missing.
OPTIONAL = {"torchcodec", "transformers", "triton"}


def imported_modules() -> set[str]:
    """Modules that the package imports anywhere in it, by full name, those by import_module with a fixed name too."""
    found = set()
    for path in (ROOT / "videoattn").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
                found |= set(re.findall(r"^'([a-z.]+)", ast.unparse(node.args[0])))
    return found


def declared() -> set[str]:
    """Modules of the libraries that setup.cfg requires."""
    lines = SETUP["options"]["install_requires"].split("\n")
    names = [re.match(r"[\w.-]+", line) for line in lines if line and not line.startswith("#")]
    return {IMPORT_NAMES.get(name[0], name[0]) for name in names if name}


def test_every_declared_dependency_is_imported_and_nothing_undeclared_is() -> None:
    imported = imported_modules()
    libraries = {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names) - {"videoattn"}
    unused = [name for name in declared() - libraries if IMPORTED_FOR_US.get(name) not in imported]
    assert unused == []
    assert libraries - declared() == OPTIONAL


def test_the_version_is_the_same_everywhere() -> None:
    assert SETUP["metadata"]["version"] == "attr: videoattn.__version__"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == videoattn.__version__
    released = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert released[0] == videoattn.__version__
