"""Put configs/ and model_zoo/ of a checkout into the package that is built, as videoattn/shipped/.

All else is said in setup.cfg. An editable installation finds both folders where they are.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("configs/**/*.yaml", "model_zoo/*.safetensors")


class BuildWithShippedFiles(build_py):
    """`build_py`, and the shipped files."""

    def run(self) -> None:
        super().run()
        for source, target in self._shipped():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *(target for _, target in self._shipped())]

    def _shipped(self) -> list[tuple[str, str]]:
        """Return the files with their places in the build; none for an editable installation."""
        files = [] if self.editable_mode else [file for pattern in SHIPPED for file in sorted(Path().glob(pattern))]
        return [(str(file), str(Path(self.build_lib, "videoattn/shipped", file))) for file in files]


setup(cmdclass={"build_py": BuildWithShippedFiles})
