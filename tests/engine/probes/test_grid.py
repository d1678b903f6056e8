"""A probe of a grid is trained as if it were alone."""

import logging
import math
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from tests.engine.probes.grids import LRS, WEIGHT_DECAYS, batches, build_trainer, train
from tests.engine.test_distributed import free_port, join
from videoattn.engine.checkpoint.files import BadCheckpointError
from videoattn.engine.distributed import shutdown
from videoattn.engine.probes.trainer import ProbeTrainer

CELLS = [(lr, decay) for lr in LRS for decay in WEIGHT_DECAYS]


def weights(trainer: ProbeTrainer, number: int) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.grid.probes[number].state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("attentive", [False, True])
@pytest.mark.parametrize("method", ["adamw", "sgd"])
def test_each_probe_of_a_grid_is_that_of_a_run_of_its_own_bit_for_bit(attentive: bool, method: str) -> None:
    whole = build_trainer(attentive=attentive, method=method)
    start = weights(whole, 0)
    train(whole, num_micro=2)
    ends = [weights(whole, number) for number in range(len(CELLS))]
    for number, (lr, decay) in enumerate(CELLS):
        alone = build_trainer((lr,), (decay,), attentive=attentive, method=method)
        assert same(start, weights(alone, 0))
        train(alone, num_micro=2)
        assert same(ends[number], weights(alone, 0)), (lr, decay)
        assert not any(same(ends[number], other) for other in [start, *ends[:number]])


def test_the_encoder_is_neither_trained_nor_disturbed_by_drop_path() -> None:
    trainer = build_trainer(clip=None)
    encoder = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    batch = next(batches())
    before = trainer.features(batch, 0)[0]
    train(trainer)
    assert same(encoder, trainer.model.state_dict())
    assert not before.requires_grad and torch.equal(before, trainer.features(batch, 1)[0])
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_a_learning_rate_follows_the_schedule_in_proportion_and_a_weight_decay_is_the_probes_own() -> None:
    trainer = build_trainer()
    train(trainer, steps=2)  # whose second step has a rate of 0.005 where SOLVER.BASE_LR is 0.01
    groups = [(group["lr"], group["weight_decay"]) for group in trainer.optimizer.param_groups]
    assert groups == [(pytest.approx(lr / 2), decay) for lr, decay in CELLS]


def test_a_probe_that_diverges_is_dropped_and_the_others_do_not_notice(caplog: pytest.LogCaptureFixture) -> None:
    trainer, calm = build_trainer((0.002, 0.02, 0.2), (0.0,)), build_trainer((0.002, 0.2), (0.0,))
    with torch.no_grad():
        trainer.grid.probes[1].head.weight[0, 0] = math.nan  # type: ignore[union-attr,index,operator]
    with caplog.at_level(logging.WARNING, logger="videoattn"):
        losses = train(trainer)
    assert losses == pytest.approx(train(calm)) and all(map(math.isfinite, losses))
    assert same(weights(trainer, 0), weights(calm, 0)) and same(weights(trainer, 2), weights(calm, 1))
    assert (
        caplog.text.count("probe 1 (learning rate 0.02, weight decay 0) is dropped in step 1: the gradient norm") == 1
    )
    assert list(trainer.grid.dropped) == [1] and "nan" in trainer.grid.dropped[1]
    assert all(bool(value.isfinite().all()) for value in trainer.state_dict()["probe_state"].values())


def test_moments_that_are_not_finite_drop_their_probe_at_a_checkpoint() -> None:
    trainer = build_trainer((0.002, 0.02), (0.0,))
    train(trainer, steps=1)
    bias = trainer.grid.probes[1].head.bias
    trainer.optimizer.state[bias]["exp_avg_sq"][0] = math.inf  # type: ignore[index]
    trainer.check_finite(next(batches()), 0)
    assert trainer.grid.dropped == {
        1: "exp_avg_sq of head.bias in the optimizer's state became infinite or NaN in step 1"
    }
    assert trainer.state_dict()["num_moments"] == 2  # the weight and the bias of the other one


def test_a_grid_of_which_every_probe_diverged_ends_the_run() -> None:
    trainer = build_trainer((0.002, 0.02), (0.0,))
    with torch.no_grad():
        for probe in trainer.grid.probes:
            probe.head.bias[0] = math.inf  # type: ignore[union-attr,index,operator]
    with pytest.raises(FloatingPointError, match="every probe of the grid diverged; the last one, learning rate 0.02"):
        train(trainer)


