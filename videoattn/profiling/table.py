"""Profiles and measurements as text."""

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from videoattn.profiling.profile import Measurement, ModuleCost, Profile

CONTAINERS = ("ModuleList", "ModuleDict")
CONVENTION = "MACs: one multiply-add counts as 1 (many papers call this FLOPs)"


@dataclass(frozen=True)
class _Row:
    """Modules that are alike, summed: `label` within the row above, `level` 1 for the model's own children."""

    label: str
    level: int
    costs: tuple[ModuleCost, ...]

    def total(self, quantity: str) -> int:
        return sum(getattr(cost, quantity) for cost in self.costs)


def format_profile(profile: Profile, depth: int = 2) -> str:
    """Format a table by module, `depth` levels deep, and the totals per clip and per video.

    Neighbours of a list with the same costs share a row with their sum (`blocks.0-11 x12`); modules without MACs and
    parameters are left out.
    """
    whole = profile.modules[0]
    tree = _Tree(profile.modules)
    rows = [row for row in tree.rows([whole], 1, depth) if row.total("macs_executed") or row.total("parameters")]
    rows.append(_Row("total", 1, (whole,)))
    macs, parameters = _scale(whole.macs_executed), _scale(whole.parameters)
    activations = _scale(whole.activations)
    titles = [f"MACs executed {macs[1]}", f"needed {macs[1]}", "share of needed %", f"parameters {parameters[1]}"]
    lines = [["module", *titles, f"activations {activations[1]}"]]
    for row in rows:
        lines.append(
            [
                "  " * (row.level - 1) + row.label,
                macs[0](row.total("macs_executed")),
                macs[0](row.total("macs_needed")),
                f"{100 * row.total('macs_needed') / max(whole.macs_needed, 1):.1f}",
                parameters[0](row.total("parameters")),
                activations[0](row.total("activations")),
            ]
        )
    return "\n".join(
        [
            f"{profile.model}, clip {' x '.join(map(str, profile.clip_shape[1:]))}. {CONVENTION}.",
            "",
            *_align(lines, rule_before_last=True),
            "",
            *_format_totals(profile),
        ]
    )


def _format_totals(profile: Profile) -> Iterator[str]:
    views = f"per video ({profile.views} view{'s' if profile.views > 1 else ''})"
    lines = [["", "per clip (one view)", views, "in attention products"]]
    for name, macs, attention, share in (
        ("MACs executed", profile.macs_executed, profile.attention_executed, profile.attention_share_executed),
        ("MACs needed", profile.macs_needed, profile.attention_needed, profile.attention_share_needed),
    ):
        lines.append([name, show(macs), show(macs * profile.views), f"{show(attention)} ({100 * share:.1f} %)"])
    yield from _align(lines)
    if profile.macs_executed > profile.macs_needed:
        yield "Executed: what runs. Needed: the attending pairs alone; the rest is the overhead of masked products."
    ran = sorted(profile.macs_by_operation.items(), key=lambda item: -item[1])
    yield from _wrap(f"What ran, in MACs: {', '.join(f'{name} {show(count)}' for name, count in ran) or 'nothing'}.")
    activations = show(profile.activations)
    yield f"Parameters: {show(profile.parameters)}. Activations of products and convolutions: {activations}."
    work = ", ".join(f"{name} {show(count)}" for name, count in profile.elements.items())
    yield from _wrap(f"Not in the totals, in elements: {work or 'none'}.")
    calls = ", ".join(f"{name} {count}" for name, count in profile.uncounted.items())
    yield from _wrap(f"Without arithmetic, in calls: {calls or 'none'}.")


def format_measurement(measurement: Measurement) -> str:
    """Format latency, throughput and peak memory in a few lines."""
    what = "forward and backward" if measurement.train else "forward"
    peak = measurement.peak_memory_bytes
    memory = "not measured" if peak is None else f"{peak / 2**20:,.1f} MiB"
    low, high = measurement.latency_quartiles_ms
    lines = [
        f"Measured on {measurement.device_name}, {measurement.num_threads} CPU thread(s), {measurement.precision}, "
        f"{what}, batches of {measurement.batch_size}, {measurement.repeats} repeats after {measurement.warmup}:",
        f"  latency per batch  {measurement.latency_ms:,.2f} ms (median; quartiles {low:,.2f} and {high:,.2f})",
        f"  throughput         {measurement.clips_per_second:,.2f} clips/s",
        f"  peak memory        {memory} ({measurement.memory_meaning})",
    ]
    lines += [f"  {name} ran {', '.join(ran) or 'no product'}" for name, ran in measurement.implementations.items()]
    return "\n".join(lines)


class _Tree:
    """Modules by their place; lists and dicts of modules are no level of their own."""

    def __init__(self, modules: tuple[ModuleCost, ...]) -> None:
        self.children: dict[str, list[ModuleCost]] = {}
        for cost in modules[1:]:
            self.children.setdefault(cost.name.rpartition(".")[0], []).append(cost)

    def members(self, parent: ModuleCost) -> Iterator[ModuleCost]:
        for child in self.children.get(parent.name, []):
            if child.kind in CONTAINERS:
                yield from self.members(child)
            else:
                yield child

    def signature(self, cost: ModuleCost) -> tuple[object, ...]:
        own = (cost.kind, cost.macs_executed, cost.macs_needed, cost.parameters, cost.activations)
        return own + tuple(self.signature(child) for child in self.children.get(cost.name, []))

    def rows(self, parents: list[ModuleCost], level: int, depth: int) -> Iterator[_Row]:
        """Return the rows under modules that are alike, in the order of the model."""
        if level > depth:
            return
        offset = len(parents[0].name) + bool(parents[0].name)
        alike = list(zip(*(self.members(parent) for parent in parents), strict=True))
        start = 0
        while start < len(alike):
            stop = start + 1
            while stop < len(alike) and self._joins(alike[start][0], alike[stop][0]):
                stop += 1
            label = alike[start][0].name[offset:]
            if stop - start > 1:
                last = alike[stop - 1][0].name.rpartition(".")[2]
                label = f"{label}-{last} x{stop - start}"
            group = [cost for costs in alike[start:stop] for cost in costs]
            yield _Row(label, level, tuple(group))
            yield from self.rows(group, level + 1, depth)
            start = stop

    def _joins(self, first: ModuleCost, other: ModuleCost) -> bool:
        places = [cost.name.rpartition(".") for cost in (first, other)]
        same_list = places[0][0] == places[1][0] and all(place[2].isdigit() for place in places)
        return same_list and self.signature(first) == self.signature(other)


def show(count: int) -> str:
    """Format a count with a readable prefix, e.g. 195.70 G."""
    formatted, unit = _scale(count)
    return f"{formatted(count)} {unit}".rstrip()


def _scale(count: int) -> tuple[Callable[[int], str], str]:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return partial(_format_in, size), unit
    return str, ""


def _format_in(size: int, value: int) -> str:
    return f"{value / size:,.2f}"


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, width=112, subsequent_indent="  ")


def _align(lines: list[list[str]], rule_before_last: bool = False) -> list[str]:
    """Pad columns to their widest cell, the first to the left, numbers to the right."""
    lines = [[cell.rstrip() for cell in line] for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = [
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    ]  # fmt: skip
    if rule_before_last:
        padded.insert(len(padded) - 1, "-" * max(map(len, padded)))
    return padded
