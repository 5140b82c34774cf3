"""Files that appear whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from facemetric.files import write_bytes_whole, write_text_whole, write_whole


def test_a_text_is_written_as_utf_8_with_its_folders(tmp_path: Path) -> None:
    path = write_text_whole(tmp_path / "a" / "b.txt", "Zoë\n", durable=True)
    assert path.read_bytes() == b"Zo\xc3\xab\n"
    assert [file.name for file in path.parent.iterdir()] == ["b.txt"]


def test_a_name_that_is_no_utf_8_is_written_back_as_it_was(tmp_path: Path) -> None:
    name = b"Zo\xeb".decode("utf-8", "surrogateescape")
    assert write_text_whole(tmp_path / "names.txt", name).read_bytes() == b"Zo\xeb"


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = write_bytes_whole(tmp_path / "kept", b"old")

    def half(file: Path) -> None:
        file.write_bytes(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(path, half)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
