"""Mutated configurations: each loads, builds and has a finite schedule, or is one clear error that names the fault."""

import copy
import json
import math
import random
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.config.published_defaults import (
    SLOWFAST_DEFAULTS,
    TIMESFORMER_DEFAULTS,
    dump_of,
    fill_kv_strides,
    flatten,
    nest,
)
from tests.config.test_published_keys import published as published_timesformer
from tests.config.test_published_mvit import published as published_mvit
from tests.fuzz.time_limit import Hang, time_limit
from videoattn.config import Config
from videoattn.config.ignored_keys import IGNORED
from videoattn.config.keys import list_fields
from videoattn.config.load import ConfigReport, load_config_with_report
from videoattn.config.published_keys import TRANSLATED
from videoattn.config.strict_yaml import freeze, read_settings
from videoattn.engine.optim import build_schedule
from videoattn.models import build_model

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "configs"
NUM_CASES, SECONDS, MOST_LINES = 300, 60, 25
KNOWN = {*list_fields(Config), *IGNORED, *(key for key, *_ in TRANSLATED), "_BASE_"}
OPERATOR_OPTIONS = ("ATTENTION.SPACE.", "ATTENTION.TIME.", "ATTENTION.JOINT.")


@dataclass
class Case:
    """A mutated file: its text, what must be named if it is refused, and what must be refused or hold if it loads."""

    kind: str
    text: str
    names: tuple[str, ...]
    must_fail: bool = False
    key: str | None = None
    value: object = None


def sources() -> list[dict[str, Any]]:
    """Settings by dotted key: files of ours, published files, and dumps with every key of the original program."""
    mvit, timesformer = published_mvit("Kinetics/MVITv2_S_16x4"), published_timesformer("divST_8x32_224")
    small = published_mvit("Kinetics/MVIT_B_16x4_CONV")
    trees = [mvit, timesformer, fill_kv_strides(dump_of(mvit, SLOWFAST_DEFAULTS)), dump_of(small, SLOWFAST_DEFAULTS),
             dump_of(timesformer, TIMESFORMER_DEFAULTS)]  # fmt: skip
    found = [dict(flatten(tree)) for tree in trees]
    for name in ("Motion/divided.yaml", "Motion/mvit_divided.yaml", "Clips/TimeSformer_from_K400.yaml",
                 "Kinetics/MVIT_B_16x4_CONV.yaml", "SSv2/TimeSformer_divST_8_224.yaml"):  # fmt: skip
        path = CONFIGS / name
        settings: dict[str, Any] = {key: given.value for key, given in read_settings(path.read_text(), name).items()}
        if "_BASE_" in settings:
            settings["_BASE_"] = str(path.parent / settings["_BASE_"])
        found.append(settings)
    return found


def as_text(settings: dict[str, Any]) -> str:
    """YAML in blocks, a line for a key; numbers such as 1e-6 as Python writes them."""
    lines, tree = [], nest(settings)
    for section, content in tree.items():
        if isinstance(content, dict) and section:
            lines += [f"{section}:", *(f"  {key}: {json.dumps(value)}" for key, value in content.items())]
        else:
            lines.append(f"{section}: {json.dumps(content)}")
    return "\n".join(lines) + "\n"


def misspell(rng: random.Random, word: str) -> str:
    i = rng.randrange(len(word))
    letter = rng.choice(string.ascii_uppercase)
    return rng.choice([word[:i] + word[i + 1 :], word[:i] + letter + word[i:], word[:i] + letter + word[i + 1 :],
                       word.lower(), word + "S", word[::-1]]) or letter  # fmt: skip


def misspelt_key(rng: random.Random, settings: dict[str, Any]) -> Case:
    key = rng.choice([key for key in settings if key != "_BASE_"])
    parts = key.split(".")
    at = rng.randrange(len(parts))
    parts[at] = misspell(rng, parts[at])
    new = ".".join(parts)
    changed = {new if name == key else name: value for name, value in settings.items()}
    return Case("misspelt key", as_text(changed), (new,), must_fail=new not in KNOWN)


def moved_section(rng: random.Random, settings: dict[str, Any]) -> Case:
    sections = sorted({key.partition(".")[0] for key in settings if "." in key})
    one, other = rng.sample(sections, 2)
    swap = {one: other, other: one}
    changed = {}
    for key, value in settings.items():
        section, dot, name = key.partition(".")
        changed[f"{swap.get(section, section)}{dot}{name}" if dot else key] = value
    unknown = [key for key in changed if key not in KNOWN and not key.startswith(OPERATOR_OPTIONS)]
    return Case("swapped sections", as_text(changed), (one, other), must_fail=bool(unknown))


WRONG: list[Any] = [None, True, False, 0, 1, -1, 2.5, "text", "", [], [1], [1, 2, 3], ["a"], [[1]], [None], {"A": 1}]
EXTREMES: list[Any] = [
    0, -1, 1e-300, -1e-300, 10**6, 10**12, -(10**12), 10**30, 1e30, 1e300, math.inf, -math.inf, math.nan, 0.9999999999,
    [0, 0], [1e300, 1], [10**12] * 3, [0, 0, 0], [[0, 10**9]], [[0, 0, 0, 0]], [[10**9, 1, 2, 2]], [-1, -1, -1],
]  # fmt: skip


