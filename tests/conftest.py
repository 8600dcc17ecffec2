"""Settings of all tests: one thread, deterministic kernels, no window, reproducible examples."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

settings.register_profile("tests", deadline=None, derandomize=True, database=None)
settings.load_profile("tests")

_WITH_TORCH = ("test_probes", "test_studies")


@pytest.fixture(scope="session")
def deterministic_torch():
    import torch  # here, so that the tests of the floors without torch run without it

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    return torch


@pytest.fixture(autouse=True)
def torch_settings(request):
    if request.module.__name__.rpartition(".")[2].startswith(_WITH_TORCH):
        request.getfixturevalue("deterministic_torch").manual_seed(0)


@pytest.fixture
def fast_path(tmp_path):
    """A folder where fsync costs nothing, if there is such a place."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)
