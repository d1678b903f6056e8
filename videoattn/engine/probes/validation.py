"""Evaluation of every probe of a grid in one pass of the encoder, and the choice of the best."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from videoattn.data.clips.batch import Prepare
from videoattn.engine.distributed import Process, gather_objects
from videoattn.engine.evaluate import EvaluationLoader, EvaluationOptions, evaluate
from videoattn.engine.log import RunLog, logger
from videoattn.engine.probes.grid import ProbeGrid
from videoattn.engine.results import Results
from videoattn.engine.train import TrainState
from videoattn.files import atomic_write

FILE = "probes.json"


@dataclass
class GridValidation:
    """Evaluates a grid, reports every probe, and returns the results of the best, which becomes the chosen one.

    The best has the highest top-1 with failed videos as wrong, and of several the first. `options` are of one probe.
    The main process writes a "probe" event for each probe to `log`, and all of them to probes.json in `folder`.
    """

    loader: EvaluationLoader
    features: Prepare
    options: EvaluationOptions
    process: Process
    log: RunLog
    folder: Path
    state: TrainState

    def __call__(self, grid: nn.Module) -> Results:
        assert isinstance(grid, ProbeGrid)
        num_classes, number = self.options.num_classes, len(grid.cells)
        grid.diverged.clear()
        stacked = evaluate(
            grid, self.loader, self.features, replace(self.options, num_classes=num_classes * number), self.process
        )
        for odd in sorted(set().union(*gather_objects(grid.diverged))):
            if self.process.is_main:
                logger.warning("probe %d (%s) is dropped: its logits are not finite", odd, grid.cells[odd])
            grid.drop(odd, f"its logits were not finite after epoch {self.state.epoch + 1}")
        results = {
            i: replace(stacked, scores=stacked.scores[:, i * num_classes : (i + 1) * num_classes])
            for i, _ in grid.live()
        }
        scores = {i: result.top_k(1, failed_as_wrong=True) or 0.0 for i, result in results.items()}
        grid.chosen = max(scores, key=lambda i: (scores[i], -i))
        for i, result in results.items():
            top1, best = result.top_k(1), grid.best[i]
            if top1 is not None and (best is None or top1 > best[0]):
                grid.best[i] = (top1, self.state.epoch + 1)
        self._report(grid, results)
        return results[grid.chosen]

    def _report(self, grid: ProbeGrid, results: dict[int, Results]) -> None:
        if not self.process.is_main:
            return
        rows = [self._row(grid, i, results.get(i)) for i in range(len(grid.cells))]
        for row in rows:
            self.log.write("probe", step=self.state.epoch + 1, **row)
        lines = [json.dumps(row, allow_nan=False) for row in rows]
        with atomic_write(self.folder / FILE) as temporary:
            temporary.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
        logger.info("the probes after epoch %d:\n%s", self.state.epoch + 1, format_grid(rows))

    def _row(self, grid: ProbeGrid, number: int, result: Results | None) -> dict[str, Any]:
        cell, best = grid.cells[number], grid.best[number]
        return {
            "probe": number,
            "lr": cell.lr,
            "weight_decay": cell.weight_decay,
            "epoch": self.state.epoch + 1,
            "top1": result and result.top_k(1),
            "top5": result and result.top_k(5),
            "best_top1": best and best[0],
            "best_epoch": best and best[1],
            "chosen": number == grid.chosen,
            "dropped": grid.dropped.get(number),
        }


def format_grid(rows: list[dict[str, Any]]) -> str:
    """Return the table of an evaluation: a line for each probe."""
    lines = ["probe  learning rate  weight decay  top-1 %   best so far"]
    for row in rows:
        best = "" if row["best_top1"] is None else f"{100 * row['best_top1']:.2f} after epoch {row['best_epoch']}"
        top1 = "dropped" if row["dropped"] else "-" if row["top1"] is None else f"{100 * row['top1']:.2f}"
        mark = "  chosen" if row["chosen"] else f"  {row['dropped']}" if row["dropped"] else ""
        lines.append(f"{row['probe']:5}  {row['lr']:13g}  {row['weight_decay']:12g}  {top1:>7}   {best}{mark}".rstrip())
    return "\n".join(lines)
