"""Checkpoint files: whole or not there, and read only if they are what was written."""

import json
import os
import re
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from mingpt_lightning.errors import CheckpointError, ResourceError, UserError
from mingpt_lightning.files import check_writable, lock
from mingpt_lightning.storage import find_corruption, load_checkpoint, read_manifest, write_checkpoint
from tests.common import ROOT


def content(step: int) -> dict:
    return {"global_step": step, "weights": torch.arange(1000.0) + step}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """last.ckpt of step 2 and previous.ckpt of step 1."""
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for step in (1, 2):
        write_checkpoint(content(step), last, step, previous)
    return last, previous


def test_the_newest_and_the_one_before_are_there_and_listed(files):
    last, previous = files
    assert [load_checkpoint(file)["global_step"] for file in (last, previous)] == [2, 1]
    assert {path.name for path in last.parent.iterdir()} == {"last.ckpt", "previous.ckpt", "manifest.json"}
    manifest = read_manifest(last.parent)
    assert manifest is not None
    assert [entry["step"] for entry in manifest.values()] == [1, 2]
    hashes = [subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True).stdout.split()[0]
              for file in (previous, last)]  # fmt: skip
    assert list(manifest) == hashes, "anybody can check the hashes"


def test_the_manifest_forgets_files_that_are_gone(tmp_path):
    for step in range(10):
        write_checkpoint(content(step), tmp_path / "last.ckpt", step, tmp_path / "previous.ckpt")
        write_checkpoint(content(-step), tmp_path / "best.ckpt", step)
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert len(manifest) == 6
    assert all(find_corruption(file) is None for file in tmp_path.glob("*.ckpt"))


def flip(data: bytes) -> bytes:
    return data[:700] + bytes([data[700] ^ 4]) + data[701:]


DAMAGE = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-1],
    "flipped": flip,
    "longer": lambda data: data + b"\0",
    "another": lambda data: b"PK" + data[:100],
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("alone", [False, True], ids=["listed", "alone"])
def test_a_damaged_file_is_refused_by_name(files, kind, alone):
    last, _ = files
    last.write_bytes(DAMAGE[kind](last.read_bytes()))
    if alone:
        (last.parent / "manifest.json").unlink()
    if alone and kind == "longer":
        assert load_checkpoint(last)["global_step"] == 2, "nothing of it is missing"
        return
    with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged: ") as caught:
        load_checkpoint(last)
    assert alone or "previous.ckpt" in str(caught.value), "the good file is named"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "it is a pointer of git-lfs"),
        (b"<!DOCTYPE html><html></html>", "it is a web page"),
        (b"PK\x03\x04 and no more", "it is not all of the file: it ends after 16 bytes"),
        (b"Entry not found", "it is 'Entry not found', not the file itself"),
    ],
)
def test_what_a_download_left_is_called_what_it_is(tmp_path, content, expected):
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(f"last.ckpt is damaged: {expected}")):
        load_checkpoint(tmp_path / "last.ckpt")


def test_a_program_is_refused_without_advice_to_run_it(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="is damaged: it is a TorchScript program") as caught:
        load_checkpoint(tmp_path / "last.ckpt")
    assert "weights_only" not in str(caught.value)


def test_a_whole_file_of_another_run_is_refused_where_there_is_a_manifest(files, tmp_path):
    last, _ = files
    other = tmp_path / "other" / "last.ckpt"
    other.parent.mkdir()
    write_checkpoint(content(3), other, 3)
    last.write_bytes(other.read_bytes())
    with pytest.raises(CheckpointError, match="not in manifest"):
        load_checkpoint(last)


def test_a_damaged_manifest_leaves_the_checksums_of_the_files(files):
    last, _ = files
    (last.parent / "manifest.json").write_text('{"sha256": {"abc": 3')
    assert load_checkpoint(last)["global_step"] == 2
    write_checkpoint(content(4), last, 4)
    assert list((read_manifest(last.parent) or {}).values())[-1]["step"] == 4


def test_every_byte_of_the_records_is_covered_by_a_checksum(tmp_path):
    file = tmp_path / "a.ckpt"
    torch.save(content(0), file)
    with zipfile.ZipFile(file) as archive:
        offset = archive.getinfo("a/data/0").header_offset + 200
    data = file.read_bytes()
    for place in range(offset, offset + 3000, 173):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert find_corruption(file) is not None


def test_a_save_that_fails_leaves_everything_as_it_was(files, monkeypatch):
    last, previous = files
    real = os.replace
    for fails_at in range(3):  # the manifest, the old file, the new one
        calls = iter(range(9))

        def failing(*arguments, calls=calls, fails_at=fails_at):
            if next(calls) == fails_at:
                raise OSError(28, "No space left on device")
            real(*arguments)

        monkeypatch.setattr(os, "replace", failing)
        with pytest.raises(ResourceError, match=r"last\.ckpt: No space left on device; .* GB are free"):
            write_checkpoint(content(3), last, 3, previous)
        monkeypatch.setattr(os, "replace", real)
        assert not list(last.parent.glob("*.ckpt.part"))
        good = [load_checkpoint(file)["global_step"] for file in (last, previous) if file.exists()]
        assert good[0] == 2


def test_a_folder_without_room_is_refused_before_anything(tmp_path):
    check_writable(tmp_path / "new", 1, "dirpath")
    with pytest.raises(ResourceError, match="checkpoints need 1,000,000"):
        check_writable(tmp_path, 10**15, "dirpath")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        check_writable(tmp_path / "file", 1, "dirpath")
    assert not list(tmp_path.glob(".writable"))


def test_a_folder_in_use_says_by_whom_and_is_free_when_that_process_is_gone(tmp_path):
    code = (
        "import sys, pathlib; from mingpt_lightning.files import lock\n"
        "with lock(pathlib.Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        with pytest.raises(UserError, match=f"is in use by process {process.pid}"), lock(tmp_path):
            pass
        process.kill()
    assert (tmp_path / ".lock").exists(), "a killed process leaves its lock"
    with lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    assert not list(tmp_path.iterdir())


def test_manifest_is_plain_json(files):
    manifest = json.loads((files[0].parent / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert all(set(entry) == {"file", "step", "bytes"} for entry in manifest["sha256"].values())
