"""Imports point down, and nothing heavy comes with the package."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import videoattn

ROOT = Path(__file__).parents[1]
HEAVY = ("decord", "av", "pytorchvideo", "torchvision", "timm", "tensorboard", "matplotlib", "transformers", "fvcore")

# What each part of the package may import of it, besides its own files.
SINGLE_FILES = {"seeding", "files", "compat"}  # these know nothing of videoattn
ALLOWED: dict[str, set[str]] = {
    "seeding": set(),
    "files": set(),
    "compat": set(),
    "strict_yaml": set(),
    "config_types": set(),
    "config_attention": {"config_types"},
    "config_data": {"config_types"},
    "config_solver": {"config_types"},
    "config": {"config_types", "config_attention", "config_data", "config_solver"},
    "ignored_keys": set(),
    "published_keys": {"strict_yaml", "ignored_keys"},
    "config_keys": {"strict_yaml", "config", "config_types", "config_attention", "ignored_keys", "published_keys"},
    "config_file": {"strict_yaml", "config", "config_keys", "published_keys"},
    "grid": set(),
    "kernels": {"grid", "files"},
    "operators": {"grid", "kernels"},
    "layers": {"grid", "kernels", "operators"},
    "models": {"grid", "operators", "layers", "config", "config_types", "config_attention", "config_file"}
    | SINGLE_FILES,
    "conversion_sites": {"grid", "operators", "layers"},
    "conversion": {"grid", "operators", "layers", "conversion_sites"},
    "profile": {"grid", "operators", "profile_operations", "profile_measure"} | SINGLE_FILES,
    "profile_operations": {"grid", "operators"},
    "profile_measure": {"grid", "operators"},
    "profile_table": {"profile"},
    "data": {"config"} | SINGLE_FILES,
    "engine": {"config", "data"} | SINGLE_FILES,
    "transfer": {"files"},
    "download": {"files", "transfer"},
    "zoo": {"config", "config_file", "download", "models"} | SINGLE_FILES,
    "zoo_rows": {"zoo"},
    "command_line": {"config", "config_file", "data", "engine"} | SINGLE_FILES,
    "": {"config_file", "models", "conversion"},
}
READ_CONFIG = {
    "videoattn", "videoattn.models.build", "videoattn.data.loader", "videoattn.engine.optim", "videoattn.zoo",
    "videoattn.config", "videoattn.config_file", "videoattn.config_keys", "videoattn.command_line",
    "videoattn.models.departures",
}  # fmt: skip

FILES = sorted((ROOT / "videoattn").rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[str]:
    """Modules of this package that a file imports anywhere in it, relative imports resolved."""
    module = name_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            base = (above + (node.module or "")).rstrip(".")
            names = [base] if base != "videoattn" else [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "videoattn")


def part_of(module: str) -> str:
    return (module.split(".") + [""])[1]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    part = part_of(name_of(path))
    for imported in imports_of(path):
        assert part_of(imported) in ALLOWED[part] | {part}, f"{name_of(path)} imports {imported}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_builders_and_those_above_read_the_config(path: Path) -> None:
    read = {part_of(name) for name in imports_of(path)} & {"config", "config_attention", "config_file"}
    assert not read or name_of(path) in READ_CONFIG, f"{name_of(path)} imports {read}"


def test_the_package_does_not_import_the_tools() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                assert not {name.split(".")[0] for name in names} & {"tools", "tests", "benchmarks", "datasets"}, path


def test_no_module_of_the_package_imports_anything_heavy() -> None:
    program = (
        "import importlib, sys\n"
        f"for name in {[name_of(path) for path in FILES]!r}: importlib.import_module(name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.strip() == "[]", run.stderr


def test_the_package_alone_imports_no_torch_and_gives_its_interface_on_demand() -> None:
    program = (
        "import sys, videoattn\n"
        "assert 'torch' not in sys.modules\n"
        "for name in videoattn.__all__: getattr(videoattn, name)\n"
        "assert videoattn.models.TimeSformer.__module__ == 'videoattn.models.timesformer'\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr


def test_a_missing_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        videoattn.load_modle  # noqa: B018
    assert set(videoattn.__all__) <= set(dir(videoattn))
