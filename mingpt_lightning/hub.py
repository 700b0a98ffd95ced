"""Files of a pretrained model: from a local folder, or from the Hugging Face hub through its own cache."""

import re
from pathlib import Path

from mingpt_lightning.errors import CheckpointError, ResourceError, UserError


class Repository:
    """A folder in Hugging Face's layout, or a hub id such as "gpt2" or "distilbert/distilgpt2".

    name: a folder that exists is read; anything else is a hub id. revision: branch, tag or commit on the hub.
    """

    def __init__(self, name: str | Path, revision: str | None = None):
        self.name = str(name)
        self.revision = revision
        self.folder = Path(name).expanduser() if Path(name).expanduser().is_dir() else None
        if self.folder is None and not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", self.name):
            kind = "is a file" if Path(name).expanduser().is_file() else "does not exist"
            raise CheckpointError(f"the folder {name} {kind}", "model.name", "Name a folder or a hub id such as gpt2.")
        if self.folder is not None and revision is not None:
            raise UserError(f"revision={revision} of a local folder", "revision", "It is for hub ids; leave it out.")

    def find(self, *names: str) -> Path | None:
        """The first of these files that there is, downloaded where it must be; None if there is none.

        Raises ResourceError when the hub can't be reached, CheckpointError when it knows no such model.
        """
        for name in names:
            if self.folder is not None:
                if (self.folder / name).is_file():
                    return self.folder / name
            elif (path := self.download(name)) is not None:
                return path
        return None

    def require(self, *names: str) -> Path:
        """Like `find`, but raises CheckpointError when there is none."""
        path = self.find(*names)
        if path is None:
            what = f"{self.name} holds no {' or '.join(names)}"
            raise CheckpointError(what, "model.name", "Name a folder in Hugging Face's layout, or a hub id.")
        return path

    def download(self, name: str) -> Path | None:
        """A file from the hub's cache, else from the hub; None if the repository hasn't got it."""
        from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.file_download import _CACHED_NO_EXIST, try_to_load_from_cache

        cached = try_to_load_from_cache(self.name, name, revision=self.revision)
        if cached is not None:
            return None if cached is _CACHED_NO_EXIST else Path(str(cached))
        try:
            get_hf_file_metadata(hf_hub_url(self.name, name, revision=self.revision))  # fails at once, without retries
            return Path(hf_hub_download(self.name, name, revision=self.revision))
        except errors.EntryNotFoundError:
            return None
        except errors.RepositoryNotFoundError as error:  # gated ones too
            what = f"the hub has no model {self.name}, or you may not read it"
            raise CheckpointError(what, "model.name", "Check the id, log in (HF_TOKEN), or name a folder.") from error
        except errors.RevisionNotFoundError as error:
            what = f"{self.name} has no revision {self.revision}"
            raise CheckpointError(what, "model.revision", "Name a branch, tag or commit.") from error
        except Exception as error:  # whatever the network, the disk or the hub has against it
            reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else " ".join(str(error).split())
            what = f"cannot fetch {name} of {self.name}, which is not in {constants.HF_HUB_CACHE}: {reason}"
            fix = f"Name a local folder, or run `hf download {self.name}` where there is a network; HF_HOME moves the cache."
            raise ResourceError(what, "model.name", fix) from error
