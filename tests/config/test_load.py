"""Configs from files and the command line: values, overrides, errors."""

import argparse
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from videoattn.config import Config
from videoattn.config.attention import OPERATOR_SECTIONS, OperatorSection
from videoattn.config.keys import list_fields
from videoattn.config.load import (
    ConfigError,
    add_config_arguments,
    changed_keys,
    dump_config,
    load_config,
    parse_config,
    parse_overrides,
)
from videoattn.models import MODELS
from videoattn.models.build import parse_description


def write(folder: Path, text: str, name: str = "cfg.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def problems_of(path: Path | None, *overrides: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return list(caught.value.problems)


# Reading


def test_no_file_gives_the_defaults() -> None:
    assert load_config(None) == Config()


def test_a_file_changes_what_it_names_only(tmp_path: Path) -> None:
    path = write(tmp_path, "DATA:\n  NUM_FRAMES: 16\n  TRAIN_JITTER_SCALES: [128, 160]\nRNG_SEED: 3\n")
    cfg = load_config(path)
    assert (cfg.data.num_frames, cfg.data.train_jitter_scales, cfg.rng_seed) == (16, (128, 160), 3)
    assert cfg.train == Config().train


@pytest.mark.parametrize(("text", "value"), [("1e-6", 1e-6), ("5e-3", 0.005), ("1", 1.0), ("2.", 2.0), (".5", 0.5)])
def test_numbers_are_read_as_slowfast_means_them(tmp_path: Path, text: str, value: float) -> None:
    assert load_config(write(tmp_path, f"SOLVER: {{BASE_LR: {text}}}")).solver.base_lr == value
    assert load_config(None, ["SOLVER.BASE_LR", text]).solver.base_lr == value


def test_tuples_and_none_are_read_as_slowfast_means_them(tmp_path: Path) -> None:
    cfg = load_config(write(tmp_path, "DATA:\n  MEAN: (0.1, 0.2, 3e-1)\nTIMESFORMER: {DEPTH: None}\n"))
    assert cfg.data.mean == (0.1, 0.2, 0.3)
    assert cfg.timesformer.depth is None


@pytest.mark.parametrize("text", ["yes", "on", "010", "1_000", "1:30", "2024-01-01", "<<", "=", "null_", "(a)"])
def test_what_plain_yaml_would_guess_stays_text(tmp_path: Path, text: str) -> None:
    assert load_config(write(tmp_path, f"OUTPUT_DIR: {text}")).output_dir == text


def test_an_empty_file_and_an_empty_section_change_nothing(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == Config()
    assert load_config(write(tmp_path, "TRAIN:\nDATA: {}\nBN:\n")) == Config()


def test_nobody_writes_to_a_config(tmp_path: Path) -> None:
    cfg = load_config(None, ["ATTENTION.SPACE.LAYERS", "[1, 2]"])
    for section, name in ((cfg, "rng_seed"), (cfg.data, "num_frames"), (cfg.attention.space[0], "layers")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, 5)
    assert hash(cfg.attention.space) == hash(cfg.attention.space)


# Bases


def test_a_file_lies_over_its_bases_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, "DATA: {NUM_FRAMES: 4, SAMPLING_RATE: 2, MEAN: [0.1, 0.2, 0.3]}\nRNG_SEED: 1", "first.yaml")
    write(tmp_path, "DATA: {NUM_FRAMES: 8, STD: [1, 0.2, 0.3]}", "second.yaml")
    path = write(tmp_path, "_BASE_: [../first.yaml, ../second.yaml]\nDATA:\n  SAMPLING_RATE: 5", "deep/cfg.yaml")
    cfg = load_config(path)
    assert (cfg.data.num_frames, cfg.data.sampling_rate, cfg.rng_seed) == (8, 5, 1)
    assert (cfg.data.mean, cfg.data.std) == ((0.1, 0.2, 0.3), (1.0, 0.2, 0.3))


def test_a_base_of_a_base_is_read_relative_to_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path, "RNG_SEED: 7", "a/root.yaml")
    write(tmp_path, "_BASE_: root.yaml", "a/middle.yaml")
    assert load_config(write(tmp_path, "_BASE_: a/middle.yaml")).rng_seed == 7


