"""Repository: files of a folder or of the hub's cache, and one line for whatever stands in the way. No network."""

import os
import socket
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from huggingface_hub import constants, errors

from mingpt_lightning.errors import CheckpointError, ResourceError, UserError
from mingpt_lightning.hub import Repository
from tests.common import python

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, which must not be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def fill(cache: Path, name: str, *files: str, absent: tuple[str, ...] = ()) -> Path:
    """Put files of a model into the cache the way huggingface_hub lays them out; returns their folder."""
    model = cache / f"models--{name.replace('/', '--')}"
    snapshot = model / "snapshots" / COMMIT
    for file in files:
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / file).write_text(file)
    for file in absent:
        (model / ".no_exist" / COMMIT).mkdir(parents=True, exist_ok=True)
        (model / ".no_exist" / COMMIT / file).touch()
    (model / "refs").mkdir(exist_ok=True)
    (model / "refs" / "main").write_text(COMMIT)
    return snapshot


def line(error: pytest.ExceptionInfo[Any]) -> str:
    """The message, which is a single line."""
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_gives_the_first_of_the_files_that_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / "model" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_text("")
    (tmp_path / "model" / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (tmp_path / "model", "model", "./model/", "~/model"):
        repository = Repository(name)
        found = repository.find("c.txt", "folder", "b.txt", "a.txt")
        assert found is not None
        assert found.resolve() == (tmp_path / "model" / "b.txt").resolve()
        assert repository.find("c.txt", "folder") is None


def test_what_a_folder_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        Repository(tmp_path).require("config.json", "other.json")
    assert f"{tmp_path} holds no config.json or other.json" in line(caught)


@pytest.mark.parametrize(
    "name",
    [
        *("", "no/such/folder", "./gpt2", "gpt2/", "https://huggingface.co/gpt2", "~nobody-of-this-name/x", "x" * 5000),
        *("a b", "a--b", "a..b", "-gpt2", "gpt2.", "gpt2.git", "é/ü", "a\0b", "x" * 97),
    ],
)
def test_a_name_that_is_neither_folder_nor_hub_id_is_refused(cache: Path, name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Repository(name)
    assert "does not exist" in line(caught)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(CheckpointError) as caught:
        Repository(tmp_path / "last.ckpt")
    assert "last.ckpt is a file" in line(caught)


def test_a_folder_has_no_revisions(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        Repository(tmp_path, "main")
    assert "revision=main of a local folder" in line(caught)


@pytest.mark.parametrize("name", ["gpt2", "distilbert/distilgpt2"])
@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_cached_file_is_found_without_the_hub(cache: Path, name: str, revision: str | None) -> None:
    snapshot = fill(cache, name, "config.json")
    assert Repository(name, revision).require("config.json") == snapshot / "config.json"


def test_a_cached_file_comes_before_a_download(cache: Path) -> None:
    snapshot = fill(cache, "gpt2", "pytorch_model.bin")
    assert Repository("gpt2").find("model.safetensors", "pytorch_model.bin") == snapshot / "pytorch_model.bin"


def test_what_the_hub_is_known_to_lack_is_not_asked_for(cache: Path) -> None:
    fill(cache, "gpt2", "config.json", absent=("model.safetensors",))
    assert Repository("gpt2").find("model.safetensors") is None
    with pytest.raises(CheckpointError, match=r"gpt2 holds no model\.safetensors"):
        Repository("gpt2").require("model.safetensors")


@pytest.mark.parametrize("revision", [None, "other", 1234])
def test_offline_the_cache_and_the_command_to_fill_it_are_named(cache: Path, revision: Any) -> None:
    fill(cache, "gpt2", "config.json")
    with pytest.raises(ResourceError) as caught:
        Repository("gpt2", revision).find("model.safetensors", "pytorch_model.bin")
    for part in ("model.safetensors of gpt2", str(cache), "HF_HUB_OFFLINE is set", "hf download gpt2"):
        assert part in line(caught)


def test_a_network_that_is_down_is_one_line_at_once(tmp_path: Path) -> None:
    code = """
from mingpt_lightning.hub import Repository
try:
    Repository("gpt2").find("config.json")
except Exception as error:
    print(type(error).__name__, error)
"""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with socket.socket() as closed:  # a port where nobody listens
        closed.bind(("127.0.0.1", 0))
        hub = {"HF_ENDPOINT": f"http://127.0.0.1:{closed.getsockname()[1]}", "HF_HUB_CACHE": str(tmp_path)}
        result = python(code, env=environment | hub | {"HF_HUB_OFFLINE": "0"})
    assert result.stdout.startswith("ResourceError cannot fetch config.json of gpt2")
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("error", "kind", "expected"),
    [
        (errors.RepositoryNotFoundError, CheckpointError, "the hub has no model gpt2, or you may not read it"),
        (errors.GatedRepoError, CheckpointError, "you may not read it"),
        (errors.RevisionNotFoundError, CheckpointError, "gpt2 has no revision old"),
        (errors.HfHubHTTPError, ResourceError, "cannot fetch config.json of gpt2, .*: 500 so it is"),
        (OSError, ResourceError, "cannot fetch config.json of gpt2, .*: 500 so it is"),
    ],
)
def test_what_the_hub_answers_is_one_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: type, kind: type[UserError], expected: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error("500\nso it is") if error is OSError else error("500\nso it is", response=MagicMock())

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fail)
    with pytest.raises(kind, match=expected) as caught:
        Repository("gpt2", "old").find("config.json")
    line(caught)
