"""Files that are whole or absent."""

import contextlib
import os
from pathlib import Path

import pytest

from mingpt_lightning.errors import ResourceError
from mingpt_lightning.files import atomic_write, write_error, write_text


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file.txt"
    with atomic_write(file) as part:
        part.write_text("half")
        assert not file.exists()
        part.write_text("whole")
    assert file.read_text() == "whole"
    assert os.listdir(file.parent) == ["file.txt"]


@pytest.mark.parametrize("shared", [False, True])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, shared: bool) -> None:
    file = tmp_path / "file.txt"
    write_text(file, "old", durable=True)
    with contextlib.suppress(RuntimeError), atomic_write(file, shared=shared) as part:
        part.write_text("new")
        raise RuntimeError
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_two_writers_of_a_shared_file_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    with atomic_write(file, shared=True) as one, atomic_write(file, shared=True) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert file.read_text() == "one", "the last to finish"


def test_a_full_disk_is_said_with_the_space_that_is_left(tmp_path: Path) -> None:
    error = write_error(tmp_path / "x", OSError(28, "No space left on device"), "folder", "Choose another.")
    assert isinstance(error, ResourceError)
    assert str(error).startswith(f"cannot write {tmp_path / 'x'}: No space left on device; ")
    assert str(error).endswith(" GB are free (folder). Choose another.")
    assert "free" not in str(write_error(tmp_path / "x", PermissionError(13, "Permission denied"), "", ""))
