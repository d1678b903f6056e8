"""Seeds for single random decisions, derived from what the decision is about rather than from what ran before it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part and its position, e.g. (run_seed, "clip", epoch, index)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """Run code that draws from torch's global CPU generator as if freshly seeded, and restore its state after."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
