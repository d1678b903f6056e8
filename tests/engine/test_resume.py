"""A run goes on from the newest good checkpoint, names the bad ones, and notices what has changed."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.engine.damaged_checkpoints import DAMAGES
from tests.engine.test_train import equal_states, outcome, prepare, run
from videoattn.data.lists.record import list_record, write_list
from videoattn.data.lists.video_list import VideoList, pack
from videoattn.engine.checkpoint.files import BEST, BadCheckpointError, list_checkpoints, load_checkpoint
from videoattn.engine.checkpoint.resume import Candidates, Run
from videoattn.engine.distributed import Process
from videoattn.engine.optim import parameter_groups
from videoattn.engine.train import Best, TrainState, restore_training
from videoattn.engine.trainer import Trainer


class Quarters(nn.Module):
    """A small model of the brightness of a frame's quarters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, clips: Tensor) -> Tensor:
        quarters = F.adaptive_avg_pool2d(clips.mean(dim=2), 2).flatten(1)
        return self.last(self.first(quarters).relu())


def build_trainer() -> Trainer:
    torch.manual_seed(0)
    model = Quarters()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01))
    return Trainer(model, optimizer, Process(), prepare, F.cross_entropy, ema_decay=0.5)


STEPS = {"clips_per_step": 4, "steps_per_epoch": 6, "rate_factor": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run of two epochs, the second of which is the best."""
    folder = tmp_path_factory.mktemp("run")
    results = iter([outcome(2), outcome(5)])
    run(folder, build_trainer(), max_epoch=2, validate=lambda model: next(results))
    return folder / "checkpoints"


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(logging.getLogger("videoattn"), "warning", lambda text, *values: lines.append(text % values))
    return lines


def accept(path: Path, content: dict[str, Any]) -> None:
    pass


def named(folder: Path, epoch: int) -> Path:
    return folder / f"checkpoint_epoch_{epoch:05d}.pyth"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_newest_checkpoint_is_named_and_the_one_before_it_is_restored(
    folder: Path, damage: str, warnings: list[str]
) -> None:
    (folder / BEST).unlink()
    DAMAGES[damage](named(folder, 2))
    trainer = build_trainer()
    candidates = Candidates(folder, accept)
    found = candidates.newest()
    assert found is not None
    path, _, state = candidates.restore(trainer, found)
    assert (path, state.epoch, state.step) == (named(folder, 1), 1, 0)
    assert state.best == Best(0.2, 0.2, 10, 10, 1)
    assert equal_states(trainer.state_dict()["ema_state"], load_checkpoint(path)["ema_state"])
    (line,) = warnings
    assert str(named(folder, 2)) in line and "weights_only" not in line and "\n" not in line
    assert not (folder / "ran").exists()


def test_where_no_checkpoint_is_good_one_error_names_all(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(BadCheckpointError, match="no checkpoint in .* can be continued from: .*00002.*best.*00001"):
        Candidates(folder, accept).newest()


def test_a_folder_in_the_place_of_a_checkpoint_is_an_error_at_once(folder: Path) -> None:
    named(folder, 5).mkdir()
    with pytest.raises(ValueError, match="checkpoint_epoch_00005.pyth is a folder, expected a checkpoint"):
        Candidates(folder, accept).newest()


def test_the_copy_of_the_best_counts_by_its_own_epoch(folder: Path) -> None:
    content = (folder / BEST).read_bytes()
    for path in folder.iterdir():
        path.unlink()
    named(folder, 1).write_bytes(b"")
    named(folder, 3).write_bytes(b"")
    (folder / BEST).write_bytes(content)  # of epoch 2
    found = Candidates(folder, accept).newest()
    assert found is not None and found[0] == folder / BEST and found[1]["epoch"] == 2
    assert Candidates(folder.parent / "none", accept).newest() is None


def test_a_best_that_a_killed_run_could_not_keep_is_kept(folder: Path) -> None:
    (folder / BEST).unlink()
    candidates = Candidates(folder, accept)
    found = candidates.newest()
    assert found is not None
    candidates.restore(build_trainer(), found)
    assert load_checkpoint(folder / BEST)["epoch"] == 2


def test_a_bad_newer_checkpoint_does_not_cost_the_one_that_is_written(folder: Path) -> None:
    (folder / BEST).unlink()
    named(folder, 2).write_bytes(b"")
    named(folder, 9).write_bytes(b"")
    trainer = build_trainer()
    state = restore_training(trainer, load_checkpoint(named(folder, 1)))
    run(folder.parent, trainer, state=state, max_epoch=2, keep_checkpoints=1)
    assert [c.epoch for c in list_checkpoints(folder)] == [2, 9]
    assert load_checkpoint(named(folder, 2))["epoch"] == 2


def test_a_checkpoint_of_before_continues(folder: Path) -> None:
    content = load_checkpoint(named(folder, 2))
    for best, expected in ((-1.0, None), (0.5, Best(0.5, 0.5))):
        content["best"] = best
        content.pop("num_moments", None)
        assert restore_training(build_trainer(), content).best == expected


def videos(names: str = "abcdef", labels: dict[str, int] | None = None, root: str = "/data") -> VideoList:
    return pack([f"{n}.mp4" for n in names], [(labels or {}).get(n, 1) for n in names], root, f"{root}/train.csv")


def this_run(folder: Path, **changes: Any) -> Run:
    values: dict[str, Any] = {
        "cfg": "SOLVER: {BASE_LR: 0.1, MAX_EPOCH: 2}\nTRAIN: {CHECKPOINT_FILE_PATH: ''}\n",
        "changed": [], "given": (), "videos": videos(), "steps": STEPS,
    }  # fmt: skip
    values |= changes
    notes = {"train_list": list_record(values["videos"]), "steps": values["steps"]}
    list_file = folder / "list.csv.gz"
    return Run(values["cfg"], lambda *_: values["changed"], values["given"], values["videos"], list_file, notes)


@pytest.fixture
def content(folder: Path) -> dict[str, Any]:
    """A checkpoint of a run over `videos()`, whose list was written."""
    write_list(videos(), folder / "list.csv.gz")
    cfg = "SOLVER: {BASE_LR: 0.2, MAX_EPOCH: 2}\nTRAIN: {CHECKPOINT_FILE_PATH: start.pyth}\n"
    notes = {"train_list": list_record(videos()), "steps": STEPS, "cfg": cfg}
    return load_checkpoint(named(folder, 2)) | notes


@pytest.mark.parametrize(
    "changed, message",
    [
        (videos(labels={"c": 2}), "video 3, 'c.mp4', has label 2 instead of 1"),
        (videos("abdcef"), "video 3 is 'd.mp4' with label 1 instead of 'c.mp4' with label 1"),
        (videos("abcdefg"), "video 7, 'g.mp4', is new; it lists 7 videos instead of 6"),
        (videos("abcde"), "video 6, 'f.mp4', has been removed; it lists 5 videos instead of 6"),
    ],
    ids=["relabelled", "reordered", "longer", "shorter"],
)
def test_a_list_that_changed_is_refused_with_its_first_difference(
    folder: Path, content: dict[str, Any], changed: VideoList, message: str
) -> None:
    with pytest.raises(ValueError, match=f"the training list /data/train.csv has changed: {message}"):
        this_run(folder, videos=changed).check(named(folder, 2), content)
    (folder / "list.csv.gz").unlink()
    with pytest.raises(ValueError, match="the training list /data/train.csv has changed: it"):
        this_run(folder, videos=changed).check(named(folder, 2), content)


def test_the_same_list_in_another_folder_continues(folder: Path, content: dict[str, Any], warnings: list[str]) -> None:
    this_run(folder, videos=videos(root="/elsewhere")).check(named(folder, 2), content)
    assert not warnings


def test_other_steps_than_the_checkpoint_counts_are_refused(folder: Path, content: dict[str, Any]) -> None:
    more = {"clips_per_step": 8, "steps_per_epoch": 3, "rate_factor": 1}
    with pytest.raises(ValueError, match="clips_per_step is 8, was 4; steps_per_epoch is 3, was 6"):
        this_run(folder, steps=more).check(named(folder, 2), content)
    with pytest.raises(BadCheckpointError, match="step is 6, expected less than"):
        this_run(folder).check(named(folder, 2), content | {"step": 6})


def test_a_rate_may_change_where_the_command_line_gives_it(
    folder: Path, content: dict[str, Any], warnings: list[str]
) -> None:
    key = "SOLVER.BASE_LR"
    message = r"other settings \(SOLVER.BASE_LR 0.1, was 0.2\).* To change SOLVER.BASE_LR within a run, give it on"
    with pytest.raises(ValueError, match=message):
        this_run(folder, changed=[key]).check(named(folder, 2), content)
    this_run(folder, changed=[key], given=[key]).check(named(folder, 2), content)
    assert warnings == ["continuing with SOLVER.BASE_LR 0.1, was 0.2"]
    with pytest.raises(ValueError, match=r"\(SOLVER.MAX_EPOCH 2, was 2\), so"):
        this_run(folder, changed=["SOLVER.MAX_EPOCH"], given=["SOLVER.MAX_EPOCH"]).check(named(folder, 2), content)


def test_other_start_weights_are_refused_and_none_are_not(folder: Path, content: dict[str, Any]) -> None:
    key = "TRAIN.CHECKPOINT_FILE_PATH"
    this_run(folder, changed=[key]).check(named(folder, 2), content)
    other = "TRAIN: {CHECKPOINT_FILE_PATH: other.pyth}\n"
    with pytest.raises(ValueError, match="TRAIN.CHECKPOINT_FILE_PATH other.pyth, was start.pyth"):
        this_run(folder, changed=[key], cfg=other).check(named(folder, 2), content)


def test_a_checkpoint_that_the_user_names_warns_of_all_that_differs(
    folder: Path, content: dict[str, Any], warnings: list[str]
) -> None:
    other = this_run(folder, changed=["SOLVER.MAX_EPOCH"], videos=videos("abc"))
    other.compare(named(folder, 2), content)
    (line,) = warnings
    assert "SOLVER.MAX_EPOCH 2, was 2" in line and "it lists 3 videos instead of 6" in line
    with pytest.raises(ValueError, match="within an epoch, which can't go on: the training list"):
        other.compare(named(folder, 2), content | {"step": 3})


def test_a_checkpoint_without_notes_is_compared_by_its_settings_alone(folder: Path, content: dict[str, Any]) -> None:
    old = {key: value for key, value in content.items() if key not in ("train_list", "steps")}
    this_run(folder, videos=videos("abc")).check(named(folder, 2), old)
    assert TrainState().best is None
