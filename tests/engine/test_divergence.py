"""Nothing is saved that training cannot go on from."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.test_train import Clips, build_trainer, equal_states, run
from videoattn.engine.checkpoint.files import BEST, list_checkpoints, load_checkpoint
from videoattn.engine.train import TrainState, restore_training


def saved(folder: Path) -> list[tuple[int, int]]:
    return [(c.epoch, c.step) for c in list_checkpoints(folder / "checkpoints")]


def infinite_gradients(trainer: Any, after: int, count: int = 1000, num_batches: int = 6) -> Clips:
    """Clips of which `count`, after the first `after` batches, give `trainer` an infinite gradient."""
    drawn = [0]

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * torch.inf if after < drawn[0] <= after + count else gradient

    def draw(epoch: int, batch: int) -> None:
        drawn[0] += 1

    trainer.model.head.weight.register_hook(hook)
    return Clips(num_batches=num_batches, on_batch=draw)


def test_an_infinite_gradient_ends_the_run_before_any_weight_changes(tmp_path: Path) -> None:
    trainer = build_trainer(ema_decay=0.5)
    clips = infinite_gradients(trainer, after=3)
    with pytest.raises(FloatingPointError, match=r"norm became (inf|nan) in epoch 1 by step 4 at .*SOLVER.BASE_LR"):
        run(tmp_path, trainer, clips, checkpoint_steps=1)
    assert saved(tmp_path) == [(0, 3)]
    last = load_checkpoint(list_checkpoints(tmp_path / "checkpoints")[-1].path)
    assert equal_states(trainer.model.state_dict(), last["model_state"])
    again = build_trainer(ema_decay=0.5)
    run(tmp_path, again, state=restore_training(again, last), lr=1e-3)
    assert saved(tmp_path)[-1] == (3, 0)


def test_weights_that_give_no_finite_loss_are_not_saved(tmp_path: Path) -> None:
    trainer = build_trainer()
    with pytest.raises(FloatingPointError, match="with the new weights, the loss became nan .* in epoch 1 by step 1"):
        run(tmp_path, trainer, lr=1e25, checkpoint_steps=1)
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert saved(tmp_path) == []


def test_weights_that_give_no_finite_gradient_are_not_saved(tmp_path: Path) -> None:
    trainer = build_trainer()
    model = trainer.model
    model.head.weight.register_hook(lambda gradient: gradient if model.training else gradient * torch.inf)
    with pytest.raises(FloatingPointError, match="with the new weights, the loss .* and its gradients' norm (inf|nan)"):
        run(tmp_path, trainer, checkpoint_steps=1)
    assert saved(tmp_path) == []


def poison(trainer: Any, what: str) -> None:
    """Make something infinite that the next steps do not look at."""
    if what == "averaged weights":
        next(trainer.ema.module.parameters()).data.view(-1)[0] = torch.nan
    else:
        for values in list(trainer.optimizer.state.values())[:1]:
            values["exp_avg_sq"].view(-1)[0] = torch.inf


@pytest.mark.parametrize("what", ["averaged weights", "moments"])
@pytest.mark.parametrize("occasion", ["steps", "signal", "epoch", "best"])
def test_no_occasion_saves_what_is_not_finite(tmp_path: Path, what: str, occasion: str) -> None:
    trainer = build_trainer(ema_decay=0.5)
    validated = []

    def act(epoch: int, batch: int) -> None:
        if (epoch, batch) == (1, 3):
            poison(trainer, what)
            if occasion == "signal":
                os.kill(os.getpid(), signal.SIGTERM)

    options = {"checkpoint_steps": 2} if occasion == "steps" else {}
    if occasion == "best":
        options["validate"] = validated.append
    with pytest.raises(FloatingPointError, match=r"(averaged|exp_avg_sq of parameter 0.*) became infinite or NaN in"):
        run(tmp_path, trainer, Clips(on_batch=act), state=TrainState(epoch=1), **options)
    assert saved(tmp_path) == ([(1, 2)] if occasion == "steps" else []) and not validated
    assert not (tmp_path / "checkpoints" / BEST).exists()


def test_a_step_that_overflows_in_fp16_is_skipped_and_the_run_goes_on(tmp_path: Path) -> None:
    trainer = build_trainer(precision="fp16")
    # a loss scale at which no gradient overflows by itself
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": 1024.0})
    run(tmp_path, trainer, infinite_gradients(trainer, after=2, count=1), max_epoch=1, log_period_steps=1)

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    events = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    norms = [event["grad_norm"] for event in events if event["event"] == "train"]
    assert [norm is None for norm in norms] == [False, False, True, False, False, False]
    assert saved(tmp_path) == [(1, 0)]


def test_fp16_that_overflows_at_every_loss_scale_ends_the_run(tmp_path: Path) -> None:
    trainer = build_trainer(precision="fp16")
    clips = infinite_gradients(trainer, after=0, num_batches=60)
    with pytest.raises(FloatingPointError, match=r"norm became (inf|nan) in epoch 1 by step \d+ at"):
        run(tmp_path, trainer, clips, max_epoch=1)
    assert saved(tmp_path) == []


def test_the_precision_of_a_continued_run_may_be_another(tmp_path: Path) -> None:
    run(tmp_path, build_trainer(precision="bf16"), max_epoch=1)
    content = load_checkpoint(list_checkpoints(tmp_path / "checkpoints")[-1].path)
    for precision in ("fp16", "fp32"):
        trainer = build_trainer(precision=precision)
        run(tmp_path / precision, trainer, state=restore_training(trainer, content), max_epoch=2)
        assert saved(tmp_path / precision) == [(2, 0)]
