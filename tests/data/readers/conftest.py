"""Photographs that lie loose in a folder, for the tests of several readers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three loose images, one of an identity, and what is no image."""
    root = tmp_path / "photos"
    (root / "anna").mkdir(parents=True)
    for name in ("b.jpg", "a.png", "c.JPG", "anna/1.jpg", "notes.txt", "._b.jpg"):
        (root / name).write_bytes(name.encode())
    (root / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(root / "pipe.jpg")
    return root
