"""Configs that come with the package are found by name; a file that exists wins."""

from pathlib import Path

import pytest

from videoattn.config.load import ConfigError, load_config
from videoattn.config.shipped import find_config, shipped_configs

ROOT = Path(__file__).parents[2]


def test_every_config_of_the_checkout_is_found_by_its_name_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = shipped_configs()
    assert names == sorted(path.relative_to(ROOT / "configs").as_posix() for path in ROOT.glob("configs/*/*.yaml"))
    for name in names:
        assert find_config(name) == find_config(f"configs/{name}") == ROOT / "configs" / name


def test_a_base_of_a_shipped_config_is_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = load_config("Motion/divided_fibonacci_time.yaml", ["SOLVER.MAX_EPOCH", 3])
    assert cfg == load_config(ROOT / "configs/Motion/divided_fibonacci_time.yaml", ["SOLVER.MAX_EPOCH", 3])
    (tmp_path / "own.yaml").write_text("_BASE_: Motion/divided.yaml\nRNG_SEED: 6\n")
    assert load_config(tmp_path / "own.yaml") == load_config("Motion/divided.yaml", ["RNG_SEED", 6])
    (tmp_path / "mine.yaml").write_text(f"_BASE_: {ROOT}/configs/Motion/divided.yaml\nRNG_SEED: 5\n")
    assert load_config("mine.yaml").rng_seed == 5


def test_a_file_that_exists_wins_over_a_shipped_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Motion").mkdir()
    (tmp_path / "Motion/divided.yaml").write_text("RNG_SEED: 77\n")
    assert load_config("Motion/divided.yaml").rng_seed == 77
    assert load_config("configs/Motion/divided.yaml").rng_seed != 77


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("Motion/dividd.yaml", "did you mean Motion/divided.yaml or "),
        ("kinetics/mvitv2_s_16x4.yaml", "did you mean Kinetics/MVITv2_S_16x4.yaml"),
        ("divided_fibonacci_time", "did you mean Motion/divided_fibonacci_time.yaml"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ConfigError) as error:
        find_config(name)
    assert str(error.value).startswith(f"{name}: No such file or directory, and no config") and near in str(error.value)


def test_names_do_not_lead_out_of_the_shipped_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("../.pre-commit-config.yaml", "configs/../.pre-commit-config.yaml", "/nowhere/Motion/divided.yaml"):
        with pytest.raises(ConfigError, match="No such file or directory"):
            load_config(name)
