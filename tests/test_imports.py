"""Imports point down, and nothing heavy comes with the package."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import videoattn

ROOT = Path(__file__).parents[1]
HEAVY = (
    "decord", "av", "pytorchvideo", "torchvision", "timm", "tensorboard", "matplotlib", "transformers", "fvcore",
    "torch._dynamo",
)  # fmt: skip

LEAVES = {"seeding", "files", "compat", "precision"}  # these know nothing of videoattn, and everyone may import them
# The rooms of the package, and what each may import besides its own files and the leaves.
ALLOWED: dict[str, set[str]] = {
    "config": {"operators"},  # sections of operators are derived from their constructors
    "grid": set(),
    "kernels": {"grid"},
    "operators": {"grid", "kernels"},
    "layers": {"grid", "kernels", "operators"},
    "models": {"grid", "operators", "layers", "config", "convert"},  # attention of transformers' models is replaced
    "convert": {"grid", "operators", "layers"},
    "profiling": {"grid", "operators"},
    "data": {"config"},
    "engine": {"config", "data"},
    "zoo": {"config", "models"},
    "swap": {"grid", "layers", "operators"},
    "cli": {"config", "data", "engine", "grid", "layers", "models", "operators", "profiling", "swap", "zoo"},
    "": {"config", "models", "convert"},
    "__main__": {"", "cli"},
}
READ_CONFIG = {
    "videoattn", "videoattn.models.build", "videoattn.models.settings", "videoattn.models.spec",
    "videoattn.models.baselines", "videoattn.models.transformers_baseline",
    "videoattn.models.timesformer.settings", "videoattn.models.mvit.settings",
    "videoattn.models.mvit.spec", "videoattn.models.video_vit.settings", "videoattn.models.weights.departures",
    "videoattn.data.build", "videoattn.data.sample", "videoattn.engine.optim", "videoattn.zoo.prepare",
    "videoattn.zoo.protocol",
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


def test_imports_point_down() -> None:
    offenders = [
        f"{name_of(path)} imports {imported}"
        for path in FILES
        for imported in imports_of(path)
        if part_of(imported) not in ALLOWED.get(part_of(name_of(path)), set()) | LEAVES | {part_of(name_of(path))}
    ]
    assert not offenders


def test_only_builders_and_the_programs_read_the_config() -> None:
    readers = {name_of(path) for path in FILES if "config" in map(part_of, imports_of(path))}
    assert {name for name in readers if part_of(name) not in ("config", "cli")} == READ_CONFIG


def test_every_room_is_in_the_law_and_none_has_fifteen_files() -> None:
    assert {part_of(name_of(path)) for path in FILES} == {*ALLOWED, *LEAVES}
    rooms = Counter(path.parent.relative_to(ROOT).as_posix() for path in FILES)
    assert {room: number for room, number in rooms.items() if number >= 15} == {}


def test_the_package_does_not_import_the_tools() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                assert not {name.split(".")[0] for name in names} & {"tools", "tests", "benchmarks", "datasets"}, path


def test_the_package_imports_torch_on_demand_and_nothing_else_that_takes_long() -> None:
    program = (
        "import importlib, sys, videoattn\n"
        "assert 'torch' not in sys.modules\n"
        "for name in videoattn.__all__: getattr(videoattn, name)\n"
        "assert videoattn.models.TimeSformer.__module__ == 'videoattn.models.timesformer.model'\n"
        f"for name in {[name_of(path) for path in FILES]!r}: importlib.import_module(name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.strip() == "[]", run.stderr


def test_a_missing_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        videoattn.load_modle  # noqa: B018
    assert set(videoattn.__all__) <= set(dir(videoattn))
