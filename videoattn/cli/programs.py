"""The programs by name, and how the user of this process starts them.

Nothing heavy is imported here, so that `videoattn --help` answers at once.
"""

import argparse
import difflib
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NoReturn


@dataclass(frozen=True)
class Program:
    """One line of help, and the script of a checkout that runs the same program, if there is one."""

    summary: str
    script: str = ""


# The name of each is also that of its file in this folder.
PROGRAMS = {
    "train": Program("train a model on videos", "tools/train_net.py"),
    "test": Program("evaluate a model on videos, with several views of each", "tools/test_net.py"),
    "profile": Program("count and measure what a model costs", "tools/profile_net.py"),
    "check": Program("check all videos of a data set before training", "tools/check_data.py"),
    "prepare": Program("encode videos, pack them into tar shards, list shards", "tools/prepare_data.py"),
    "convert": Program("rewrite a checkpoint in another project's layout, or in ours", "tools/convert_checkpoint.py"),
    "swap": Program("put sparse attention into dense weights, and see what that saves and costs"),
    "zoo": Program("list published checkpoints and fetch their weights"),
    "motion": Program("render Motion, a small data set of moving shapes", "datasets/make_motion.py"),
    "demo": Program("make videos, train, evaluate and profile in a few minutes", "tools/demo.py"),
}
_SCRIPTS = {PurePath(program.script).name for program in PROGRAMS.values() if program.script}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the option that may have been meant."""

    def parse_args(self, *arguments: Any, **keywords: Any) -> Any:
        from videoattn.cli.shell import completion  # which knows the programs

        if completion.is_asked():
            completion.complete(self)
        return super().parse_args(*arguments, **keywords)

    def error(self, message: str) -> NoReturn:
        start = "unrecognized arguments: "
        if message.startswith(start):
            words = message.removeprefix(start).split()
            wrong = next((word for word in words if word.startswith("-")), words[0])
            known = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(wrong.partition("=")[0], known, n=1)
            message = f"{wrong} is no option of this program" + (f"; did you mean {near[0]}?" if near else "")
        self.exit(2, f"error: {message} ({self.prog} --help lists all options)\n")


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser for a program, whose usage and examples name programs as the user started this one.

    `description` has the form `videoattn train --cfg Motion/divided.yaml`.
    """
    prog = f"videoattn {name}"
    if _runs_a_script():
        prog, description = PurePath(sys.argv[0]).name, _name_scripts(description or "")
    return _Parser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def command(name: str, processes_per_node: int | None = None) -> str:
    """Return what starts a program: `videoattn NAME`, or `python SCRIPT` where the user runs scripts.

    With a number of processes, torchrun starts it.
    """
    launcher = f"torchrun --nproc_per_node {processes_per_node}"
    script = PROGRAMS[name].script
    if not (script and _runs_a_script()):
        return f"videoattn {name}" if processes_per_node is None else f"{launcher} -m videoattn {name}"
    if PurePath(script).name == PurePath(sys.argv[0]).name:
        script = shlex.quote(sys.argv[0])
    return f"{'python' if processes_per_node is None else launcher} {script}"


def _runs_a_script() -> bool:
    return PurePath(sys.argv[0]).name in _SCRIPTS


def _name_scripts(text: str) -> str:
    """Return a text whose commands run the scripts and files of a checkout."""
    for name, program in PROGRAMS.items():
        if program.script:
            text = re.sub(rf"-m videoattn {name}\b", program.script, text)
            text = re.sub(rf"\bvideoattn {name}\b", f"python {program.script}", text)
    return re.sub(r"--cfg (?=[A-Z]\w*/)", "--cfg configs/", text)