def test_bases_that_run_in_a_circle_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "_BASE_: b.yaml", "a.yaml")
    write(tmp_path, "_BASE_: a.yaml", "b.yaml")
    (problem,) = problems_of(tmp_path / "a.yaml")
    assert "circle" in problem and problem.count("a.yaml") >= 2 and "b.yaml" in problem


def test_a_missing_base_is_named_with_the_file_that_asks_for_it(tmp_path: Path) -> None:
    path = write(tmp_path, "_BASE_: gone.yaml")
    assert problems_of(path) == [f"{tmp_path}/gone.yaml: No such file or directory (_BASE_ of {path})"]


def options_of(operators: tuple[OperatorSection, ...]) -> list[tuple[str, tuple[int, ...], dict[str, Any]]]:
    """Name, layers and options other than the default ones."""
    return [
        (
            operator.name,
            operator.layers,
            {k: v for k, v in operator.options.items() if v != type(operator).model_fields[k].default},
        )
        for operator in operators
    ]


def test_another_operator_does_not_inherit_options(tmp_path: Path) -> None:
    write(tmp_path, "ATTENTION:\n  SPACE: {NAME: fibonacci, VARIANT: wythoff}", "base.yaml")
    path = write(tmp_path, "_BASE_: base.yaml\nATTENTION:\n  SPACE: {NAME: dense}")
    assert options_of(load_config(path).attention.space) == [("dense", (), {})]
    same = write(tmp_path, "_BASE_: base.yaml\nATTENTION:\n  SPACE: {NAME: fibonacci, ORDER: hwt}", "same.yaml")
    assert options_of(load_config(same).attention.space) == [("fibonacci", (), {"variant": "wythoff", "order": "hwt"})]


# Operators of different blocks

TWO = "ATTENTION:\n  JOINT:\n  - {NAME: lisa, LAYERS: 0-3, NUM_PATTERNS: 2}\n  - NAME: fibonacci\n    LAYERS: 4-6, 9"


def test_a_list_gives_blocks_different_operators(tmp_path: Path) -> None:
    cfg = load_config(write(tmp_path, TWO))
    assert options_of(cfg.attention.joint) == [
        ("lisa", (0, 1, 2, 3), {"num_patterns": 2}),
        ("fibonacci", (4, 5, 6, 9), {}),
    ]
    assert load_config(write(tmp_path, dump_config(cfg), "dumped.yaml")) == cfg


def test_a_list_replaces_what_a_base_says_and_its_items_can_be_changed_by_number(tmp_path: Path) -> None:
    write(tmp_path, "ATTENTION: {JOINT: {NAME: fibonacci, VARIANT: wythoff}}", "base.yaml")
    path = write(tmp_path, f"_BASE_: base.yaml\n{TWO}")
    cfg = load_config(path, ["ATTENTION.JOINT.1.LAYERS", "7", "ATTENTION.JOINT.0.NUM_PATTERNS", "3"])
    assert options_of(cfg.attention.joint) == [("lisa", (0, 1, 2, 3), {"num_patterns": 3}), ("fibonacci", (7,), {})]
    single = write(tmp_path, "_BASE_: cfg.yaml\nATTENTION: {JOINT: {NAME: lisa}}", "single.yaml")
    assert options_of(load_config(single).attention.joint) == [("lisa", (), {})]


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("4-6", (4, 5, 6)),
        ("3", (3,)),
        ("[5, 1, 1]", (1, 5)),
        ("'1, 7-8'", (1, 7, 8)),
        ("[2, 4-5]", (2, 4, 5)),
        ("[]", ()),
    ],
)
def test_blocks_are_written_as_ranges_or_lists(tmp_path: Path, text: str, layers: tuple[int, ...]) -> None:
    cfg = load_config(write(tmp_path, f"ATTENTION: {{SKIP: {{TIME: {text}}}}}"))
    assert cfg.attention.skip.time == layers


