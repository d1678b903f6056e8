import os
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from videoattn.engine.distributed import (
    Process,
    all_reduce_sum,
    any_process,
    gather_objects,
    init_distributed,
    is_main,
    shutdown,
)

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def join(rank: int, port: int, timeout_minutes: float = 1.0) -> Process:
    """Join a group of two on this machine, as torchrun would have it."""
    torch.set_num_threads(1)
    values = dict(zip(TORCHRUN, (rank, 2, rank, 2), strict=True)) | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in values.items()})
    return init_distributed("gloo", "cpu", timeout_minutes)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_torchrun_a_process_is_alone_and_says_everything_to_itself(environment: pytest.MonkeyPatch) -> None:
    process = init_distributed(device="cpu")
    assert process == Process(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))
    assert process.is_main and is_main()
    assert gather_objects({"a": 1}) == [{"a": 1}]
    value = torch.tensor([1.5])
    total = all_reduce_sum(value)
    assert total.tolist() == [1.5] and total is not value
    assert any_process(True) and not any_process(False)
    shutdown()


def test_a_world_size_alone_does_not_make_a_group(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("WORLD_SIZE", "4")
    assert init_distributed(device="cpu").world_size == 1


def test_half_of_torchruns_environment_is_refused_by_name(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("RANK", "1")
    environment.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="'LOCAL_RANK': None"):
        init_distributed(device="cpu")


def test_cuda_and_nccl_without_a_device_are_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="DEVICE cuda"):
        init_distributed(device="cuda")
    with pytest.raises(ValueError, match="nccl needs CUDA; found 0 CUDA devices"):
        init_distributed("nccl")


def test_more_processes_than_cuda_devices_are_refused(environment: pytest.MonkeyPatch) -> None:
    for name, value in zip(TORCHRUN, "1212", strict=True):
        environment.setenv(name, value)
    environment.setattr(torch.cuda, "is_available", lambda: True)
    environment.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="2 processes on this machine need as many CUDA devices, found 1"):
        init_distributed()


def talk(rank: int, port: int, folder: str) -> None:
    process = join(rank, port)
    assert (process.rank, process.world_size, process.local_rank, process.local_world_size) == (rank, 2, rank, 2)
    assert is_main() == process.is_main == (rank == 0)
    assert gather_objects(["first", "second"][rank]) == ["first", "second"]
    own = torch.tensor([1.0 + rank, 10.0])
    assert all_reduce_sum(own).tolist() == [3.0, 20.0]
    assert own.tolist() == [1.0 + rank, 10.0]
    assert any_process(rank == 1) and not any_process(False)
    shutdown()
    Path(folder, str(rank)).touch()


def test_two_processes_hear_each_other_in_the_order_of_ranks(tmp_path: Path) -> None:
    mp.spawn(talk, args=(free_port(), str(tmp_path)), nprocs=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def fall_silent(rank: int, port: int, folder: str) -> None:
    join(rank, port, timeout_minutes=0.05)
    if rank == 1:
        while not Path(folder, "noticed").exists():
            time.sleep(0.05)
    else:
        try:
            gather_objects("anyone?")
        except RuntimeError:
            Path(folder, "noticed").touch()
    os._exit(0)  # gloo may abort a process while it takes down a group whose other members have gone


@pytest.mark.slow
def test_waiting_for_a_silent_process_ends_with_an_error(tmp_path: Path) -> None:
    mp.spawn(fall_silent, args=(free_port(), str(tmp_path)), nprocs=2)
    assert (tmp_path / "noticed").exists()
