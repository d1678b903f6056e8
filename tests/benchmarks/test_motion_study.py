"""The comparison of attention methods on Motion: which runs there are, when one is done again, what the report says."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from videoattn.config.load import changed_keys, load_config

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import motion_study as study  # noqa: E402
import motion_study_archive as archive  # noqa: E402
import motion_study_measure as measuring  # noqa: E402
import motion_study_report as reporting  # noqa: E402
import motion_study_runs as running  # noqa: E402

TINY = study.Size(
    image=32, patch=16, width=16, depth=2, heads=2, skipped="1", batch=4, lr=1e-3, precision="fp32", rounds=2,
    short=study.Clips(num_classes=8, num_train=16, num_val=8, rendered_frames=18, num_frames=4, sampling_rate=2,
                      num_views=2, epochs=2),
    long=study.Clips(num_classes=6, num_train=12, num_val=6, rendered_frames=24, num_frames=6, sampling_rate=4,
                     num_views=1, epochs=2),
)  # fmt: skip
pytestmark = pytest.mark.slow
METHODS = ("fibonacci", "focused_linear", "lisa", "skipat")


class FakePrograms(running.Programs):
    """Notes what would run, and leaves what the programs would; a run whose name holds `broken` fails."""

    def __init__(self, broken: str = "nothing") -> None:
        super().__init__()
        self.broken = broken
        self.calls: list[tuple[str, str]] = []

    def run(self, log: Path, program: str, *arguments: object, threads: int | None = None) -> None:
        folder = log.parent
        self.calls.append((program, str(folder)))
        if self.broken in str(folder):
            raise OSError("no luck")
        if program == "datasets/make_motion.py":
            return
        pairs = list(map(str, arguments))
        cfg = load_config(pairs[pairs.index("--cfg") + 1], pairs[pairs.index("--cfg") + 2 :])
        if program == "tools/train_net.py":
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "checkpoints" / f"checkpoint_epoch_{cfg.solver.max_epoch:05d}.pyth").touch()
            (folder / "config.yaml").write_text(running.dump_config(cfg))
            write_log(folder / "log.jsonl", [("start", 0, {}), ("epoch", 60, {"step": 1, "loss": 0.5, "top1": 0.25})])
        else:
            assert pairs[pairs.index("--weights") + 1].endswith(f"checkpoint_epoch_{cfg.solver.max_epoch:05d}.pyth")
            (folder / "test").mkdir(exist_ok=True)
            results = {"top1": 0.75, "counts": {"evaluated": 8}, "machine": {}, "versions": {}}
            (folder / "test" / "results.json").write_text(json.dumps(results))


def write_log(path: Path, events: list[tuple[str, float, dict[str, Any]]]) -> None:
    lines = [json.dumps({"event": event, "time": seconds} | values) for event, seconds, values in events]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def runs(tmp_path: Path) -> list[Any]:
    return study.plan(TINY, tmp_path, [0])


def test_every_method_runs_along_every_axis_beside_dense_attention_of_both_backbones() -> None:
    settings = {(s.backbone, s.method, s.axis) for s in study.find_settings()}
    dense = {("divided", "dense", "both"), ("joint", "dense", "joint")}
    divided = {("divided", method, axis) for method in METHODS for axis in ("space", "time")}
    assert settings == dense | divided | {("joint", method, "joint") for method in METHODS}


def test_settings_come_from_the_names_of_files_and_other_recipes_are_no_part(tmp_path: Path) -> None:
    for name in ("divided", "divided_my_method_time", "joint_other", "space_only", "long_divided", "divided_half"):
        (tmp_path / f"{name}.yaml").touch()
    found = [(s.name, s.backbone, s.method, s.axis) for s in running.find_settings(tmp_path)]
    assert found == [
        ("divided", "divided", "dense", "both"),
        ("divided_my_method_time", "divided", "my_method", "time"),
        ("joint_other", "joint", "other", "joint"),
    ]


def test_a_stopped_study_is_balanced_and_folders_tell_the_runs_apart(tmp_path: Path) -> None:
    planned = study.plan(TINY, tmp_path, [3, 5])
    assert [(run.seed, run.variant) for run in planned[::14]] == [(3, "short"), (3, "long"), (5, "short"), (5, "long")]
    assert len({run.folder for run in planned}) == len(planned) == 56
    assert planned[0].folder == tmp_path / "short/divided/seed3" and planned[0].name == "short/divided/seed3"


@pytest.mark.parametrize("size", [*study.SIZES.values(), TINY])
def test_runs_of_a_variant_differ_from_dense_attention_in_their_attention_alone(tmp_path: Path, size: Any) -> None:
    planned = {run.name: run for run in study.plan(size, tmp_path, [0])}
    texts = {name: run.config_text() for name, run in planned.items()}
    for run in planned.values():
        dense = planned[f"{run.variant}/{run.setting.backbone}/seed0"]
        changed = changed_keys(texts[dense.name], texts[run.name])
        where = run.setting.axis.upper()
        if run.setting.method == "skipat":
            expected = {f"ATTENTION.SKIP.{where}", "OUTPUT_DIR"}
            skipped = getattr(load_config(run.setting.path, run.overrides).attention.skip, run.setting.axis)
            assert skipped and 0 < min(skipped) <= max(skipped) < size.depth
        else:
            expected = {key for key in changed if key.startswith(f"ATTENTION.{where}.")} | {"OUTPUT_DIR"}
            assert (f"ATTENTION.{where}.NAME" in changed) == (run is not dense)
        assert set(changed) == (expected if run is not dense else set())
    assert set(changed_keys(texts["long/divided/seed0"], texts["long/joint/seed0"])) == {
        "TIMESFORMER.ATTENTION_TYPE",
        "OUTPUT_DIR",
    }


def test_sizes_reach_the_configs(tmp_path: Path) -> None:
    (run,) = study.select(study.plan(TINY, tmp_path, [7]), ["long/joint_lisa/*"])
    cfg = load_config(run.setting.path, run.overrides)
    assert (cfg.data.num_frames, cfg.data.sampling_rate, cfg.data.train_crop_size, cfg.model.num_classes) == (
        6,
        4,
        32,
        6,
    )
    assert (cfg.timesformer.embed_dim, cfg.timesformer.depth, cfg.timesformer.patch_size) == (16, 2, 16)
    assert (cfg.solver.base_lr, cfg.solver.max_epoch, cfg.train.batch_size, cfg.rng_seed) == (1e-3, 2, 4, 7)
    assert cfg.data.path_to_data_dir == str(tmp_path / "data/long") and run.data_settings["num_frames"] == 24


def test_a_full_sized_skipat_skips_its_middle_blocks(tmp_path: Path) -> None:
    (run,) = study.select(study.plan(study.SIZES["full"], tmp_path, [0]), ["short/divided_skipat_time/seed0"])
    skip = load_config(run.setting.path, run.overrides).attention.skip
    assert (skip.time, skip.space, skip.joint) == ((2, 3), (), ())


def test_a_pattern_chooses_runs_and_one_that_matches_none_is_refused(runs: list[Any]) -> None:
    chosen = study.select(runs, ["short/joint*", "long/divided_lisa_time/seed0"])
    assert [run.name for run in chosen][::5] == ["short/joint/seed0", "long/divided_lisa_time/seed0"]
    with pytest.raises(ValueError, match="--only short/jiont matches no run.*short/divided/seed0"):
        study.select(runs, ["short/*", "short/jiont"])


def test_a_finished_run_is_done_again_only_if_a_setting_that_matters_differs(tmp_path: Path, runs: list[Any]) -> None:
    run = runs[0]
    assert not study.is_finished(run)
    record = running.execute(run, FakePrograms())
    assert study.is_finished(run)
    assert (record["top1"], record["final_loss"], record["minutes"], record["seed"]) == (0.75, 0.5, 1.0, 0)
    elsewhere = study.plan(TINY, tmp_path, [0], num_workers=3)[0]
    assert study.is_finished(elsewhere)
    faster = study.plan(dataclasses.replace(TINY, lr=0.01), tmp_path, [0])[0]
    assert study.find_changes(faster) == ["SOLVER.BASE_LR"] and not study.is_finished(faster)
    more = dataclasses.replace(TINY, short=dataclasses.replace(TINY.short, num_train=17))
    assert study.find_changes(study.plan(more, tmp_path, [0])[0]) == ["the clips"]


def test_a_setting_that_is_new_since_then_had_its_default(runs: list[Any]) -> None:
    running.execute(runs[0], FakePrograms())
    config = runs[0].folder / "config.yaml"
    lines = config.read_text().splitlines()
    without = [line for line in lines if "CLIP_GRAD_VAL" not in line]
    assert len(without) == len(lines) - 1
    config.write_text("\n".join(without))
    assert study.is_finished(runs[0])
    config.write_text("TRAIN: {WAS_REMOVED: 3}\n")
    assert "WAS_REMOVED" in study.find_changes(runs[0])[0]


def test_changed_runs_are_refused_by_name_or_removed(tmp_path: Path, runs: list[Any]) -> None:
    for run in runs[:2]:
        running.execute(run, FakePrograms())
    changed = study.plan(dataclasses.replace(TINY, lr=0.01), tmp_path, [0])[1:3]
    with pytest.raises(
        ValueError, match=r"1 runs .*short/divided_fibonacci_space/seed0 \(SOLVER.BASE_LR\).*--overwrite"
    ):
        running.refuse_or_remove_changed(changed, overwrite=False)
    running.refuse_or_remove_changed(changed, overwrite=True)
    assert not runs[1].folder.exists() and study.is_finished(runs[0])


def test_a_failed_run_is_reported_and_the_others_go_on(runs: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    programs = FakePrograms(broken="fibonacci_time")
    failures = study.train_all(runs[:4], programs, jobs=2, overwrite=False)
    assert failures == ["short/divided_fibonacci_time/seed0: no luck"]
    printed = capsys.readouterr().out
    assert "[4/4]" in printed and "short/divided_fibonacci_time/seed0: FAILED: no luck" in printed
    assert [study.is_finished(run) for run in runs[:4]] == [True, True, False, True]
    programs = FakePrograms()
    study.train_all(runs[:4], programs, jobs=1, overwrite=False)
    again = str(runs[2].folder)
    assert programs.calls[-2:] == [("tools/train_net.py", again), ("tools/test_net.py", again)]
    assert len(programs.calls) == 3  # the clips besides


def test_runs_known_from_a_json_alone_are_not_repeated(tmp_path: Path, runs: list[Any]) -> None:
    record = made_up_record("short", runs[0].setting.name, 0, 0.5)
    places = [{"machine": {}, "versions": {}}, {key: record.pop(key) for key in ("machine", "versions")}]
    known = [record | {"fingerprint": archive.fingerprint(run), "trained_on": 1} for run in runs[:2]]
    known.append(record | {"fingerprint": "that of another recipe", "trained_on": 0})
    file = tmp_path / "study.json"
    running.write_json(file, {"runs": known, "trained_on": places})
    assert archive.adopt_runs(tmp_path / "absent.json", runs) == []
    assert archive.adopt_runs(file, runs) == runs[:2]
    assert running.read_json(runs[0].folder / "results.json") == record | places[1]
    programs = FakePrograms()
    assert study.train_all(runs[:3], programs, 1, False) == []
    assert {folder for _, folder in programs.calls if folder.endswith("seed0")} == {str(runs[2].folder)}
    assert archive.adopt_runs(file, runs) == []


def test_a_fingerprint_tells_what_changes_a_result(tmp_path: Path, runs: list[Any]) -> None:
    elsewhere = study.plan(TINY, tmp_path / "elsewhere", [0], num_workers=5)
    assert [archive.fingerprint(run) for run in elsewhere] == [archive.fingerprint(run) for run in runs]
    assert len({archive.fingerprint(run) for run in runs}) == len(runs)
    for change in (dataclasses.replace(TINY, lr=0.5), dataclasses.replace(TINY, short=TINY.long)):
        (first, *_) = study.plan(change, tmp_path, [0])
        assert archive.fingerprint(first) != archive.fingerprint(runs[0])


def test_minutes_are_those_of_all_attempts_and_half_lines_of_a_killed_one_are_skipped(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    epoch = {"step": 1, "loss": 2.0, "top1": 0.25}
    events = [
        ("start", 0, {}), ("train", 60, {"step": 3}), ("epoch", 120, epoch), ("train", 180, {"step": 9}),
        ("resume", 1000, {}), ("epoch", 1060, {"step": 2, "loss": 1.5, "top1": 0.5}),
    ]  # fmt: skip
    write_log(log, events)
    log.write_text(log.read_text().replace('{"event": "resume"', '{"event": "tra\n{"event": "resume"'))
    assert running.read_training(log) == {
        "minutes": 4.0, "final_loss": 1.5, "epochs": 2, "top1_by_epoch": [0.25, 0.5]
    }  # fmt: skip


def test_time_left_is_taken_from_runs_alike(tmp_path: Path) -> None:
    planned = study.plan(TINY, tmp_path, [0, 1])
    ahead = study.select(planned, ["short/divided/seed1", "short/joint/seed1", "long/divided/seed1"])
    assert study.estimate_minutes(ahead, [], 1) is None
    finished = [("short", "divided", 2.0), ("short", "divided", 4.0), ("short", "joint_lisa", 9.0)]
    assert study.estimate_minutes(ahead, finished, 1) == 3.0 + 5.0 + 5.0
    assert study.estimate_minutes(ahead, [*finished, ("long", "joint", 20.0)], 2) == (3.0 + 5.0 + 20.0) / 2
    assert [study.show_minutes(minutes) for minutes in (0.4, 59.6, 125)] == ["0 min", "1 h 00 min", "2 h 05 min"]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program of the project that fails if told to, and else counts the interrupts it gets until it has `enough`."""
    monkeypatch.setattr(running, "ROOT", tmp_path)
    path = tmp_path / "program.py"
    path.write_text(
        "import signal, sys, time\n"
        "if sys.argv[1] == 'fail': sys.exit('first line\\nerror: the reason')\n"
        "count = 0\n"
        "def note(*_):\n"
        "    global count\n"
        "    count += 1\n"
        "signal.signal(signal.SIGINT, note)\n"
        "print('ready', flush=True)\n"
        "while count < int(sys.argv[1]): time.sleep(0.02)\n"
        "time.sleep(0.1)\n"
        "sys.exit(f'{count} interrupts')\n"
    )
    yield path


