"""Code in the pages, and commands in docstrings and configurations, are run, parsed, or listed with a reason."""

import argparse
import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.distributed.run import get_args_parser as torchrun_parser

from videoattn.cli.programs import PROGRAMS as CLI_PROGRAMS
from videoattn.config.load import dump_config, load_config, parse_overrides
from videoattn.models import build_model
from videoattn.models.weights.load import save_weights
from videoattn.zoo.rows import find_row

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "model_zoo.md", "CONTRIBUTING.md", "datasets/README.md"]
PAGES += sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
PROGRAMS = ("python", "torchrun", "make", "videoattn")

# Blocks that are neither code nor commands of this project: page, their first line, and what they are.
NOT_RUN = {
    ("datasets/README.md", "videos/abseiling/0347ZoDXyP0_000095_000105.mp4 0"): "lines of a list",
    ("datasets/README.md", "motion/"): "files in a folder; tests/data/motion/test_motion.py makes them",
    ("datasets/README.md", "label,youtube_id,time_start,time_end,split"): "lines of a list",
    ("datasets/README.md", "ffmpeg -i in.mp4 -vf \"scale='if(gt(iw,ih),-2,320)':'if(gt(iw,ih),320,-2)'\" -c:v libx264 "
     "-crf 18 -an out.mp4"): "a program of others",
    ("datasets/README.md", "cat 20bn-something-something-v2-?? | tar zx"): "a program of others, on files of others",
    ("datasets/README.md", "ssv2/                                              DATA.PATH_TO_DATA_DIR"): "a folder",
    ("docs/attention.md", "f = floor(i φ)    a = floor(f φ)    b = floor(f φ²)"): "a formula",
    ("docs/attention.md", "leff:      Φ(Z), with  Φ(x) = y · sigmoid(conv(mean of y)),  y = "
     "reduce(GELU(dwconv(GELU(expand(x)))))"): "a formula",
    ("docs/data.md", "{split}/{label}/{youtube_id}_{start:06d}_{end:06d}.mp4"): "a pattern of file names",
    ("docs/data.md", "DATA.RANDOM_FLIP True DATA.FLIP_LABELS exchange"): "settings; tests/data/test_flip_labels.py",
    ("docs/data.md", "train.csv: flips swap 'rotate_clockwise' and 'rotate_counterclockwise', 'translate_left' and "
     "'translate_right';"): "a line of a log; tests/data/test_flip_labels.py",
    ("docs/data.md", "train-000003.tar/004711_abseiling_x1y2.mp4@512+48213 7"): "a line of a list",
}  # fmt: skip
# Languages of blocks that other tests read: formulas of costs, which test_attention_docs.py computes, math, and the
# steps that test_your_own_attention.py does.
OTHER_LANGUAGES = ("math", "python cost:", "python file:", "python line:", "python own", "yaml own:", "bash own")
# What stands in commands for something of the user's.
PLACEHOLDERS = {
    "FILE": "configs/Kinetics/TimeSformer_divST_8x32_224.yaml",
    "NAME": "motion_timesformer_fibonacci",
    "FOLDER": "data/k400",
}
# No network in tests: the same model without its weights, and smaller.
SUBSTITUTIONS = {
    'VideoMAEForVideoClassification.from_pretrained("MCG-NJU/videomae-base-finetuned-kinetics")':
    "VideoMAEForVideoClassification(__import__('transformers').VideoMAEConfig("
    "image_size=32, num_frames=4, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48))",
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def kind(self) -> str | None:
        if (self.page, self.text.split("\n")[0]) in NOT_RUN:
            return "not run"
        if self.language in ("python", "yaml"):
            return self.language
        if self.language.startswith(OTHER_LANGUAGES):
            return "elsewhere"
        if self.language == "text":
            return "output"
        lines = commands(self.text)
        return "commands" if lines and all(line.split()[0] in PROGRAMS for line in lines) else None


def blocks_of(page: str) -> Iterator[Block]:
    """Fenced blocks, and indented ones that begin with one of PROGRAMS."""
    fence, start, lines = "", 0, [*(ROOT / page).read_text(encoding="utf-8").split("\n"), ""]
    indented: list[str] = []
    for number, line in enumerate(lines):
        if not fence and line.startswith("    ") and (indented or line.split()[0] in PROGRAMS):
            indented.append(line[4:])
        elif indented:
            yield Block(page, number - len(indented) + 1, "", "\n".join(indented))
            indented = []
        if (found := re.match(r"\s*(`{3,})(.*)", line)) is None:
            continue
        if not fence:
            fence, start, language = found[1], number, found[2].strip()
        elif found[1] == fence:
            fence = ""
            yield Block(page, start + 1, language, "\n".join(text.strip() if lines[start][0] == " " else text
                                                             for text in lines[start + 1 : number]))  # fmt: skip


def commands(text: str) -> list[str]:
    """A text's command lines, without comments, continued lines joined, and those on both sides of && apart."""
    found = []
    for line in re.sub(r"\s*\\\n\s*", " ", text).split("\n"):
        words = shlex.split(line, comments=True)
        while "&&" in words:
            found.append(shlex.join(words[: words.index("&&")]))
            words = words[words.index("&&") + 1 :]
        found += [shlex.join(words)] if words else []
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def of_kind(kind: str) -> list[Block]:
    return [block for block in BLOCKS if block.kind == kind]


class Command(NamedTuple):
    where: str
    line: str


def docstring_commands() -> Iterator[Command]:
    """Commands of the examples in the programs' docstrings and of the heads of configurations."""
    for folder in ("videoattn/cli", "benchmarks", "docs"):
        for path in sorted((ROOT / folder).glob("*.py")):
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            text = re.sub(r"\s*\\\n\s*", " ", text)
            for line in re.findall(r"^ {4,}((?:python|torchrun|videoattn) .*)$", text, re.MULTILINE):
                yield from (Command(f"{folder}/{path.name}", one) for one in commands(line))
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        head = re.match(r"(?:#.*\n)*", path.read_text(encoding="utf-8"))
        assert head
        text = re.sub(r"\s*\\\n#\s*", " ", head[0])
        for line in re.findall(r"^# *(?:Command: *)?((?:python|torchrun) .*)$", text, re.MULTILINE):
            yield from (Command(str(path.relative_to(ROOT)), one) for one in commands(line))


COMMANDS = [Command(str(block), line) for block in of_kind("commands") for line in commands(block.text)]
COMMANDS += docstring_commands()


def test_every_block_is_run_parsed_or_listed() -> None:
    unknown = [f"{block}: {block.text.split(chr(10))[0]}" for block in BLOCKS if block.kind is None]
    assert not unknown, "make these run here, or list them in NOT_RUN with a reason"
    listed = {(block.page, block.text.split("\n")[0]) for block in BLOCKS}
    assert set(NOT_RUN) <= listed, "NOT_RUN lists blocks that are not in the pages"


def test_the_pages_have_blocks_of_each_kind() -> None:
    assert len(of_kind("python")) >= 4 and len(of_kind("yaml")) >= 6 and len(of_kind("commands")) >= 10
    assert {"README.md", "model_zoo.md", "docs/performance.md"} <= {block.page for block in of_kind("commands")}
    assert {command.where for command in COMMANDS} >= {"videoattn/cli/train.py", "configs/Motion/divided.yaml"}


@pytest.mark.parametrize("block", of_kind("yaml"), ids=str)
def test_configurations_load_and_build(block: Block, tmp_path: Path) -> None:
    base = re.search(r"^_BASE_: (\S+)$", block.text, re.MULTILINE)
    assert base
    (path,) = (ROOT / "configs").rglob(base[1])
    (tmp_path / "snippet.yaml").write_text(block.text.replace(base[1], str(path)), encoding="utf-8")
    with torch.device("meta"):
        build_model(load_config(tmp_path / "snippet.yaml"))


# ---- Python


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in of_kind("python")}))
def test_python_runs_and_prints_what_the_page_shows(page: str, tmp_path: Path) -> None:
    code = "\n".join(block.text for block in of_kind("python") if block.page == page)
    for original, substitute in SUBSTITUTIONS.items():
        code = code.replace(original, substitute)
    assert "from_pretrained" not in code
    shown = [block.text for block in of_kind("output") if block.page == page]
    make_folder_of_a_user(tmp_path)
    if "checkpoint_best.pyth" in code:
        cfg = load_config(re.findall(r'load_config\("([^"]+)"', code)[0])
        (tmp_path / "runs/demo/checkpoints").mkdir(parents=True)
        path = tmp_path / "runs/demo/checkpoints/checkpoint_best.pyth"
        save_weights(build_model(cfg).state_dict(), path, cfg=dump_config(cfg))
    done = run([sys.executable, "-c", code], tmp_path)
    if shown:
        assert done.stdout.rstrip("\n") in shown


