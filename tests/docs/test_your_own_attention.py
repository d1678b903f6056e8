"""docs/your_own_attention.md is done step by step in a copy of the project: one file and one line are enough."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.programs import ROOT
from tests.shared_files import SHARED
from videoattn.config.attention import operator_section
from videoattn.grid import TokenGrid
from videoattn.operators import AttentionSite

PAGE = (ROOT / "docs/your_own_attention.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```([a-z]+ (?:file|line|own)[^\n]*)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
NAME, OPTION, HELP = "dilated", "STEP", "distance between neighbouring keys"
LOCAL = SHARED / "cases/new_operator/local.py"
COPIED = ("videoattn", "tests", "docs", "configs", "tools", "benchmarks", "setup.cfg", "pyproject.toml", "README.md")


def block(start: str) -> str:
    (text,) = [text for language, text in BLOCKS.items() if language.startswith(start)]
    return text


class Case(NamedTuple):
    """A copy of the project in which the operator `name`, of the class `kind`, has its file and its line."""

    folder: Path
    name: str
    kind: str
    option: str

    def run(self, *command: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "VIDEOATTN_SHARED": str(SHARED)}
        done = subprocess.run(
            [sys.executable, *command], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-3000:]}"
        return done.stdout


@pytest.fixture(scope="module", params=["page", "shared"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("copy")
    source, name, kind, option = block("python file"), NAME, "DilatedAttention", OPTION
    if request.param == "shared":
        path = LOCAL
        if not path.is_file():
            pytest.skip("the case of a new operator is not at hand")
        source, name, kind, option = path.read_text(encoding="utf-8"), "local", "LocalAttention", "WINDOW"
    for part in COPIED:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    (folder / f"videoattn/operators/{name}.py").write_text(source, encoding="utf-8")
    table = folder / "videoattn/operators/__init__.py"
    text = table.read_text(encoding="utf-8").replace(
        "\nOPERATORS: ", f"from videoattn.operators.{name} import {kind}\n\nOPERATORS: "
    )
    line = block("python line").replace("dilated", name).replace("DilatedAttention", kind)
    table.write_text(text.replace("] = {\n", "] = {\n" + line, 1), encoding="utf-8")
    return Case(folder, name, kind, option)


def test_the_operator_of_the_page_computes_what_its_formula_says() -> None:
    scope: dict[str, Any] = {"__name__": "dilated"}
    exec(block("python file"), scope)
    kind = scope["DilatedAttention"]
    grid = TokenGrid(2, 3, 4, prefix=1)
    operator = kind(AttentionSite(grid, grid, 2, 25, block=0), step=3).double()
    q, k = (torch.randn(1, 2, 25, 25, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    attends = torch.tensor([[0 in (i, j) or (i - j) % 3 == 0 for j in range(25)] for i in range(25)])
    expected = (q @ k.mT / 5).masked_fill(~attends, -torch.inf).softmax(-1)
    torch.testing.assert_close(operator(q, k, torch.eye(25, dtype=torch.float64).expand(1, 2, -1, -1)), expected)
    assert operator.macs() == 2 * 2 * 25 * attends.sum()
    field = operator_section(NAME, kind).model_fields[OPTION.lower()]
    assert (field.default, field.description) == (2, HELP)
    assert "step" in block("yaml").lower() and len(block("python file").splitlines()) < 45


@pytest.mark.slow
def test_it_is_trained_on_from_settings_python_and_inside_other_models(case: Case) -> None:
    settings = block("yaml own").replace("dilated", case.name).replace("STEP", case.option)
    path = case.folder / "configs/Kinetics/own.yaml"
    path.write_text(settings, encoding="utf-8")
    try:
        printed = case.run(
            "-c",
            "import torch\n"
            "from videoattn.config.load import load_config\n"
            "from videoattn.models import build_model\n"
            "from videoattn.profiling.profile import profile\n"
            "small = ['TIMESFORMER.EMBED_DIM', 24, 'TIMESFORMER.NUM_HEADS', 2, 'TIMESFORMER.DEPTH', 2]\n"
            "small += ['DATA.TRAIN_CROP_SIZE', 64, 'DATA.TEST_CROP_SIZE', 64]\n"
            "model = build_model(load_config('configs/Kinetics/own.yaml', small)).train()\n"
            "model(torch.randn(2, 3, 8, 64, 64)).square().sum().backward()\n"
            "assert all(x.grad is not None for x in model.parameters())\n"
            "operator = model.blocks[1].mixers['space'].operator\n"
            "costs = {cost.name: cost for cost in profile(model, (8, 64, 64)).modules}\n"
            "assert costs['blocks.1.mixers.space.operator'].macs_needed == 8 * operator.macs() > 0\n"
            "print(type(operator).__name__, operator.options)\n",
        )
    finally:
        path.unlink()
    assert printed == f"{case.kind} {{'{case.option.lower()}': 3}}\n"
    code = block("python own").replace("dilated", case.name).replace("step", case.option.lower())
    assert f"Attention -> {case.kind}" in case.run("-c", code)
    commands = block("bash own").replace("\\\n", " ").replace("dilated", case.name).replace("STEP", case.option)
    for line in commands.splitlines():
        assert re.search(r"^ +operator +[0-9.]+ +[0-9.]+ ", case.run(*shlex.split(line)[1:]), re.MULTILINE)


@pytest.mark.slow
def test_it_passes_the_suites_before_and_after_the_tables_are_written_anew(case: Case) -> None:
    if case.name == NAME and LOCAL.is_file():
        pytest.skip("another new operator goes through the suites, which take minutes")
    pytest_quietly = ("-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider")
    case.run(*pytest_quietly, "tests/operators", "tests/models", "tests/convert", "-k", f"{case.name} or by_default")
    whole = ("tests/config/test_configs.py", "tests/models/test_attention_settings.py", "tests/layers/test_support.py")
    tables = "tests/docs/test_attention_docs.py"
    case.run(*pytest_quietly, *whole, tables, "tests/test_imports.py")
    case.run(*pytest_quietly, "tests/config/test_load.py", "-k", "absurd or operator or option")
    case.run("docs/write_tables.py")
    page = (case.folder / "docs/attention.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{case.name}` \|.*$", page, re.MULTILINE)
    assert f"`{case.option}`" in row
    supported, cost = re.findall(rf"^\| {case.name} \|.*$", page, re.MULTILINE)
    assert supported.count("| yes") == 4 and "| no (" in supported and re.search(r"\| [0-9]+\.[0-9] \|", cost)
    assert re.search(rf"^\| `{case.option}` \| `[24]` \| a whole number[^|]*\|", page, re.MULTILINE)
    assert f"{case.name} attention needs queries and keys on one grid." in page
    case.run(*pytest_quietly, tables, "tests/layers/test_support.py", "-k", "table or page")
