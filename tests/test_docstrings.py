"""Docstrings begin with a verb or a noun, as in PyTorch's reference pages."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("videoattn", "tools", "tests", "benchmarks", "datasets", "docs")
NOT_FIRST = re.compile(r"(Of|What|Whose|Where|Whether|Which|Who)\b")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def badly_begun(source: str) -> Iterator[str]:
    """Yield the name and the first line of every docstring that begins with NOT_FIRST."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED):
            text = ast.get_docstring(node) or ""
            if NOT_FIRST.match(text):
                yield f"{getattr(node, 'name', 'module')}: {text.splitlines()[0]}"


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 200
    bad = [f"{path.relative_to(ROOT)}: {at}" for path in files for at in badly_begun(path.read_text(encoding="utf-8"))]
    assert not bad, f"{len(bad)} docstrings to turn inside out:\n" + "\n".join(bad)


def test_each_kind_of_docstring_is_looked_at() -> None:
    source = '"""Of a module."""\nclass A:\n    """What it is."""\n    def f():\n        """Whether\n        so."""\n'
    assert len(list(badly_begun(source))) == 3 and not list(badly_begun('"""Offsets."""'))