@pytest.mark.parametrize("text", ["5-3", "a", "-1", "1.5", "[1, x]", "True"])
def test_other_block_numbers_are_refused(tmp_path: Path, text: str) -> None:
    (problem,) = problems_of(write(tmp_path, f"ATTENTION: {{TIME: {{LAYERS: {text}}}}}"))
    assert ":1: ATTENTION.TIME.LAYERS expects block numbers from 0 to 127, such as 4-11 or [0, 3], got" in problem


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "TIME: {NAME: fibonaci}",
            f"cfg.yaml:2: ATTENTION.TIME.NAME expects one of {', '.join(OPERATOR_SECTIONS)}, got",
        ),
        (
            "TIME: {NAME: fibonacci, VARIENT: x}",
            "ATTENTION.TIME.VARIENT is not an option of fibonacci (options: LAYERS, ",
        ),
        ("TIME: {NAME: fibonacci, VARIENT: x}", "did you mean VARIANT?"),
        ("TIME: {VARIANT: wythoff}", "ATTENTION.TIME.VARIANT is not an option of dense (options: LAYERS, DENSE_HEADS)"),
        ("TIME: {NAME: fibonacci, VARIANT: x}", ":2: ATTENTION.TIME.VARIANT expects 'modified' or 'wythoff', got 'x'"),
        ("TIME: {NAME: fibonacci, IMPLEMENTATION: pairs}", "'auto', 'masked', 'gather' or 'compiled', got 'pairs'"),
        ("TIME: {NAME: fibonacci, KEEP_SELF: 1}", ":2: ATTENTION.TIME.KEEP_SELF expects True or False, got 1"),
        (
            "TIME: {NAME: lisa, NUM_PATTERNS: 0}",
            "ATTENTION.TIME.NUM_PATTERNS expects a number greater than or equal to 1",
        ),
        (
            "TIME: [{NAME: dense, LAYERS: 0}, {NAME: lisa, LAYERS: 1, L: 2}]",
            "ATTENTION.TIME.1.L is not an option of lisa",
        ),
        ("TIME: [{NAME: dense, LAYERS: 0}, {NAME: lisa}]", "ATTENTION.TIME: each of several operators needs LAYERS"),
        (
            "TIME: [{NAME: lisa, LAYERS: 0-2}, {NAME: dense, LAYERS: 2}]",
            "2: ATTENTION.TIME: LAYERS of several operators",
        ),
        (
            "TIME: [{NAME: lisas, LAYERS: 0-2}]",
            f":2: ATTENTION.TIME.0.NAME expects one of {', '.join(OPERATOR_SECTIONS)}, got",
        ),
        ("TIME: []", "ATTENTION.TIME is a section and expects KEY: value lines, got []"),
        ("TIME: dense", "ATTENTION.TIME is a section and expects KEY: value lines, got 'dense'"),
        ("SKIP: {PHI: conv}", ":2: ATTENTION.SKIP.PHI expects 'leff', 'identity' or 'weights', got 'conv'"),
        ("SKIP: {TIEM: 3}", ":2: ATTENTION.SKIP.TIEM is not a setting; did you mean ATTENTION.SKIP.TIME?"),
    ],
)
def test_what_is_wrong_with_an_operator_is_said_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    (problem,) = problems_of(write(tmp_path, f"ATTENTION:\n  {text}"))
    assert words in problem


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("ATENTION.TIME.NAME", "ATTENTION.TIME.NAME"),
        ("ATTENTION.TME.VARIANT", "ATTENTION.TIME.VARIANT"),
        ("ATTENTION.JONT.LAYERS", "ATTENTION.JOINT.LAYERS"),
        ("ATTENTION.SKP.TIME", "ATTENTION.SKIP.TIME"),
    ],
)
def test_a_misspelt_axis_is_told_the_nearest_key(key: str, meant: str) -> None:
    assert problems_of(None, key, "1") == [f"command line: {key} is not a setting; did you mean {meant}?"]


def test_an_option_beside_a_list_is_refused(tmp_path: Path) -> None:
    (problem,) = problems_of(write(tmp_path, TWO), "ATTENTION.JOINT.VARIANT", "wythoff")
    assert problem.startswith("command line: ATTENTION.JOINT.VARIANT can't stand beside a list of operators")


# The command line


def parse(*items: str) -> list[str]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", action="store_true")
    add_config_arguments(parser)
    return parse_overrides(parser.parse_args(items))


@pytest.mark.parametrize("lead", [(), ("--opts",), ("--measure",), ("--measure", "--opts")])
def test_pairs_are_read_with_and_without_opts(lead: tuple[str, ...]) -> None:
    pairs = ["TRAIN.BATCH_SIZE", "4", "RNG_SEED", "-1", "SOLVER.BASE_LR", "-1e-3"]
    assert parse("--cfg", "cfg.yaml", *lead, *pairs) == pairs
    assert parse(*lead) == []


