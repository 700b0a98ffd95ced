"""task=push: what task=export writes, to a repository of the Hugging Face hub."""

from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import DictConfig
from rich.filesize import decimal

from mingpt_lightning.cli.export import export
from mingpt_lightning.console import console
from mingpt_lightning.errors import UserError
from mingpt_lightning.hub import is_hub_id, upload


def run_task(cfg: DictConfig, started: float) -> None:
    """Upload the model that the command line names; with dry_run=true, only say what would be."""
    repo = str(cfg.repo)
    if cfg.repo is None or repo.count("/") != 1 or not is_hub_id(repo):
        what = "task=push needs a repository" if cfg.repo is None else f"repo={repo} is not a repository of the hub"
        raise UserError(what, "repo", "Give repo=USER/NAME.")
    for key in ("private", "dry_run"):
        if not isinstance(cfg[key], bool):
            raise UserError(f"{key}={cfg[key]} is not possible", key, "Use true or false.")
    with TemporaryDirectory() as place:
        what = export(cfg, Path(place), repo=repo)
        for file in sorted(Path(place).iterdir()):
            console.print(f"            {file.name}, {decimal(file.stat().st_size)}", markup=False)
        visible = "private" if cfg.private else "public"
        if cfg.dry_run:
            console.print(f"would push  these files to {repo}, {visible}: {what}", markup=False)
            return
        url, kept = upload(Path(place), repo, private=cfg.private)
    console.print(f"pushed      {url}, {visible}: {what}{', the card there is kept' * kept}", markup=False)