def test_logits_that_are_not_finite_are_zero_and_named() -> None:
    trainer = build_trainer((0.002, 0.02), (0.0,))
    with torch.no_grad():
        trainer.grid.probes[1].head.bias[2] = math.inf  # type: ignore[union-attr,index,operator]
    features, _ = trainer.features(next(batches()), 0)
    logits = trainer.grid(features).unflatten(1, (2, 4))
    assert trainer.grid.diverged == {1} and not logits[:, 1].any()
    assert torch.equal(logits[:, 0], trainer.grid.probes[0](features))


@pytest.mark.parametrize("attentive", [False, True])
def test_a_restored_grid_goes_on_as_if_it_had_never_stopped(attentive: bool) -> None:
    whole = build_trainer(attentive=attentive)
    with torch.no_grad():
        whole.grid.probes[2].head.weight.fill_(math.nan)  # type: ignore[union-attr,operator]
    train(whole, steps=3)
    whole.grid.chosen, whole.grid.best[1] = 1, (0.5, 2)
    state = whole.state_dict()
    state = {key: value if isinstance(value, int) else torch_copy(value) for key, value in state.items()}
    again = build_trainer(attentive=attentive)
    again.load_state_dict(state)
    assert again.grid.progress() == whole.grid.progress() and list(again.grid.dropped) == [2]
    for trainer in (whole, again):
        train(trainer, steps=3)
    assert all(same(weights(whole, number), weights(again, number)) for number in range(4))
    model = again.state_dict()["model_state"]
    assert torch.equal(model["head.weight"], weights(again, 1)["head.weight"])


def torch_copy(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.clone()
    return {key: torch_copy(one) for key, one in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probe_state": None}, "lacks the grid of probes"),
        ({"probe_state": {}}, "probe_state: 8 missing, the first: 0.head.weight"),
        ({"probes": {"dropped": {}, "chosen": 4, "best": [None] * 4}}, "expected the fate of 4 probes"),
        ({"probes": {"dropped": {9: "x"}, "chosen": 0, "best": [None] * 4}}, "expected the fate of 4 probes"),
        ({"probes": {"dropped": {}, "chosen": 0, "best": [[math.nan, 1]] * 4}}, "expected the fate of 4 probes"),
    ],
)
def test_the_checkpoint_of_another_grid_is_refused(change: dict[str, object], message: str) -> None:
    trainer = build_trainer()
    train(trainer, steps=1)
    with pytest.raises(BadCheckpointError, match=message):
        build_trainer().load_state_dict(trainer.state_dict() | change)


def train_share(rank: int, port: int, folder: str) -> None:
    process = join(rank, port)
    trainer = build_trainer(process=process)
    with torch.no_grad():
        trainer.grid.probes[2].head.weight.fill_(math.nan)  # type: ignore[union-attr,operator]
    train(trainer, mine=slice(2 * rank, 2 * rank + 2))
    torch.save(trainer.grid.probes.state_dict(), Path(folder, f"{rank}.pt"))
    shutdown()


@pytest.mark.slow
def test_two_processes_train_what_one_trains_on_all_clips(tmp_path: Path) -> None:
    mp.spawn(train_share, args=(free_port(), str(tmp_path)), nprocs=2)
    ends = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert same(ends[0], ends[1])
    alone = build_trainer()
    train(alone)
    for number in (0, 1, 3):
        for name, value in weights(alone, number).items():
            torch.testing.assert_close(ends[0][f"{number}.{name}"], value, rtol=1e-4, atol=1e-6)
    assert not ends[0]["2.head.weight"].any()


def test_bf16_computes_features_and_probes_under_autocast_and_trains_float32_weights() -> None:
    trainer, exact = build_trainer(attentive=True, precision="bf16"), build_trainer(attentive=True)
    batch = next(batches())
    rough, features = trainer.features(batch, 0)[0].float(), exact.features(batch, 0)[0]
    assert not torch.equal(rough, features)
    torch.testing.assert_close(rough, features, rtol=0.05, atol=0.05)
    losses = train(trainer, steps=2)
    assert losses != train(exact, steps=2) and all(map(math.isfinite, losses))
    assert {p.dtype for p in trainer.grid.parameters()} == {torch.float32}