def test_help_explains_the_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    assert "--cfg FILE" in capsys.readouterr().out


def test_a_key_without_a_value_is_named() -> None:
    with pytest.raises(ConfigError, match="'RNG_SEED' is left without a value"):
        parse("--cfg", "cfg.yaml", "TRAIN.BATCH_SIZE", "4", "RNG_SEED")
    with pytest.raises(ConfigError, match="'RNG_SEED' is left without a value"):
        load_config(None, ["RNG_SEED"])


def test_an_option_after_the_pairs_is_named() -> None:
    with pytest.raises(ConfigError, match="--measure"):
        parse("TRAIN.BATCH_SIZE", "4", "--measure")


def test_overrides_lie_over_the_file_and_the_last_one_holds(tmp_path: Path) -> None:
    path = write(tmp_path, "DATA: {NUM_FRAMES: 4, SAMPLING_RATE: 3}")
    cfg = load_config(path, ["DATA.NUM_FRAMES", "16", "DATA.NUM_FRAMES", "32", "DATA.MEAN", "[1, 0, 3e-1]"])
    assert (cfg.data.num_frames, cfg.data.sampling_rate, cfg.data.mean) == (32, 3, (1, 0, 0.3))


def test_overrides_may_be_python_values() -> None:
    cfg = load_config(None, ["DATA.NUM_FRAMES", 16, "DATA.MEAN", [0.1, 0.2, 0.3], "TIMESFORMER.DEPTH", None])
    assert (cfg.data.num_frames, cfg.data.mean, cfg.timesformer.depth) == (16, (0.1, 0.2, 0.3), None)
    assert problems_of(None, "OUTPUT_DIR", 3) == ["command line: OUTPUT_DIR expects text, got 3"]


@pytest.mark.parametrize("text", ["", " ", ",", "2024", "None", "[a", "{b", "a: b # c", "'q'", "1e-6", "*x", "-"])
def test_a_text_setting_takes_what_stands_on_the_command_line(text: str) -> None:
    assert load_config(None, ["DATA.PATH_LABEL_SEPARATOR", text]).data.path_label_separator == text


def test_operators_take_options_from_the_command_line() -> None:
    cfg = load_config(None, ["ATTENTION.TIME", "{NAME: fibonacci, KEEP_SELF: False}", "ATTENTION.TIME.ORDER", "hwt"])
    assert options_of(cfg.attention.time) == [("fibonacci", (), {"keep_self": False, "order": "hwt"})]
    listed = load_config(None, ["ATTENTION.TIME", "[{NAME: lisa, LAYERS: 0-1}, {NAME: dense, LAYERS: 2}]"])
    assert [operator.layers for operator in listed.attention.time] == [(0, 1), (2,)]


# Errors


def test_all_problems_come_at_once_with_file_line_and_key(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """\
TRAIN:
  BATCH_SIZE: "8"
  BATCHSIZE: 3
  ENABLE: yes
TRIAN:
  EVAL_PERIOD: 3
  X: 3
DATA:
  MEAN: [1, 0]
  STD: [0.1, x, 0.3]
NUM_FRAMES: 8
TEST: 5
ATTENTION: {SPACE: {wmin: 3}}
SOLVER:
  BASE_LR: -1
  MAX_EPOCH: 1.5
  MOMENTUM: True
""",
    )
    assert problems_of(path, "TRAIN.PRECISION", "fp8", "RNG_SEED", "None") == [
        f"{path}:3: TRAIN.BATCHSIZE is not a setting; did you mean TRAIN.BATCH_SIZE?",
        f"{path}:6: TRIAN.EVAL_PERIOD is not a setting; did you mean TRAIN.EVAL_PERIOD?",
        f"{path}:7: TRIAN.X is not a setting; did you mean TRAIN?",
        f"{path}:11: NUM_FRAMES is not a setting; did you mean DATA.NUM_FRAMES?",
        f"{path}:12: TEST is a section and expects KEY: value lines, got 5",
        f"{path}:13: ATTENTION.SPACE.wmin is not a setting; did you mean ATTENTION.SPACE.WMIN?",
        f"{path}:4: TRAIN.ENABLE expects True or False, got 'yes'",
        f"{path}:2: TRAIN.BATCH_SIZE expects a whole number, got '8'",
        "command line: TRAIN.PRECISION expects 'fp32', 'bf16' or 'fp16', got 'fp8'",
        f"{path}:9: DATA.MEAN expects 3 values, got [1, 0]",
        f"{path}:10: DATA.STD[1] expects a number, got 'x'",
        f"{path}:15: SOLVER.BASE_LR expects a number greater than or equal to 0, got -1",
        f"{path}:16: SOLVER.MAX_EPOCH expects a whole number, got 1.5",
        f"{path}:17: SOLVER.MOMENTUM expects a number, got True",
        "command line: RNG_SEED expects a whole number, got None",
    ]