def test_a_program_that_fails_says_why(program: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"program.py failed with status 1: error: the reason \(see .*log\)"):
        running.Programs().run(tmp_path / "log", "program.py", "fail")


@pytest.mark.parametrize(("number", "signals"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_a_signal_reaches_a_program_once_as_an_interrupt_and_no_other_starts(
    program: Path, tmp_path: Path, number: signal.Signals, signals: int
) -> None:
    log = tmp_path / "log"

    def send() -> None:
        wait_for(lambda: log.exists() and "ready" in log.read_text())
        for _ in range(signals):
            os.kill(os.getpid(), number)
            time.sleep(0.3)

    programs = running.Programs()
    before = signal.getsignal(number)
    sender = threading.Thread(target=send)
    with running.stopping_on_signals(programs):
        sender.start()
        for _ in range(2):
            with pytest.raises(running.Stopped):
                programs.run(log, "program.py", signals)
        sender.join()
    assert log.read_text() == f"ready\n{signals} interrupts\n"
    assert signal.getsignal(number) is before


def wait_for(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_folder_is_held_by_one_study_and_by_the_programs_it_left_behind(tmp_path: Path) -> None:
    with running.locked(tmp_path) as lock:
        with pytest.raises(ValueError, match="in use by another study"), running.locked(tmp_path):
            pass
        left = subprocess.Popen(["sleep", "60"], pass_fds=(lock,))
    try:
        with pytest.raises(ValueError, match="in use"), running.locked(tmp_path):
            pass
    finally:
        left.kill()
        left.wait()
    with running.locked(tmp_path):
        pass


def made_up_record(variant: str, setting: str, seed: int, top1: float) -> dict[str, Any]:
    versions = {"python": "3.11.7", "torch": "2.13.0"}
    machine = {"processor": "A processor", "cores": 2, "torch_threads": 1 + seed, "gpus": []}
    return {
        "variant": variant, "setting": setting, "seed": seed, "top1": top1, "videos": 8, "minutes": 1.0 + seed,
        "final_loss": 0.5, "epochs": 1, "top1_by_epoch": [top1], "machine": machine, "versions": versions,
    }  # fmt: skip


def made_up_costs(setting: Any, number: int) -> dict[str, Any]:
    latency = {
        str(size): {"ms_per_clip": number + 0.25 / size, "quartiles_ms_per_clip": [0, 9], "ratio": number / 8}
        for size in measuring.BATCH_SIZES
    }
    return {
        "macs_executed": (40 + number) * 10**6, "macs_needed": (30 + number) * 10**6, "parameters": 12_340 + number,
        "latency": latency, "peak_memory_bytes": number * 2**20, "config": "not for the report",
    }  # fmt: skip


@pytest.fixture
def content() -> dict[str, Any]:
    """A study of three seeds: all of short joint_lisa, one of short divided, nothing else."""
    settings = study.find_settings()
    records = [made_up_record("short", "joint_lisa", seed, top1) for seed, top1 in enumerate((0.5, 0.6, 0.9))]
    records.append(made_up_record("short", "divided", 1, 0.125))
    conditions = {
        "date": "2026-01-02", "device": "cpu", "precision": "fp32", "rounds": 2, "cpu_share": 0.5,
        "machine": records[0]["machine"], "versions": records[0]["versions"],
    }  # fmt: skip
    costs = {s.name: made_up_costs(s, 1 + number) for number, s in enumerate(settings) if s.name != "joint_skipat"}
    measurements = {"short": {"conditions": conditions, "settings": costs}}
    head = {"date": "2026-01-03", "command": "the command", "name": "tiny", "size": dataclasses.asdict(TINY)}
    return head | reporting.summarise(settings, records, measurements, 3)


def test_deviations_are_those_of_samples_and_need_two_runs(content: dict[str, Any]) -> None:
    entries = {(entry["variant"], entry["setting"]): entry for entry in content["settings"]}
    assert len(entries) == len(content["settings"]) == 28
    lisa, dense = entries["short", "joint_lisa"], entries["short", "divided"]
    assert lisa["top1_mean"] == pytest.approx(2 / 3)
    assert lisa["top1_sd"] == pytest.approx((((1 / 6) ** 2 + (1 / 15) ** 2 + (7 / 30) ** 2) / 2) ** 0.5)
    assert (lisa["seeds"], lisa["minutes_mean"]) == ([0, 1, 2], 2.0)
    assert (dense["top1_mean"], dense["top1_sd"]) == (0.125, None)
    assert entries["long", "joint_lisa"]["top1_mean"] is None


def test_runs_of_one_machine_name_it_once(content: dict[str, Any]) -> None:
    assert [place["machine"]["processor"] for place in content["trained_on"]] == ["A processor"]
    assert "machine" not in content["runs"][0] and "config" not in content["measured"]["short"]


def rows_of(page: str, variant: str) -> list[list[str]]:
    part = page.split(f"### {variant.capitalize()} clips")[1].split("###")[0].split("![")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]


def test_the_page_has_the_numbers_of_the_json_and_says_what_is_missing(tmp_path: Path, content: dict[str, Any]) -> None:
    written = reporting.write_report(tmp_path, content, ["small", "tiny"])
    assert [str(path.relative_to(tmp_path)) for path in written] == [
        "benchmarks/results/motion_study_tiny.json", "docs/images/motion_study_tiny.png", "docs/motion_study.md"
    ]  # fmt: skip
    assert json.loads(written[0].read_text()) == content
    page = written[2].read_text()
    assert page.count("## Size") == 1 and "`tiny`" in page and "the command" in page
    assert all(len(line) <= 120 or line.startswith("|") for line in page.splitlines())
    short, long = rows_of(page, "short"), rows_of(page, "long")
    assert len(short) == len(long) == 2 + 2 + 14
    found = {(row[0], row[1]): row[2:] for row in short}
    assert found["LiSA (our realisation)", "joint"] == [
        "66.67 ± 20.82", "53.00 M / 43.00 M", "12.35 K", "13.25 (1.62x)", "13.03 (1.62x)", "13.0"
    ]  # fmt: skip
    assert found["dense", "space and time"][:2] == ["12.50 (1 of 3 seeds)", "41.00 M / 31.00 M"]
    assert found["Fibonacci", "time"][0] == "not run" and found["SkipAt", "joint"][:2] == ["not run", "not measured"]
    assert {tuple(row[2:4]) for row in long[2:] if row[1]} == {("not run", "not measured")}
    assert "the process had its core 50 % of the time" in page.replace("\n", " ")


def test_a_page_has_all_sizes_that_were_studied(tmp_path: Path, content: dict[str, Any]) -> None:
    for name in ("tiny", "small"):
        reporting.write_report(tmp_path, content | {"name": name}, ["small", "tiny", "full"])
    page = (tmp_path / "docs/motion_study.md").read_text()
    assert page.index("## Size `small`") < page.index("## Size `tiny`") and page.count("## How to read it") == 1


def test_the_plot_of_a_whole_study_is_small(tmp_path: Path, content: dict[str, Any]) -> None:
    for number, entry in enumerate(content["settings"]):
        entry |= {"top1_mean": number / 30, "top1_sd": 0.02} | made_up_costs(None, 1 + number)
    reporting.draw(tmp_path / "plot.png", content)
    data = (tmp_path / "plot.png").read_bytes()
    assert data.startswith(b"\x89PNG") and 20_000 < len(data) < 200_000


def test_settings_take_turns_in_every_round() -> None:
    order: list[str] = []
    steps = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = measuring.time_interleaved(steps, 3, running.Programs())
    assert "".join(order) == "aabb" * 4  # each untimed, then timed; a first round to warm up
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    stopped = running.Programs()
    stopped.stop()
    with pytest.raises(running.Stopped):
        measuring.time_interleaved(steps, 3, stopped)


def test_latency_is_per_clip_and_relative_to_dense_attention_of_the_same_backbone(tmp_path: Path) -> None:
    names = ("divided", "divided_fibonacci_time", "joint_fibonacci")
    planned = {run.setting.name: run for run in study.plan(TINY, tmp_path, [0]) if run.variant == "short"}
    timed = measuring.time_settings({name: planned[name] for name in names}, running.Programs(), 2)
    for batch_size in ("1", "8"):
        dense, sparse, joint = (timed["settings"][name]["latency"][batch_size] for name in names)
        assert dense["ratio"] == 1 and sparse["ratio"] == sparse["ms_per_clip"] / dense["ms_per_clip"]
        assert joint["ratio"] is None  # joint dense attention was not measured
        low, high = sparse["quartiles_ms_per_clip"]
        assert 0 < low <= sparse["ms_per_clip"] <= high
    assert timed["conditions"]["num_threads"] == 1 and 0 < timed["conditions"]["cpu_share"] < 1.1


def test_what_is_measured_stays_until_the_model_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions: list[list[str]] = []

    def time_settings(runs: dict[str, Any], programs: Any, rounds: int) -> dict[str, Any]:
        sessions.append(sorted(runs))
        return {"conditions": {}, "settings": {name: {"latency": {}} for name in runs}}

    monkeypatch.setattr(measuring, "time_settings", time_settings)
    monkeypatch.setattr(measuring, "count_costs", lambda run, programs: {"parameters": 1})

    def measure(size: Any, pattern: str, anew: bool = False) -> None:
        planned = study.plan(size, tmp_path, [0, 1])
        chosen = study.select(planned, [pattern])
        file = tmp_path / "measurements.json"
        assert measuring.measure_variants(chosen, planned, FakePrograms(), file, rounds=1, anew=anew) == []

    measure(TINY, "short/divided_lisa_*/seed1")
    both = ["divided", "divided_lisa_space", "divided_lisa_time"]
    assert sessions == [both]
    measure(TINY, "short/divided_lisa_time/seed0")
    measure(dataclasses.replace(TINY, lr=0.5), "short/divided_lisa_time/seed0")
    assert len(sessions) == 1
    measure(dataclasses.replace(TINY, width=24), "short/divided_lisa_time/seed0")
    measure(dataclasses.replace(TINY, width=24), "short/joint/seed0", anew=True)
    assert sessions[1:] == [both, [*both, "joint"]]


def run_study(folder: Path, size: Any, *arguments: str) -> subprocess.Popen[str]:
    """The program, with a size of our own, its data and runs in `folder`, its report in `folder`/out."""
    script = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "import motion_study\n"
        "from motion_study import Clips, Size, run_tool\n"
        f"motion_study.SIZES['tiny'] = {size!r}\n"
        "sys.exit(run_tool(motion_study.main, sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", script, "--size", "tiny", "--folder", str(folder), "--out", str(folder / "out")]
    return subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


@pytest.mark.slow
def test_a_whole_study_trains_measures_and_reports_and_repeats_nothing(tmp_path: Path) -> None:
    chosen = ["--only", "short/divided/*", "short/joint_fibonacci/*", "--seeds", "0"]
    status, output = finish(run_study(tmp_path, TINY, *chosen, "--jobs", "2"))
    assert status == 0, output
    content = json.loads((tmp_path / "out/benchmarks/results/motion_study_tiny.json").read_text())
    assert {(run["setting"], run["seed"]) for run in content["runs"]} == {("divided", 0), ("joint_fibonacci", 0)}
    entries = {entry["setting"]: entry for entry in content["settings"] if entry["variant"] == "short"}
    assert entries["divided"]["top1_mean"] == content["runs"][0]["top1"]
    fibonacci, dense = entries["joint_fibonacci"], entries["joint"]
    assert fibonacci["macs_needed"] <= fibonacci["macs_executed"] < dense["macs_executed"]
    assert entries["joint"]["latency"]["8"]["ratio"] == 1 and entries["joint"]["top1_mean"] is None
    results = tmp_path / "tiny/short/divided/seed0/results.json"
    environment = json.loads((results.parent / "environment.json").read_text())
    assert environment["machine"]["torch_threads"] == 1
    before = results.stat().st_mtime_ns, (tmp_path / "tiny/measurements.json").stat().st_mtime_ns
    status, output = finish(run_study(tmp_path, TINY, *chosen))
    assert status == 0 and "2 runs, 2 of them finished before" in output and "measuring" not in output
    assert before == (results.stat().st_mtime_ns, (tmp_path / "tiny/measurements.json").stat().st_mtime_ns)
    status, output = finish(run_study(tmp_path, dataclasses.replace(TINY, lr=0.5), *chosen))
    assert status == 2 and "2 runs were made with other settings" in output and "SOLVER.BASE_LR" in output


@pytest.mark.slow
def test_a_study_that_was_interrupted_continues_in_the_midst_of_a_run(tmp_path: Path) -> None:
    size = dataclasses.replace(TINY, short=dataclasses.replace(TINY.short, num_train=64, epochs=15))
    chosen = ["--only", "short/divided/seed0"]
    folder = tmp_path / "tiny/short/divided/seed0"
    process = run_study(tmp_path, size, *chosen)
    wait_for(lambda: (folder / "log.jsonl").exists() and '"epoch"' in (folder / "log.jsonl").read_text(), 300)
    process.send_signal(signal.SIGINT)
    status, output = finish(process)
    assert status == 130 and "the same command continues" in output
    assert list((folder / "checkpoints").glob("checkpoint_epoch_*")) and not (folder / "results.json").exists()
    status, output = finish(run_study(tmp_path, size, *chosen))
    assert status == 0, output
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events if event["event"] in ("start", "resume")] == ["start", "resume"]
    assert [event["step"] for event in events if event["event"] == "epoch"] == list(range(1, 16))
    record = json.loads((folder / "results.json").read_text())
    assert record["epochs"] == 15 and len(record["top1_by_epoch"]) == 15
