"""The command `videoattn` and the scripts of a checkout: one program each, named as the user started it."""

import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import run_program
from videoattn.__main__ import main
from videoattn.cli.programs import PROGRAMS, command, make_parser
from videoattn.zoo.rows import ZOO

ROOT = Path(__file__).parents[2]
SCRIPTS = {name: program.script for name, program in PROGRAMS.items() if program.script}


def started_as(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(sys, "argv", [path])


def help_of(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_help_lists_every_program_in_one_line_and_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from videoattn.__main__ import main\n"
        "assert main(['--help']) == 0 and main(['--version']) == 0 and main(['nothing']) == 2\n"
        "print([name for name in ('torch', 'numpy', 'pydantic', 'yaml', 'av') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stderr
    listed = re.findall(r"^  (\w+)  +(\S.*)$", done.stdout, re.MULTILINE)
    assert listed == [(name, program.summary) for name, program in PROGRAMS.items()]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trian", "error: videoattn has no command 'trian'; did you mean train?\n"),
        ("xyz", "error: videoattn has no command 'xyz'; videoattn --help lists all commands\n"),
    ],
)
def test_an_unknown_command_is_answered_in_one_line(
    word: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word, "--cfg", "x"]) == 2
    assert capsys.readouterr().err == message


def test_without_a_command_the_help_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "usage: videoattn COMMAND" in printed.err


def test_a_script_is_the_program_of_its_command() -> None:
    for name, script in SCRIPTS.items():
        assert runpy.run_path(str(ROOT / script))["main"] is importlib.import_module(f"videoattn.cli.{name}").main
        assert len((ROOT / script).read_text().splitlines()) <= 20


def test_examples_run_commands_or_scripts_as_the_program_was_started(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PROGRAMS:
        text = help_of(name, capsys)
        assert text.startswith(f"usage: videoattn {name} ") and f"    videoattn {name}" in text
        assert not re.search(r"tools/|make_motion|python |--cfg configs/", text)
    for name, script in SCRIPTS.items():
        started_as(monkeypatch, f"/home/someone/{script}")
        text = help_of(name, capsys)
        assert text.startswith(f"usage: {Path(script).name} ") and f"    python {script}" in text
        assert not re.search(r"\bvideoattn (train|test|profile|check|prepare|convert|motion|demo)\b", text)
        for path in re.findall(r"--cfg ([^\s;]+\.yaml)", text):
            assert (ROOT / path).is_file()


def test_advice_names_commands_as_the_user_starts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    started_as(monkeypatch, "/usr/bin/videoattn")
    assert command("test") == "videoattn test"
    assert command("train", 4) == "torchrun --nproc_per_node 4 -m videoattn train"
    started_as(monkeypatch, "../my videos/tools/train_net.py")
    assert command("test") == "python tools/test_net.py"
    assert command("train") == "python '../my videos/tools/train_net.py'"
    assert command("train", 4) == "torchrun --nproc_per_node 4 '../my videos/tools/train_net.py'"


def test_the_zoo_is_listed_one_row_a_line_and_each_with_its_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *ZOO]
    for name, row in ZOO.items():
        assert main(["zoo", name]) == 0
        text = capsys.readouterr().out
        assert ("an encoder without classes" if row.top1 is None else f"{row.top1:.2f} %") in text
        assert row.file in text and row.licence in text and f"  MODEL.MODEL_NAME {row.model}\n" in text
    assert main(["zoo", "motion_timesformer_lisa", "--fetch"]) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("weights").strip())
    assert path.name == "motion_timesformer_lisa.safetensors" and path.is_file()
    assert main(["zoo", "--fetch"]) == 2 and main(["zoo", "motion_timesformer_lysa"]) == 2
    assert "did you mean motion_timesformer_lisa" in capsys.readouterr().err


def test_a_shipped_config_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["profile", "--cfg", "Motion/divided.yaml", "--depth", "1", "--json", "cost.json"]) == 0
    done = run_program("tools/profile_net.py", "--cfg", "configs/Motion/divided.yaml", "--depth", "1")
    assert done.returncode == 0 and (tmp_path / "cost.json").is_file()


def test_an_unknown_option_is_told_from_its_neighbour_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        make_parser("train", "").parse_args(["--hepl"])
    assert ended.value.code == 2
    assert re.fullmatch(r"error: --hepl is no option .* did you mean --help\? .*\n", capsys.readouterr().err)


@pytest.mark.slow
def test_a_reader_that_closes_the_output_ends_the_program_without_a_word() -> None:
    program = (
        "import sys; from videoattn.cli.run_tool import run_tool; sys.exit(run_tool(lambda _: print('x' * 10**6)))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (141, b"")