def test_one_problem_is_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["TRAIN.ENABLE", "1"])
    assert str(caught.value) == "command line: TRAIN.ENABLE expects True or False, got 1"


def test_rules_about_several_settings_name_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "SOLVER:\n  LR_POLICY: steps_with_relative_lrs\n  STEPS: [0, 2]\n  LRS: [1]\n")
    (problem,) = problems_of(path)
    assert problem.startswith(f"{path}:2, {path}:3, {path}:4: SOLVER.LR_POLICY steps") and "got [0.0, 2.0]" in problem


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("RNG_SEED: 1\nRNG_SEED: 2", 2, "RNG_SEED is repeated; it first stands at"),
        ("DATA:\n  MEAN: [1, 2, 3]\n  STD: [1, 1, 1]\n  MEAN: [1, 2, 3]", 4, "DATA.MEAN is repeated"),
        ("DATA: {}\nRNG_SEED: [1,", 2, "not valid YAML"),
        ("DATA:\n\tMEAN: 3", 2, "not valid YAML"),
        ("RNG_SEED: &a 1\nLOG_PERIOD: *a", 2, "aliases"),
        ("DATA: !!python/object:os.system {}", 1, "not valid YAML: tags (tag:yaml.org,2002:python/object:os.system)"),
        ("- 1\n- 2", 1, "KEY: value lines, got [1, 2]"),
        ("just text", 1, "KEY: value lines, got 'just text'"),
        ("1: 2", 1, "a key is a word in capitals, got 1"),
        ("TRIAN: {}", 1, "TRIAN is not a setting; did you mean TRAIN?"),
        ("_BASE_: 3", 1, "_BASE_ expects a file name"),
    ],
)
def test_an_unreadable_file_is_named_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = write(tmp_path, text)
    (problem,) = problems_of(path)
    assert problem.startswith(f"{path}:{line}: ") and words in problem


def test_a_missing_file_a_folder_and_a_binary_file_are_named(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "gone.yaml") == [f"{tmp_path}/gone.yaml: No such file or directory"]
    assert problems_of(tmp_path) == [f"{tmp_path}: Is a directory"]
    (tmp_path / "cfg.yaml").write_bytes(b"\xff\xfe\x00")
    (problem,) = problems_of(tmp_path / "cfg.yaml")
    assert problem.startswith(f"{tmp_path}/cfg.yaml: 'utf-8' codec")


# Ranges


def nested(value: float) -> list[object]:
    """A number where settings take one, a list, or a list of lists."""
    return [value, [value], [value, value], [value] * 3, [0, value], [[1, value]], [[1, value, value, value]]]


@pytest.mark.parametrize("value", [10**30, -(10**30), 1e300, -1e300, math.inf, -math.inf, math.nan])
def test_no_setting_takes_an_absurd_number(value: float) -> None:
    keys = [key for key in list_fields(Config) if "." in key or key in ("RNG_SEED", "LOG_PERIOD", "GLOBAL_BATCH_SIZE")]
    keys = [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]
    for key in keys:
        if key not in ("ATTENTION.SPACE", "ATTENTION.TIME", "ATTENTION.JOINT"):
            for item in nested(value):
                problems = problems_of(None, key, item)
                assert any(problem.startswith(f"command line: {key}") for problem in problems), (key, item)
    for operator, section in OPERATOR_SECTIONS.items():
        for option in section.model_fields:
            for item in nested(value):
                key = f"ATTENTION.TIME.{option.upper()}"
                (problem,) = problems_of(None, "ATTENTION.TIME.NAME", operator, key, item)
                assert problem.startswith(f"command line: {key}")