def make_folder_of_a_user(folder: Path) -> None:
    """A place with the project's folders, where runs and data do not get in the project's way."""
    for name in ("configs", "tools", "datasets", "benchmarks", "model_zoo", "docs"):
        (folder / name).symlink_to(ROOT / name)


def run(command: list[str], folder: Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done


# ---- commands


class ParsedError(Exception):
    """Carries a program's arguments out of its main function."""


def parse(program: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """The arguments as the program's own parser reads them; the program then stops."""
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *args: Any, **options: Any) -> None:
        raise ParsedError(parse_args(parser, *args, **options))

    module = load(program)
    with monkeypatch.context() as patch, pytest.raises(ParsedError) as parsed:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        module.main(arguments)
    namespace: argparse.Namespace = parsed.value.args[0]
    return namespace


def load(program: Path) -> Any:
    name = "_".join(["snippet", *program.relative_to(ROOT).with_suffix("").parts])
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, program)
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(program.parent))
        try:
            spec.loader.exec_module(sys.modules[name])
        finally:
            sys.path.remove(str(program.parent))
    return sys.modules[name]


def check_command(line: str, builds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise where a command does not name a program, options, settings and a configuration that exist."""
    first, *words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line)]
    if first == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words) <= set(targets)
        return
    if first == "torchrun":
        launched = torchrun_parser().parse_args(words)
        words = [launched.training_script, *launched.training_script_args]
        first = "videoattn" if launched.module else "python"
        assert not launched.module or words.pop(0) == "videoattn"
    program, *arguments = words
    assert first == "python" or program in CLI_PROGRAMS
    path = ROOT / (program if first == "python" else f"videoattn/cli/{program}.py")
    args = parse(path, arguments, monkeypatch)
    if getattr(args, "zoo", None):
        find_row(args.zoo).config(parse_overrides(args))
    elif "overrides" in args and not getattr(args, "list", None):
        swapped = [f"ATTENTION.{args.axis.upper()}.NAME", args.method] if "method" in args else []
        cfg = load_config(args.cfg, [*swapped, *parse_overrides(args)])
        if builds and args.cfg:
            with torch.device("meta"):
                build_model(cfg)


@pytest.mark.parametrize("where", sorted({command.where for command in COMMANDS}))
def test_commands_name_programs_options_and_settings_that_exist(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    for line in [command.line for command in COMMANDS if command.where == where]:
        try:
            check_command(line, where.split(":")[0] in PAGES, monkeypatch)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{where} says: {line}\nwhich fails: {error}") from error


# What makes the printed commands small: settings that follow the printed ones, and fewer processes.
SMALL = [
    "TIMESFORMER.EMBED_DIM", "24", "TIMESFORMER.NUM_HEADS", "2", "TIMESFORMER.DEPTH", "2", "DATA.NUM_FRAMES", "8",
    "DATA.SAMPLING_RATE", "2", "DATA.TRAIN_CROP_SIZE", "32", "DATA.TEST_CROP_SIZE", "32", "DATA.TRAIN_JITTER_SCALES",
    "[32, 32]", "MODEL.NUM_CLASSES", "8", "SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0", "SOLVER.STEPS", "[0]",
    "SOLVER.LRS", "[1]", "TIMESFORMER.PRETRAINED_MODEL", "", "GLOBAL_BATCH_SIZE", "0",
    "TRAIN.BATCH_SIZE", "8", "DATA_LOADER.NUM_WORKERS", "0", "DEVICE", "cpu",
]  # fmt: skip
CHECKPOINT = "TimeSformer_divST_8x32_224_K400.pyth"
# The blocks that are run, by page and first command; of the others the commands are parsed.
RUN = (
    ("README.md", "python tools/check_data.py"), ("docs/data.md", "python tools/prepare_data.py encode"),
    ("docs/data.md", "python tools/check_data.py"), ("docs/data.md", "python tools/prepare_data.py index"),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("page", "start"), RUN)
def test_commands_run_in_the_order_in_which_they_are_shown(page: str, start: str, tmp_path: Path) -> None:
    (block,) = [b for b in of_kind("commands") if b.page == page and b.text.startswith(start)]
    make_folder_of_a_user(tmp_path)
    make_data_of_a_user(tmp_path)
    for line in commands(block.text):
        run(small_command(line), tmp_path)
    if page == "README.md":
        assert (tmp_path / "runs/k400/checkpoints/checkpoint_best.pyth").is_file()
        assert (tmp_path / "mvit_v2_s.safetensors").is_file()


def make_data_of_a_user(folder: Path) -> None:
    """Clips at the places that the pages name, and two checkpoints that they load."""
    for name in ("k400", "mine"):
        run([sys.executable, "datasets/make_motion.py", f"data/{name}", "--num-train", "16", "--num-val", "8",
             "--size", "32x32"], folder)  # fmt: skip
    shutil.copytree(folder / "data/k400", folder / "data/my")
    for path in (folder / "data/my").glob("*.csv"):
        path.write_text(path.read_text().replace("videos/", ""))
    cfg = load_config(ROOT / "configs/Kinetics/TimeSformer_divST_8x32_224.yaml", SMALL)
    save_weights(build_model(cfg).state_dict(), folder / CHECKPOINT, cfg=dump_config(cfg))
    mvit = build_model(load_config(ROOT / "configs/Kinetics/MVITv2_S_16x4.yaml"))
    save_weights(mvit.state_dict(), folder / "MViTv2_S_16x4_k400_f302660347.pyth", "slowfast")
    packed = ["--list", "data/my/train.csv", "--prefix", "data/my/videos", "--out", "data/others"]
    run([sys.executable, "tools/prepare_data.py", "pack", *packed], folder)
    tar_samples(folder / "data/others")


def tar_samples(folder: Path) -> None:
    """Leave the shards alone, as another program would have written them."""
    for path in folder.iterdir():
        if path.suffix != ".tar":
            path.unlink()


def small_command(line: str) -> list[str]:
    """The printed command, of this Python, with SMALL at its end where it takes settings."""
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line)]
    settings = [*SMALL, "TRAIN.CHECKPOINT_FILE_PATH", CHECKPOINT] if "configs/Clips" in line else SMALL
    if words[0] == "torchrun":
        assert words[1:3] == ["--nproc_per_node", "8"]
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *words[3:]]
    else:
        words[:1] = [sys.executable, *(["-m", "videoattn"] if words[0] == "videoattn" else [])]
    return [*words, *settings] if "--cfg" in words else words
