"""The report of a study: a summary of each setting, tables in docs/motion_study.md, and a plot."""

import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from motion_study_runs import Setting, read_json, write_json

from videoattn.files import atomic_write
from videoattn.profiling.table import show

VARIANTS = {
    "short": "eight motions, which no single frame shows",
    "long": "six orders of three events, one in each third of the clip",
}
MARKERS = {"both": "D", "space": "s", "time": "^", "joint": "o"}
AXES = {"both": "space and time", "space": "space", "time": "time", "joint": "joint"}
BACKBONES = {"divided": "divided space-time attention", "joint": "joint space-time attention"}
METHODS = {
    "dense": "dense", "fibonacci": "Fibonacci", "lisa": "LiSA (our realisation)", "focused_linear": "focused linear",
    "skipat": "SkipAt",
}  # fmt: skip
HEADINGS = (
    "| method | along | top-1 % | MACs executed / needed | parameters | ms per clip, batch 1 | batch 8 | memory MiB |\n"
    "|---|---|---|---|---|---|---|---|"
)
HOW_TO_READ = """\
## How to read it

- **top-1**: mean ± sample standard deviation over seeds, which differ in initial weights and in the order and cutting
  of clips; the clips themselves are the same for all. The last weights are evaluated, not the best ones. To the spread
  over seeds comes that of the validation clips: n of them tell a share p up to sqrt(p (1 - p) / n). A difference of
  less than about twice either says nothing.
- **epochs** are few. Where top-1 still rose at the end (`top1_by_epoch` in the JSON), a low figure says that a method
  learns slowly by this recipe, not that it can't.
  So it is on long clips at size `small`: the order of events is learned within an epoch or two, and some seeds had not
  come to that when the learning rate had gone to 0 after 4 epochs. Of the low ones, the three runs with Fibonacci
  attention along time (83.8, 52.3, 30.3 %) and one along space (52.8 %) were trained for 10 epochs instead, and reached
  100.0, 99.5, 99.3 and 100.0 % (`benchmarks/results/motion_study_long_10_epochs.json`).
- **MACs**: multiply-accumulates of one clip (one view), where one multiply-add counts as 1. *Executed* is what runs;
  *needed* counts in attention the attending pairs alone. Where executed exceeds needed, a masked product also computes
  excluded pairs, and the method's saving is not had yet.
- **ms per clip**: median latency of a forward pass in evaluation mode with one thread, divided by the batch size; in
  brackets the ratio to dense attention of the same backbone, below 1 is faster. All settings of a variant take turns,
  so what slows the machine slows them alike.
- **memory**: peak of a forward pass of 8 clips, in a process of its own; on a CPU it includes what the libraries
  allocate in a first pass, so differences of a few MiB say nothing.
- **SkipAt** replaces attention in the blocks named above; its other blocks are dense.
- Models and clips are small. The tables say how the methods compare here and that they train; how they compare on real
  videos is another question.
"""


def summarise(
    settings: Sequence[Setting], records: Sequence[Mapping[str, Any]], measurements: Mapping[str, Any], num_seeds: int
) -> dict[str, Any]:
    """One entry per variant and setting, from the records of finished runs and what was measured, and where both ran.

    `top1_sd` is the sample standard deviation (divisor n - 1), None below two runs.
    """
    entries, machines = [], []
    for variant in VARIANTS:
        measured = measurements.get(variant, {}).get("settings", {})
        for setting in settings:
            own = [r for r in records if (r["variant"], r["setting"]) == (variant, setting.name)]
            top1 = [record["top1"] for record in own]
            entry = {
                "variant": variant, "setting": setting.name, "config": f"configs/Motion/{setting.path.name}",
                "backbone": setting.backbone, "method": setting.method, "axis": setting.axis,
                "seeds": [record["seed"] for record in own], "top1": top1,
                "top1_mean": statistics.fmean(top1) if top1 else None,
                "top1_sd": statistics.stdev(top1) if len(top1) > 1 else None,
                "final_loss_mean": statistics.fmean(r["final_loss"] for r in own) if own else None,
                "minutes_mean": statistics.fmean(r["minutes"] for r in own) if own else None,
            }  # fmt: skip
            entries.append(entry | {k: v for k, v in measured.get(setting.name, {}).items() if k != "config"})
    runs = []
    for record in records:
        machine = {k: v for k, v in record["machine"].items() if k != "torch_threads"}  # a run's own, in its folder
        place = {"machine": machine, "versions": record["versions"]}
        if place not in machines:
            machines.append(place)
        own = {k: v for k, v in record.items() if k not in ("machine", "versions")}
        runs.append(own | {"trained_on": machines.index(place)})
    return {
        "num_seeds": num_seeds, "settings": entries, "trained_on": machines,
        "measured": {variant: part["conditions"] for variant, part in measurements.items() if "conditions" in part},
        "runs": runs,
    }  # fmt: skip