@pytest.mark.parametrize(
    ("key", "lowest", "highest", "outside"),
    [
        ("DATA.NUM_FRAMES", 1, 10_000, [0, 10_001]),
        ("TRAIN.BATCH_SIZE", 1, 65_536, [0, 65_537]),
        ("DATA_LOADER.NUM_WORKERS", 0, 1024, [-1, 1025]),
        ("AUG.NUM_SAMPLE", 1, 256, [0, 257]),
        ("TIMESFORMER.DEPTH", 1, 128, [0, 129]),
        ("SOLVER.MOMENTUM", 0, 0.99, [-0.1, 1.0]),
        ("SOLVER.BETAS", [0, 0], [0.9, 0.999], [[0.9, 1.0], [1.0, 0.9]]),
        ("EMA.DECAY", 0, 0.9999, [1.0]),
        ("MODEL.DROPOUT_RATE", 0, 0.99, [1.0]),
        ("DATA.TARGET_FPS", 0.01, 1000, [0, 1e-9, 1001]),
        ("DATA.FRAMES_FPS", 0, 1000, [1e-9, 1001]),
        ("DATA.MEAN", [0, 0, 0], [1, 1, 1], [[123.675, 116.28, 103.53], [-0.1, 0, 0]]),
        ("DATA.STD", [0.001] * 3, [1, 1, 1], [[0, 1, 1], [58.395, 57.12, 57.375]]),
        ("DATA.TRAIN_JITTER_SCALES", [1, 1], [8192, 8192], [[0, 1], [320, 256], [256, 8193]]),
        ("MVIT.PATCH_STRIDE", [1, 1, 1], [1024] * 3, [[0, 4, 4], [2, 0, 4]]),
        ("MVIT.POOL_Q_STRIDE", [[0, 1, 1, 1]], [[127, 1024, 1024, 1024]], [[[0, 0, 2, 2]], [[-1, 1, 2, 2]]]),
        ("MVIT.DIM_MUL", [[0, 0.01]], [[127, 100]], [[[1, 0]], [[1, 2], [1, 3]]]),
        ("ATTENTION.TIME.LAYERS", 0, "0-127", ["0-999999999999", 128]),
        ("ATTENTION.SKIP.TIME", 1, "1-127", [0, "0-3"]),
    ],
)
def test_a_setting_has_a_range(key: str, lowest: object, highest: object, outside: list[object]) -> None:
    for value in (lowest, highest):
        load_config(None, [key, value])
    for value in outside:
        problem = problems_of(None, key, value)[0]
        assert problem.startswith(f"command line: {key}") and "expects" in problem


def test_pixel_means_of_0_to_255_are_told_the_scale() -> None:
    (*_, problem) = problems_of(None, "DATA.MEAN", [123.675, 116.28, 103.53])
    assert problem == (
        "command line: DATA.MEAN[2] expects a number from 0 to 1, since pixels are scaled to 0..1 (divide one of "
        "0..255 by 255), got 103.53"
    )


