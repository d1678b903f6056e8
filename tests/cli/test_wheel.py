"""The wheel, installed where there is no checkout, trains, evaluates and profiles from an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

from videoattn import __version__

ROOT = Path(__file__).parents[2]
SOURCES = ("videoattn", "configs", "model_zoo", "setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md",
           "LICENSE")  # fmt: skip
BUILT = ("__pycache__", "*.egg-info")


def without_checkout() -> dict[str, str]:
    """Return this environment without what leads Python, and the programs that it starts, to the checkout."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}


class Installed:
    """An environment with the wheel in it, and an empty folder to work in."""

    def __init__(self, environment: Path, folder: Path) -> None:
        self.environment, self.folder = environment, folder

    def run(self, *command: object) -> str:
        """Return what a command prints. The checkout is out of its sight."""
        program, *arguments = map(str, command)
        done = subprocess.run(
            [str(self.environment / "bin" / program), *arguments], cwd=self.folder, text=True, capture_output=True,
            env={**without_checkout(), "VIDEOATTN_CACHE": str(self.folder.parent / "cache")}, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout


def python(*arguments: object, cwd: Path) -> None:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=without_checkout(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel of the source archive of this checkout, with the libraries of this Python."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns(*BUILT))
        else:
            shutil.copy(ROOT / name, source / name)
    python("-c", f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})", cwd=source)
    with tarfile.open(folder / f"videoattn-{__version__}.tar.gz") as archive:
        archive.extractall(folder / "unpacked", filter="data")
    unpacked = folder / "unpacked" / f"videoattn-{__version__}"
    python("-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", folder, unpacked, cwd=folder)
    python("-m", "venv", "--without-pip", folder / "environment", cwd=folder)
    (wheel,) = folder.glob("*.whl")
    own = folder / "environment"
    python("-m", "pip", "--python", own, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (packages,) = own.glob("lib/python*/site-packages")
    # A path in a .pth file gives its libraries, but not what other .pth files in it add, such as this checkout.
    libraries = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (packages / "libraries.pth").write_text("".join(f"{path}\n" for path in libraries))
    (folder / "empty").mkdir()
    return Installed(own, folder / "empty")


@pytest.mark.slow
def test_the_wheel_holds_all_configs_and_our_weights_and_hides_the_checkout(installed: Installed) -> None:
    said = installed.run("python", "-c", "import videoattn; print(videoattn.__file__)")
    package = Path(said.strip()).parent
    assert package.is_relative_to(installed.environment)
    for name, pattern in (("configs", "*.yaml"), ("model_zoo", "*.safetensors")):
        here, there = ROOT / name, package / "shipped" / name
        files = {path.relative_to(here): path.read_bytes() for path in here.rglob(pattern)}
        assert files == {path.relative_to(there): path.read_bytes() for path in there.rglob("*") if path.is_file()}
    assert {path.name for path in package.glob("kernels/cpu/*.*")} >= {"attend.h", "pool_tokens.cpp"}
    assert installed.run("videoattn", "--version") == f"videoattn {__version__}\n"
    assert installed.run("python", "-m", "videoattn", "--help") == installed.run("videoattn", "--help")


@pytest.mark.slow
def test_a_shipped_config_trains_evaluates_and_profiles_from_an_empty_folder(installed: Installed) -> None:
    installed.run("videoattn", "motion", "datasets/motion", "--num-train", 16, "--num-val", 8, "--size", "64x64")
    pairs = ["SOLVER.MAX_EPOCH", 1, "SOLVER.WARMUP_EPOCHS", 0, "TIMESFORMER.DEPTH", 1, "TRAIN.BATCH_SIZE", 8]
    run = ["--cfg", "Motion/divided_fibonacci_time.yaml", *pairs, "OUTPUT_DIR", "run"]
    said = installed.run("videoattn", "train", *run)
    assert "evaluate: videoattn test --cfg run/config.yaml" in said
    installed.run("videoattn", "test", "--cfg", "run/config.yaml")
    assert json.loads((installed.folder / "run/test/results.json").read_text())["counts"]["evaluated"] == 8
    assert "MACs" in installed.run("videoattn", "profile", *run)


@pytest.mark.slow
def test_a_row_of_the_zoo_reproduces_its_number_from_the_wheel(installed: Installed) -> None:
    said = installed.run("videoattn", "test", "--zoo", "motion_timesformer_fibonacci", "OUTPUT_DIR", "zoo")
    assert "motion_timesformer_fibonacci: reproduced, to the digit" in said
