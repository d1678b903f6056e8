"""Several processes of one run: their ranks, and the data and errors that they share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


class OtherProcessError(RuntimeError):
    """Another process of the run failed; the message has its rank and its error, which that process reports."""


@dataclass(frozen=True)
class Process:
    """This process among `world_size`, of which `local_world_size` are on this machine, and the device it works on."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """Return whether this is the process that logs and writes files."""
        return self.rank == 0


def init_distributed(
    backend: Literal["auto", "gloo", "nccl"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    timeout_minutes: float = 30.0,
) -> Process:
    """Join the group that torchrun's environment describes; without it, a process on its own and no group.

    Each process uses the CUDA device of its local rank if there is one. "auto" means nccl on CUDA and gloo
    elsewhere; tensors on the CPU always use gloo. Communication with a dead process fails after `timeout_minutes`.
    Raises ValueError for CUDA or nccl without a device for every process of this machine, and for an incomplete
    environment.
    """
    rank, world_size, local_rank, local_world_size = _read_environment()
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and not found:
        raise ValueError("DEVICE cuda was asked for, but torch finds no CUDA device; expected cpu or auto")
    if backend == "nccl" and (device == "cpu" or not found):
        raise ValueError(f"DIST_BACKEND nccl needs CUDA; found {found} CUDA devices, DEVICE is {device}; expected gloo")
    chosen = torch.device("cpu")
    if device != "cpu" and found:
        if local_rank >= found:
            raise ValueError(f"{local_world_size} processes on this machine need as many CUDA devices, found {found}")
        chosen = torch.device("cuda", local_rank)
        torch.cuda.set_device(chosen)
    if world_size > 1:
        if backend == "auto":
            backend = "nccl" if chosen.type == "cuda" else "gloo"
        backends = "cpu:gloo,cuda:nccl" if backend == "nccl" else "gloo"
        limit = timedelta(minutes=timeout_minutes)
        dist.init_process_group(backends, rank=rank, world_size=world_size, timeout=limit)
    return Process(rank, world_size, local_rank, local_world_size, chosen)


def _read_environment() -> tuple[int, int, int, int]:
    """Return rank, world size, and both on this machine."""
    values = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    if values["RANK"] is None and values["LOCAL_RANK"] is None:
        return 0, 1, 0, 1
    try:
        rank, world_size, local_rank, local_world_size = (int(value) for value in values.values() if value is not None)
    except ValueError:
        raise ValueError(f"expected the four numbers that torchrun puts into the environment, got {values}") from None
    return rank, world_size, local_rank, local_world_size


def is_main() -> bool:
    """Return whether this is the process that logs and writes files; true without a group."""
    return not dist.is_initialized() or dist.get_rank() == 0


def gather_objects(value: T) -> list[T]:
    """Return every process's `value`, in the order of ranks; tensors in it must be on the CPU."""
    if not dist.is_initialized():
        return [value]
    gathered: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered  # type: ignore[return-value]


def all_reduce_sum(value: torch.Tensor) -> torch.Tensor:
    """Return the sum over all processes, as a new tensor."""
    total = value.clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def leave_cores_to_workers(process: Process, num_workers: int) -> None:
    """On a CPU, give this process the cores that its share of the machine has beside its loader's workers.

    Threads of both on the same cores wait for each other: a small model trained a third slower on two cores.
    OMP_NUM_THREADS in the environment takes precedence.
    """
    if process.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // process.local_world_size - num_workers))


def any_process(flag: bool) -> bool:
    """Return whether `flag` is true in any process, so that all of them can act on it together."""
    return vote(flag)[0]


def vote(*flags: bool) -> list[bool]:
    """Return for each flag whether it is true in any process."""
    votes = torch.tensor([int(flag) for flag in flags])
    if dist.is_initialized():
        dist.all_reduce(votes)
    return [bool(number) for number in votes.tolist()]


@contextmanager
def shared_errors() -> Iterator[None]:
    """Raise an error of one process in every process, so that none waits for the failed one until a timeout.

    The process of the lowest rank that failed raises its own error, and the others raise OtherProcessError. All
    processes have to enter the block, and none may communicate inside it.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    share_error(error)


def share_error(error: Exception | None) -> None:
    """Raise `error`, or OtherProcessError where another process calls this with an error; every process calls it."""
    if not any_process(error is not None):
        return
    messages = gather_objects(None if error is None else f"{error}")
    first = next(rank for rank, message in enumerate(messages) if message is not None)
    own = dist.get_rank() if dist.is_initialized() else 0
    if error is not None and (own == first or f"{error}" != messages[first]):
        raise error
    raise OtherProcessError(f"process {first}: {messages[first]}") from error


def shutdown() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