def test_an_infinite_number_is_called_that(tmp_path: Path) -> None:
    path = write(tmp_path, "SOLVER: {BASE_LR: 1e999, LRS: [1, -5]}")
    assert problems_of(path) == [
        f"{path}:1: SOLVER.BASE_LR expects a finite number, got inf",
        f"{path}:1: SOLVER.LRS[1] expects a number greater than or equal to 0, got -5",
    ]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["SOLVER.WARMUP_EPOCHS", 2, "SOLVER.MAX_EPOCH", 2],
            "SOLVER.WARMUP_EPOCHS 2 expects less than SOLVER.MAX_EPOCH 2; otherwise warm-up would not end. "
            "For a run of 2 epochs set SOLVER.WARMUP_EPOCHS to 0.2, say, or to 0 for none",
        ),
        (
            ["SOLVER.WARMUP_EPOCHS", 1, "SOLVER.BASE_LR", 0.001, "SOLVER.WARMUP_START_LR", 0.01],
            "SOLVER.WARMUP_START_LR 0.01 expects at most the learning rate after warm-up, 0.001 by SOLVER.BASE_LR",
        ),
        (
            ["SOLVER.LR_POLICY", "steps_with_relative_lrs", "SOLVER.STEPS", [0, 3], "SOLVER.LRS", [0.1, 1],
             "SOLVER.WARMUP_EPOCHS", 2, "SOLVER.WARMUP_START_LR", 0.05],
            "SOLVER.WARMUP_START_LR 0.05 expects at most the learning rate after warm-up, 0.01",
        ),
        (
            ["SOLVER.LR_POLICY", "steps_with_relative_lrs", "SOLVER.STEPS", [0, 11, 14], "SOLVER.LRS", [1, 0.1, 0.01],
             "SOLVER.MAX_EPOCH", 12],
            "SOLVER.STEPS [0.0, 11.0, 14.0] expects epochs below SOLVER.MAX_EPOCH 12; the run would end before step 14",
        ),
        (["SOLVER.COSINE_END_LR", 0.2], "SOLVER.COSINE_END_LR 0.2 expects at most SOLVER.BASE_LR 0.1"),
        (["MIXUP.ENABLE", True, "TRAIN.BATCH_SIZE", 3], "TRAIN.BATCH_SIZE expects an even number with MIXUP.ENABLE"),
        (["MIXUP.ENABLE", True, "MIXUP.ALPHA", 0, "MIXUP.CUTMIX_ALPHA", 0], "MIXUP.ENABLE True expects MIXUP.ALPHA"),
        (["GLOBAL_BATCH_SIZE", 12], "GLOBAL_BATCH_SIZE expects 0 or a multiple of TRAIN.BATCH_SIZE 8, got 12"),
        (["DATA.TRAIN_JITTER_SCALES_RELATIVE", [0.1, 1.0]], "DATA.TRAIN_JITTER_SCALES_RELATIVE and DATA.TRAIN_"),
        (["DATA.NUM_SEGMENTS", 2], "DATA.NUM_SEGMENTS 2 expects DATA.SAMPLING by_index, got auto"),
        (
            ["DATA.NUM_SEGMENTS", 2, "DATA.SAMPLING", "by_index", "DATA.NUM_FRAMES", 9],
            "DATA.NUM_FRAMES expects a multiple of DATA.NUM_SEGMENTS 2, got 9",
        ),
        (
            ["DATA.SAMPLING", "by_index", "DATA.TARGET_FPS", 25],
            "DATA.TARGET_FPS 25.0: no effect with DATA.SAMPLING by_index; set DATA.TARGET_FPS 30, the default",
        ),
        (
            ["DATA.SAMPLING", "by_index", "DATA.USE_OFFSET_SAMPLING", True],
            "DATA.USE_OFFSET_SAMPLING True: no effect with DATA.SAMPLING by_index",
        ),
        (
            ["DATA.SAMPLING", "interleaved", "DATA.SAMPLING_RATE", 4],
            "DATA.SAMPLING_RATE 4: no effect with DATA.SAMPLING interleaved; set DATA.SAMPLING_RATE 8",
        ),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused_by_name(overrides: list[object], words: str) -> None:
    (problem,) = problems_of(None, *overrides)
    assert problem.startswith(f"command line: {words}")


def test_a_rule_names_the_lines_of_the_settings_that_it_is_about(tmp_path: Path) -> None:
    path = write(tmp_path, "SOLVER:\n  WARMUP_EPOCHS: 2\n  BASE_LR: 0.2\n  MAX_EPOCH: 15\n")
    (problem,) = problems_of(path, "SOLVER.MAX_EPOCH", 1)
    assert problem.startswith(f"{path}:2, command line: SOLVER.WARMUP_EPOCHS 2 expects less than SOLVER.MAX_EPOCH 1;")


