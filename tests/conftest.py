"""Data that several tests share: drawn faces, and the real ones where they are at hand."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported: the two processes of a suite share the cores, and what a test computes is small. A test of
# several threads asks for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from commands_typed import command, people, weights
from hypothesis import Phase, settings

from facemetric.data.drawn.draw import draw_faces
from facemetric.machine import show_progress

__all__ = ["command", "people", "weights"]  # fixtures

# Tests compute on the CPU. Some fork after they trained, and a fork cannot train where autograd has threads for a GPU.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels for a GPU are tested by the interpreter
settings.register_profile(
    "mutants", phases=(Phase.explicit, Phase.generate), derandomize=True, database=None, deadline=None
)
settings.register_profile("tests", deadline=None)  # a busy machine is no failure
settings.load_profile("tests")


def pytest_collection_finish() -> None:
    """Collections of garbage, which every measured stage begins with, walk what tests make and not all imports."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def progress() -> Iterator[None]:
    """What commands say is shown in the tests, as the command line shows it."""
    before = show_progress(True)
    yield
    show_progress(before)


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 drawn identities with 6 pictures of 32 px each."""
    return draw_faces(
        tmp_path_factory.mktemp("faces"), identities=16, images=6, size=32, seed=1, workers=1, progress=False
    )


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real faces that FACEMETRIC_TEST_DATA names."""
    folder = os.environ.get("FACEMETRIC_TEST_DATA", "")
    if not folder or not Path(folder, "lfw112.tar").is_file():
        pytest.skip("FACEMETRIC_TEST_DATA does not name a folder with lfw112.tar and the other sets")
    return Path(folder)
