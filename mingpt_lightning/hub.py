"""Files of a pretrained model, from a local folder or from the Hugging Face hub through its own cache.

Notable: `.bin` files are loaded with `weights_only=True`; nothing in a file is ever executed. This module doesn't know
what the files mean.
"""

import json
import math
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mingpt_lightning.errors import CheckpointError, ResourceError, UserError
from mingpt_lightning.files import atomic_write, write_error

if TYPE_CHECKING:
    from torch import Tensor

WHERE, FIX = "name", "Choose a model in Hugging Face's layout, or download it again."


class Repository:
    """A folder in Hugging Face's layout, or a hub id such as "gpt2" or "distilbert/distilgpt2".

    name: a folder that exists is read; anything else is a hub id. revision: branch, tag or commit on the hub.
    where: the parameter that names it, for errors.
    """

    def __init__(self, name: str | Path, revision: str | None = None, where: str = WHERE):
        self.where = where
        self.name = str(name)
        self.revision = None if revision is None else str(revision)
        folder = os.path.expanduser(name)
        self.folder = Path(folder) if os.path.isdir(folder) else None
        if self.folder is None and not is_hub_id(self.name):
            kind = "is a file" if os.path.isfile(folder) else "does not exist"
            raise CheckpointError(f"the folder {name} {kind}", where, "Name a folder or a hub id such as gpt2.")
        if self.folder is not None and revision is not None:
            raise UserError(f"revision={revision} of a local folder", "revision", "It is for hub ids; leave it out.")

    def find(self, *names: str) -> Path | None:
        """The first of these files that there is, downloaded if none is in the cache; None if there is none.

        Raises ResourceError when the hub can't be reached, CheckpointError when it knows no such model.
        """
        if self.folder is not None:
            return next((self.folder / name for name in names if (self.folder / name).is_file()), None)
        from huggingface_hub.file_download import try_to_load_from_cache

        cached = {name: try_to_load_from_cache(self.name, name, revision=self.revision) for name in names}
        paths = [path for path in cached.values() if isinstance(path, str)]  # else unknown, or known to be absent
        if paths:
            return Path(paths[0])
        downloads = (self.download(name) for name, path in cached.items() if path is None)
        return next((path for path in downloads if path is not None), None)

    def require(self, *names: str) -> Path:
        """Like `find`, but raises CheckpointError when there is none."""
        path = self.find(*names)
        if path is None:
            what = f"{self.name} holds no {' or '.join(names)}"
            raise CheckpointError(what, self.where, "Name a folder in Hugging Face's layout, or a hub id.")
        return path

    def weight_files(self) -> list[Path]:
        """The files that hold the weights: one, or the shards that an index names, in the same folder."""
        kinds = ("model.safetensors", "pytorch_model.bin")
        path = self.require(*(name for kind in kinds for name in (kind, f"{kind}.index.json")))
        if path.suffix != ".json":
            return [path]
        shards = read_json(path).get("weight_map")
        names: list[Any] = [*shards.values()] if isinstance(shards, dict) and shards else [None]
        for name in names:
            if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*\.(safetensors|bin)", name):
                what = f"{path} keeps weights in {str(name)[:60]}, which is not a file of weights beside it"
                raise CheckpointError(what, WHERE, FIX)
        return [self.require(name) for name in sorted(set(names))]

    def download(self, name: str) -> Path | None:
        """A file from the hub; None if the repository hasn't got it."""
        from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

        try:
            get_hf_file_metadata(hf_hub_url(self.name, name, revision=self.revision))  # fails at once, without retries
            return Path(hf_hub_download(self.name, name, revision=self.revision))
        except errors.EntryNotFoundError:
            return None
        except errors.RepositoryNotFoundError as error:  # gated ones too
            what = f"the hub has no model {self.name}, or you may not read it"
            raise CheckpointError(what, self.where, "Check the id, log in (HF_TOKEN), or name a folder.") from error
        except errors.RevisionNotFoundError as error:
            what = f"{self.name} has no revision {self.revision}"
            raise CheckpointError(what, "revision", "Name a branch, tag or commit.") from error
        except Exception as error:  # whatever the network, the disk or the hub has against it
            reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else " ".join(str(error).split())
            what = f"cannot fetch {name} of {self.name}, which is not in {constants.HF_HUB_CACHE}: {reason}"
            fix = (
                f"Name a local folder, or run `hf download {self.name}` where there is a network (HF_HOME: the cache)."
            )
            raise ResourceError(what, self.where, fix) from error


def upload(folder: Path, repo: str, private: bool = True) -> tuple[str, bool]:
    """Upload a folder to a model repository, which is created if need be; returns its address, and of a card kept.

    A README.md that the repository has is kept. private: how it is created; one that is public already is refused.
    Raises UserError for that and for a repository that this user may not write, ResourceError without a network.
    """
    from huggingface_hub import HfApi, constants, errors

    api = HfApi()
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        info = api.model_info(repo)
        if private and not info.private:
            raise UserError(f"{repo} is public", "repo", "Give private=false, or another repository.")
        kept = any(file.rfilename == "README.md" for file in info.siblings or [])
        api.upload_folder(
            folder_path=folder,
            repo_id=repo,
            commit_message="Upload a model of mingpt-lightning",
            ignore_patterns=["README.md"] if kept else None,
        )
        return str(url), kept
    except UserError:
        raise
    except errors.LocalTokenNotFoundError as error:
        raise UserError("you are not logged in to the hub", "repo", "Run hf auth login, or set HF_TOKEN.") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        what = f"the hub answers {status} for {repo}: {' '.join(str(error.server_message or error).split())}"
        if status not in (401, 403, 404):
            raise ResourceError(what, "repo", "Try again later.") from error
        fix = "Run hf auth login, or set HF_TOKEN, as a user who may write there."
        raise UserError(what, "repo", fix) from error
    except Exception as error:  # whatever the network has against it
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else " ".join(str(error).split())
        raise ResourceError(f"cannot upload to {repo}: {reason}", "repo", "Try again with a network.") from error