def test_a_start_of_warmup_counts_only_where_there_is_warmup() -> None:
    assert load_config(None, ["SOLVER.BASE_LR", 0.005]).solver.warmup_start_lr == 0.01
    assert load_config(None, ["TRAIN.ENABLE", False, "TRAIN.BATCH_SIZE", 3, "MIXUP.ENABLE", True]).mixup.enable


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("DATA: " + "[" * 5000, "nested too deeply"),
        ("RNG_SEED: " + "1" * 5000, "cfg.yaml:1: not valid YAML: a number of 5000 digits"),
        ("RNG_SEED: !!int x", "tags (tag:yaml.org,2002:int) are not supported"),
        ("RNG_SEED: !!timestamp x", "tags (tag:yaml.org,2002:timestamp) are not supported"),
        ("RNG_SEED: !local 3", "tags (!local) are not supported"),
        ("DATA: {MEAN: (" + "(" * 300 + ")}", "DATA"),
        ("? {A: 1}\n: 3", "a key is a word in capitals, got {'A': 1}"),
        ("OUTPUT_DIR: \x00", "not valid YAML"),
    ],
)
def test_text_that_would_break_the_reader_is_an_error_of_its_line(tmp_path: Path, text: str, words: str) -> None:
    (problem,) = problems_of(write(tmp_path, text))
    assert problem.startswith(f"{tmp_path}/cfg.yaml") and words in problem and len(problem) < 400


def test_a_number_of_too_many_digits_on_the_command_line_is_named() -> None:
    assert problems_of(None, "RNG_SEED", "1" * 5000) == ["command line: RNG_SEED: a number of 5000 digits"]


def test_settings_of_training_in_a_checkpoint_do_not_keep_its_model_from_being_built() -> None:
    text = dump_config(Config()).replace("WARMUP_EPOCHS: 0.0", "WARMUP_EPOCHS: 400.0")
    with pytest.raises(ConfigError, match="SOLVER.MAX_EPOCH"):
        parse_config(text, "checkpoint")
    build, arguments = parse_description(text)
    assert build is MODELS["timesformer_base"] and arguments["clip_size"] == (8, 224, 224)


# Writing


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["ATTENTION.SPACE", "{NAME: focused_linear, POWER: 2.5}", "ATTENTION.SKIP.SPACE", "[1, 2]"],
        ["ATTENTION.SPACE", "[{NAME: lisa, LAYERS: 0-1}, {NAME: dense, LAYERS: 2}]"],
        ["SOLVER.BASE_LR", "1e-16", "SOLVER.CLIP_GRAD_VAL", "3", "TIMESFORMER.DEPTH", "2", "DATA.MEAN", "(0, 1e-3, 1)"],
        *(["OUTPUT_DIR", text] for text in ("", " ", "None", "1e-6", "(1, 2)", "yes", "010", "~", "ü: #", "a\nb", "=")),
    ],
)
def test_a_dumped_config_loads_back_equal(tmp_path: Path, overrides: list[str]) -> None:
    cfg = load_config(None, overrides)
    text = dump_config(cfg)
    assert load_config(write(tmp_path, text)) == cfg
    assert parse_config(text, "checkpoint") == cfg


def test_a_dump_is_plain_yaml_under_upper_case_keys() -> None:
    plain = yaml.safe_load(dump_config(Config()))
    assert plain["DATA"]["TRAIN_JITTER_SCALES"] == [256, 320]
    assert plain["TIMESFORMER"]["DEPTH"] is None


def test_errors_in_a_text_name_its_source() -> None:
    with pytest.raises(ConfigError, match=r"^ckpt\.pyth:2: RNG_SED is not a setting; did you mean RNG_SEED\?$"):
        parse_config("LOG_PERIOD: 3\nRNG_SED: 3", "ckpt.pyth")


def test_changed_keys_are_those_whose_values_differ() -> None:
    old = dump_config(load_config(None, ["ATTENTION.TIME", "{NAME: fibonacci, VARIANT: wythoff}"]))
    new = dump_config(load_config(None, ["DATA.NUM_FRAMES", "16", "ATTENTION.TIME.NAME", "fibonacci"]))
    assert changed_keys(old, old) == []
    assert changed_keys(old, new) == ["DATA.NUM_FRAMES", "ATTENTION.TIME.VARIANT"]
    assert changed_keys("RNG_SEED: 0", dump_config(Config())) == []


def test_a_key_that_no_longer_means_anything_is_no_difference_between_dumps() -> None:
    text = dump_config(Config())
    older = text.replace("\nMODEL: {", "\nMODEL: {LOSS_FUNC: soft_cross_entropy, ")
    assert older != text and parse_config(older, "an older run") == Config()
    assert changed_keys(older, text) == changed_keys(text, older) == []
    assert changed_keys(older, text.replace("NUM_CLASSES: 400", "NUM_CLASSES: 5")) == ["MODEL.NUM_CLASSES"]