def replaced_value(kind: str, values: list[Any], rng: random.Random, settings: dict[str, Any]) -> Case:
    keys = [key for key in settings if key != "_BASE_"]
    if kind == "extreme number":
        keys = [key for key in keys if isinstance(settings[key], int | float | list) and key not in IGNORED]
    key, value = rng.choice(keys), copy.deepcopy(rng.choice(values))
    return Case(kind, as_text({**settings, key: value}), (key,), key=key, value=value)


def repeated_key(rng: random.Random, settings: dict[str, Any]) -> Case:
    lines = as_text(settings).splitlines()
    number = rng.randrange(len(lines))
    key = lines[number].strip().partition(":")[0]
    end = next((i for i in range(number + 1, len(lines)) if not lines[i].startswith("  ")), len(lines))
    again = lines[number:end] if not lines[number].startswith("  ") else [lines[number]]
    at = end if not lines[number].startswith("  ") else number + 1
    text = "\n".join([*lines[:at], *again, *lines[at:]]) + "\n"
    published = settings.get("MODEL.MODEL_NAME") in ("MViT", "vit_base_patch16_224")
    return Case("repeated key", text, (key,), must_fail=not published)


def broken_text(rng: random.Random, settings: dict[str, Any]) -> Case:
    text = as_text(settings)
    at = rng.randrange(len(text))
    what = rng.choice(["cut", "delete", "insert", "tab", "quote", "nest"])
    if what == "cut":
        text = text[:at]
    elif what == "delete":
        text = text[:at] + text[at + rng.randint(1, 5) :]
    else:
        extra = {"insert": rng.choice("[]{}:,#&*!|>%@`\"'?-\x00\u2028é"), "tab": "\t", "quote": '"', "nest": "[" * 3000}
        text = text[:at] + extra[what] + text[at:]
    return Case(f"broken text: {what}", text, ("cfg.yaml", ""))


def stray_key(rng: random.Random, settings: dict[str, Any]) -> Case:
    sections = sorted({key.rpartition(".")[0] for key in KNOWN if "." in key and not key.startswith("ATTENTION")})
    key = f"{rng.choice(sections)}.{''.join(rng.choices(string.ascii_uppercase, k=5))}"
    return Case("stray key", as_text({**settings, key: rng.choice(WRONG[:10])}), (key,), must_fail=True)


KINDS: list[Callable[[random.Random, dict[str, Any]], Case]] = [
    misspelt_key, moved_section, repeated_key, broken_text, stray_key,
    lambda rng, settings: replaced_value("another type", WRONG, rng, settings),
    lambda rng, settings: replaced_value("extreme number", EXTREMES, rng, settings),
]  # fmt: skip


def check_loaded(case: Case, cfg: Config, report: ConfigReport) -> None:
    """A file that loads builds, has a finite schedule, and its changed key holds the value it was given or is noted."""
    with torch.device("meta"):
        build_model(cfg)
    rates = list(map(build_schedule(cfg), torch.linspace(0, cfg.solver.max_epoch, 64).tolist()[:-1]))
    assert all(math.isfinite(rate) and rate >= 0 for rate in rates), rates
    assert not case.must_fail, "accepted without a word"
    if case.key is None or case.key in {note.key for note in (*report.ignored, *report.translated)}:
        return
    held: Any = cfg.model_dump(by_alias=True)
    for part in case.key.split("."):
        held = held[part]
    assert freeze(held) == freeze(case.value), f"{case.key} holds {held!r}, given {case.value!r}"


def test_300_mutated_configurations_load_and_build_or_are_refused_by_name(tmp_path: Path) -> None:
    rng = random.Random(15)
    outcomes: Counter[str] = Counter()
    kinds: Counter[tuple[str, str]] = Counter()
    faults: list[str] = []
    originals = sources()
    path = tmp_path / "cfg.yaml"
    for settings in originals:
        path.write_text(as_text(settings), encoding="utf-8")
        check_loaded(Case("original", "", ()), *load_config_with_report(path))
    for number in range(NUM_CASES):
        case = KINDS[number % len(KINDS)](rng, originals[number // len(KINDS) % len(originals)])
        path.write_text(case.text, encoding="utf-8")
        try:
            with time_limit(SECONDS):
                check_loaded(case, *load_config_with_report(path))
            outcome = "built"
        except ValueError as error:
            message = str(error)
            named = any(name.rpartition(".")[2] in message for name in case.names) or f"{path}:" in message
            short = message.count("\n") < MOST_LINES and len(message) < 8000
            outcome = "refused" if named and short else "badly worded"
            if outcome != "refused":
                faults.append(f"{number} {case.kind} {case.names}: {message[:500]}")
        except Hang:
            outcome = "hang"
            faults.append(f"{number} {case.kind} {case.names}: over {SECONDS} s")
        except AssertionError as error:
            outcome = "silent"
            faults.append(f"{number} {case.kind} {case.names}: {error}")
        except Exception as error:  # whatever else is a traceback for the user
            outcome = "traceback"
            faults.append(f"{number} {case.kind} {case.names}: {type(error).__name__}: {error}")
        outcomes[outcome] += 1
        kinds[case.kind, outcome] += 1
    print(dict(outcomes), {" ".join(key): count for key, count in sorted(kinds.items())})
    assert not faults, "\n".join([str(dict(outcomes)), *faults])
    assert sum(outcomes.values()) == NUM_CASES and set(outcomes) == {"built", "refused"}
    assert min(outcomes.values()) >= NUM_CASES // 10  # neither is the rule alone
