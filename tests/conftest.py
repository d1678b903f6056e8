"""One thread for each test process, so that several can share a machine; GPU tests skip where there is no GPU."""

import os
import sys
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in programs that tests start

import pytest
import torch

torch.set_num_threads(1)
# torch.export of 2.6 compiles what it exports, which counts
EXPORTS_BY_COMPILING = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 7)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def forget_compiled_code(request: pytest.FixtureRequest) -> Iterator[None]:
    """Torch counts how often a function was compiled in a process, and refuses after some models; tests are many."""
    yield
    if (request.node.get_closest_marker("slow") or EXPORTS_BY_COMPILING) and "torch._dynamo" in sys.modules:
        torch.compiler.reset()