def write_report(out: Path, content: Mapping[str, Any], sizes: Sequence[str]) -> list[Path]:
    """Write a size's JSON and plot, and the page with the tables of all `sizes` that have a JSON; returns the files."""
    results, page = out / "benchmarks/results", out / "docs/motion_study.md"
    plot = page.parent / f"images/motion_study_{content['name']}.png"
    for folder in (results, plot.parent):
        folder.mkdir(parents=True, exist_ok=True)
    file = results / f"motion_study_{content['name']}.json"
    write_json(file, content)
    draw(plot, content)
    files = [results / f"motion_study_{size}.json" for size in sizes]
    text = format_page([read_json(path) for path in files if path.exists()])
    with atomic_write(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return [file, plot, page]


def format_page(contents: Sequence[Mapping[str, Any]]) -> str:
    """The page about studies of one or more sizes."""
    parts = [
        "# Attention methods on Motion",
        "Written by `benchmarks/motion_study.py`; change that, not this page.",
        _wrap(
            "Every attention method was trained in place of dense attention, along space, along time and jointly, by "
            "one recipe that was not tuned for any of them: the files of `configs/Motion/`, with the sizes below. "
            "[datasets/README.md](../datasets/README.md) says what Motion's clips show."
        ),
        *(part for content in contents for part in _format_size(content)),
        HOW_TO_READ,
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _wrap(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _format_size(content: Mapping[str, Any]) -> Iterator[str]:
    name, size = content["name"], content["size"]
    yield f"## Size `{name}`"
    blocks = ("block " if size["skipped"].isdigit() else "blocks ") + size["skipped"]
    yield _wrap(
        f"TimeSformer of width {size['width']}, depth {size['depth']} and {size['heads']} heads on clips of "
        f"{size['image']} x {size['image']} pixels in patches of {size['patch']}; AdamW, learning rate {size['lr']:g}, "
        f"batches of {size['batch']}, {size['precision']}. SkipAt skips attention in {blocks}, counted from 0. "
        f"{content['date']}."
    )
    yield f"```\n{content['command']}\n```"
    if content["trained_on"]:
        yield _wrap(f"Trained on {'; and on '.join(map(_describe_place, content['trained_on']))}.")
    for variant, title in VARIANTS.items():
        clips, entries = size[variant], [e for e in content["settings"] if e["variant"] == variant]
        yield f"### {variant.capitalize()} clips: {title}"
        yield _wrap(
            f"{clips['num_train']} clips for training, {clips['num_val']} for validation; {clips['num_frames']} of "
            f"{clips['rendered_frames']} frames, {clips['sampling_rate']} apart; {clips['epochs']} epochs; "
            f"{clips['num_views']} view{'s' * (clips['num_views'] > 1)} in evaluation. "
            f"Chance is {100 / clips['num_classes']:.1f}\N{NO-BREAK SPACE}%."
        )
        yield "\n".join([HEADINGS, *_format_rows(entries, content["num_seeds"])])
        if variant in content["measured"]:
            yield _wrap(_describe_measuring(content["measured"][variant]))
    yield f"![Top-1 against multiply-accumulates](images/motion_study_{name}.png)"


def _format_rows(entries: Sequence[Mapping[str, Any]], num_seeds: int) -> Iterator[str]:
    for backbone, title in BACKBONES.items():
        yield f"| **{title}** | | | | | | | |"
        for entry in (e for e in entries if e["backbone"] == backbone):
            cells = [METHODS.get(entry["method"], entry["method"]), AXES[entry["axis"]], format_top1(entry, num_seeds)]
            if "latency" in entry:
                peak = entry["peak_memory_bytes"]
                cells += [f"{show(entry['macs_executed'])} / {show(entry['macs_needed'])}", show(entry["parameters"])]
                cells += [format_latency(entry["latency"][batch_size]) for batch_size in ("1", "8")]
                cells += ["not measured" if peak is None else f"{peak / 2**20:.1f}"]
            else:
                cells += ["not measured", "", "", "", ""]
            yield f"| {' | '.join(cells)} |"


def format_top1(entry: Mapping[str, Any], num_seeds: int) -> str:
    """Mean ± deviation in percent, with the number of runs where some are missing."""
    if entry["top1_mean"] is None:
        return "not run"
    spread = "" if entry["top1_sd"] is None else f" ± {100 * entry['top1_sd']:.2f}"
    ran = len(entry["top1"])
    return f"{100 * entry['top1_mean']:.2f}{spread}" + (f" ({ran} of {num_seeds} seeds)" if ran < num_seeds else "")


def format_latency(latency: Mapping[str, Any]) -> str:
    ratio = "" if latency["ratio"] is None else f" ({latency['ratio']:.2f}x)"
    return f"{latency['ms_per_clip']:.2f}{ratio}"


def _describe_place(place: Mapping[str, Any]) -> str:
    machine, versions = place["machine"], place["versions"]
    gpus = "".join(f", {name}" for name in machine["gpus"])
    return (
        f"{machine['processor']}, {machine['cores']} cores{gpus} (Python {versions['python']}, PyTorch "
        f"{versions['torch']})"
    )


def _describe_measuring(conditions: Mapping[str, Any]) -> str:
    gpu = conditions["device"] == "cuda"
    device = conditions["machine"]["gpus"][0] if gpu else conditions["machine"]["processor"]
    shared = "" if gpu else f"; the process had its core {100 * conditions['cpu_share']:.0f} % of the time"
    return (
        f"Latency and memory: {device}, {conditions['precision']}, {conditions['rounds']} rounds, "
        f"{conditions['date']}{shared}."
    )


def draw(path: Path, content: Mapping[str, Any]) -> None:
    """Top-1 against needed multiply-accumulates, one panel per variant; a line leads to the executed ones.

    A marker per axis, a colour per method, bars of one standard deviation, and chance as a dotted line.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    ran = [e for e in content["settings"] if e["top1_mean"] is not None and "macs_needed" in e]
    methods = list(dict.fromkeys(entry["method"] for entry in content["settings"]))
    colours = {method: "black" if method == "dense" else f"C{number}" for number, method in enumerate(methods)}
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    for axes, variant in zip(figure.subplots(1, len(VARIANTS)), VARIANTS, strict=True):
        axes.set_title(f"{variant} clips")
        own = [entry for entry in ran if entry["variant"] == variant]
        if not own:
            axes.text(0.5, 0.5, "not run yet", transform=axes.transAxes, ha="center", color="grey")
            axes.set_axis_off()
            continue
        for entry in own:
            x, y, colour = entry["macs_needed"] / 1e6, 100 * entry["top1_mean"], colours[entry["method"]]
            axes.plot([x, entry["macs_executed"] / 1e6], [y, y], color=colour, linewidth=0.8, alpha=0.6)
            axes.errorbar(
                x, y, 100 * (entry["top1_sd"] or 0), color=colour, marker=MARKERS[entry["axis"]], markersize=7,
                capsize=3, linewidth=1, alpha=0.85,
            )  # fmt: skip
        axes.axhline(100 / content["size"][variant]["num_classes"], color="grey", linestyle=":", linewidth=1)
        axes.set_xlabel("million multiply-accumulates of a clip, needed (line: to executed)")
        axes.set_ylabel("top-1 %")
        axes.grid(alpha=0.25)
    kinds = [Line2D([], [], color=colours[m], linewidth=3, label=METHODS.get(m, m)) for m in methods]
    kinds += [Line2D([], [], color="grey", marker=MARKERS[a], linestyle="", label=AXES[a]) for a in MARKERS]
    figure.legend(handles=kinds, loc="outside lower center", ncols=len(kinds), fontsize=8, frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
