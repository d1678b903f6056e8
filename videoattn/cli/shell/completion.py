"""Completion of commands, options, settings, and names of operators, models and rows by the shell.

The shell calls the command with `_ARGCOMPLETE` set; `register-python-argcomplete` says what it has to run for that.
"""

import argparse
import os
from collections.abc import Callable, Iterable

from videoattn.cli.programs import PROGRAMS

VARIABLE = "_ARGCOMPLETE"  # set by the shell: the number of words of the command itself
Completer = Callable[..., Iterable[str]]


def is_asked() -> bool:
    """Return whether a shell asks what a word can become."""
    return VARIABLE in os.environ


def find_program() -> str | None:
    """Return the program whose words are completed; complete the name of the program itself where that is asked."""
    words = _words_before()
    if len(words) < 2:
        parser = argparse.ArgumentParser()
        parser.add_argument("command", choices=PROGRAMS)
        complete(parser)
    if words[1] not in PROGRAMS:
        return None
    os.environ[VARIABLE] = "2"  # `videoattn train` is the command
    return words[1]


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell with what the word can become in the arguments of `parser`, and end the process."""
    import argcomplete

    completers: dict[str, Completer] = {
        "overrides": complete_setting,
        "opts": complete_setting,
        "cfg": complete_config,
        "model": complete_model,
        "zoo": complete_row,
        "names": complete_row,
    }
    for action in parser._actions:
        if action.dest in completers:
            action.completer = completers[action.dest]  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options=False)


def complete_setting(prefix: str, **_: object) -> list[str]:
    """Return keys, or where a key was the last word, the names that it expects as its value."""
    from videoattn.config.keys import list_keys, list_values

    last = _words_before()[-1]
    if last == "MODEL.MODEL_NAME":
        return complete_model(prefix)
    return list_values(last) or list_keys()


def complete_config(prefix: str, **_: object) -> list[str]:
    """Return the names of shipped configs, and files that begin with `prefix`."""
    from argcomplete.completers import FilesCompleter

    from videoattn.config.shipped import shipped_configs

    return [*shipped_configs(), *FilesCompleter(("yaml",))(prefix)]


def complete_model(prefix: str, **_: object) -> list[str]:
    """Return the names of models."""
    from videoattn.models.registry import MODELS

    return list(MODELS)


def complete_row(prefix: str, **_: object) -> list[str]:
    """Return the names of the model zoo's rows."""
    from videoattn.zoo.rows import ZOO

    return list(ZOO)


def _words_before() -> list[str]:
    """Return the words of the command line before the one that is completed."""
    from argcomplete.lexers import split_line

    _, _, _, words, _ = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))
    return list(words)