def is_hub_id(name: str) -> bool:
    """Whether the hub could have a model of this name."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object", WHERE, FIX)
    return content


def read_tensors(path: Path) -> "Iterator[tuple[str, Tensor]]":
    """Name and value of each tensor in a file, the largest first; those of safetensors are views of the file.

    Raises CheckpointError for a `.safetensors` or `.bin` file that is damaged or holds anything but named tensors.
    """
    import torch
    from safetensors import safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                sizes = {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
                with safe_open(path, "pt") as file:  # each time anew: what has been read is in memory until it closes
                    yield name, file.get_tensor(name)
        else:
            tensors = load_tensors(path)
            for name, tensor in tensors.items():
                plain = isinstance(tensor, torch.Tensor) and tensor.is_cpu and tensor.layout is torch.strided
                if not isinstance(name, str) or not plain:
                    raise TypeError(f"{str(name)[:60]} is not a tensor with a name")
            for name in sorted(tensors, key=lambda name: tensors[name].numel(), reverse=True):
                yield name, tensors.pop(name).detach()
    except Exception as error:  # whatever such a file makes its reader raise
        raise unreadable(path, error) from error


def load_tensors(path: Path) -> Any:
    """What `torch.save` wrote into a file: plain data and tensors. Raises CheckpointError for anything else."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever such a file makes its reader raise
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """The error for a file that can't be read: what it is instead, else what its reader says."""
    if isinstance(error, CheckpointError):
        return error
    cut = isinstance(error, json.JSONDecodeError) and (
        error.msg.startswith("Unterminated") or not error.doc[error.pos :].strip()
    )
    if what := damage(path) or ("is not all of the file: it ends in the middle" if cut else None):
        return CheckpointError(f"{path} cannot be read: it {what}", WHERE, "Download it again.")
    if name := object_in(error):
        what = f"{path} cannot be read: it holds other objects than tensors ({name}), none of which was loaded"
        return CheckpointError(what, WHERE, "Save a state_dict of plain tensors in Python, and load that.")
    return CheckpointError(f"{path} cannot be read: {reason(error)[:200]}", WHERE, FIX)


def object_in(error: Exception) -> str | None:
    """The class or function in a file of torch's that made its reader raise; None where it was something else."""
    found = re.search(r"Unsupported global: GLOBAL (\S+)|(?:class|function) [`'\"]?([\w.]+\.\w+)", str(error))
    return found and (found[1] or found[2]) if isinstance(error, pickle.UnpicklingError) else None


def reason(error: Exception) -> str:
    """What a reader of files says, in one line, without torch's advice to load a file with all the code in it."""
    said = " ".join(str(error).split())
    if "TorchScript" in said:
        return "it is a TorchScript program, not a state_dict"
    if isinstance(error, pickle.UnpicklingError) or re.search("weights_only|magic number", said):
        return "it is damaged, or none of torch's files of tensors"
    return said


def damage(path: Path) -> str | None:
    """What a file is that a download left in the place of a model's; None where it isn't known to be damaged."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(512)
    except OSError:
        return None
    if not size:
        return "is empty"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of git-lfs, not the file itself: `git lfs pull` fetches it"
    if re.match(rb"\s*(<!doctype|<html|<\?xml|<head)", start, re.IGNORECASE):
        return "is a web page, not the file itself"
    if size < 200 and start.isascii() and start.decode().isprintable() and not start.startswith((b"{", b"[")):
        return f"is {start.decode()!r}, not the file itself"  # what a server answered
    if start.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        return f"is not all of the file: it ends after {size:,} bytes"
    if path.suffix == ".safetensors":
        return cut_off(path, size)
    return None


def cut_off(path: Path, size: int) -> str | None:
    """How much of a file of safetensors is there, if it isn't all of it, by the offsets in its header."""
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length) if length < 2**27 else b"")
        whole = 8 + length + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, TypeError, LookupError):
        return "is not all of the file, or none of safetensors" if size < 2**20 else None
    return f"is not all of the file: it has {size:,} of {whole:,} bytes" if size < whole else None


def write_file(path: Path, content: "str | dict[str, Any] | dict[str, Tensor]") -> None:
    """Write text, tensors (`.safetensors`) or JSON atomically.

    Raises ResourceError when that fails; what was there before is still there then.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with atomic_write(path) as part:
            if path.suffix == ".safetensors":
                part.touch()
                mode = part.stat().st_mode
                save_file(content, part, metadata={"format": "pt"})  # type: ignore[arg-type]
                part.chmod(mode)  # as the user's umask says; save_file makes it private
            else:
                text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
                part.write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise write_error(path, error, "folder", "Choose another folder.") from error
