"""What Lightning's own checkpoints do in the faults of `benchmarks.reliability`.

The same GPT, with torch's shuffled DataLoader, dropout, ModelCheckpoint(save_last=True, every_n_train_steps=5) and
`fit(ckpt_path="last")`, as its documentation has it.
"""

import contextlib
import os
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from benchmarks.faults import hash_of


def train(folder: Path, poisoned: bool = False) -> str:
    """Train to step 60, from last.ckpt where there is one; a hash of what is left."""
    from mingpt_lightning import GPT
    from projects.adder.datamodule import AdderDataModule

    class Plain(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.gpt = GPT(10, 6, n_layer=1, n_head=2, n_embd=16, dropout=0.1)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            inputs, targets = batch
            loss = torch.nn.functional.cross_entropy(self.gpt(inputs).flatten(0, 1), targets.flatten())
            return loss * float("nan") if poisoned and batch_idx == 30 else loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    pl.seed_everything(0, verbose=False)
    data = AdderDataModule().dataset("train")
    pairs = torch.utils.data.TensorDataset(*data[torch.arange(len(data))])
    loader = torch.utils.data.DataLoader(pairs, batch_size=16, shuffle=True)
    keeper = pl.callbacks.ModelCheckpoint(folder, save_last=True, every_n_train_steps=5)
    trainer = pl.Trainer(
        max_steps=60,
        accelerator="cpu",
        logger=False,
        callbacks=[keeper],
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    system = Plain()
    trainer.fit(system, loader, ckpt_path="last")
    return hash_of([system.state_dict(), trainer.optimizers[0].state_dict()["state"]])


def fork(function: Callable[[], Any], answer: Path) -> int:
    """Run a function in a process of its own, which writes what it returns into a file."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        for number in (1, 2):
            os.dup2(os.open(answer.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        answer.write_text(str(function()))
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """The exit code of a process."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def cases(n: int) -> Iterator[tuple[str, int, str]]:
    """Rows for the table: what, cases, and how they came out."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        start = time.perf_counter()
        ended(fork(lambda: train(base / "whole"), base / "whole.txt"))
        seconds, whole = time.perf_counter() - start, (base / "whole.txt").read_text()
        same = 0
        for number in range(n):
            folder, answer = base / f"kill_{number}", base / f"kill_{number}.txt"
            pid = fork(lambda folder=folder: train(folder), answer)
            time.sleep(random.Random(number).uniform(0.4, 0.9) * seconds)
            os.kill(pid, signal.SIGKILL)
            ended(pid)
            code = ended(fork(lambda folder=folder: train(folder), answer))
            same += code == 0 and answer.read_text() == whole
        yield "Lightning: SIGKILL, then ckpt_path='last', to the same bits", n, str(same)
        for kind in ("SIGTERM", "SIGINT"):
            codes, lost = set(), 0
            for number in range(n):
                folder, answer = base / f"{kind}_{number}", base / f"{kind}_{number}.txt"
                pid = fork(lambda folder=folder: train(folder), answer)
                time.sleep(random.Random(number).uniform(0.5, 0.8) * seconds)
                os.kill(pid, getattr(signal, kind))
                codes.add(ended(pid))
                files = sorted(folder.glob("epoch*.ckpt"))
                lost += not files or torch.load(files[-1], weights_only=True)["global_step"] % 5 == 0
            yield f"Lightning: {kind}", n, f"exit codes {sorted(codes)}; steps since the last save lost in {lost}"
        file = next(iter((base / "whole").glob("epoch*.ckpt")))
        data, silent, good = file.read_bytes(), 0, hash_of(torch.load(file, weights_only=True))
        for number in range(10 * n):
            rng = random.Random(number)
            place = rng.randrange(len(data))
            bad = base / "bad.ckpt"
            bad.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :])
            with contextlib.suppress(Exception):  # then it says something
                silent += hash_of(torch.load(bad, weights_only=True)) != good
        yield "Lightning: flipped bits that it reads as other values, without a word", 10 * n, str(silent)
        code = ended(fork(lambda: train(base / "nan", poisoned=True), base / "nan.txt"))
        newest = sorted((base / "nan").glob("epoch*.ckpt"), key=lambda path: path.stat().st_mtime)[-1]
        weights = torch.load(newest, weights_only=True)["state_dict"].values()
        ruined = any(bool(weight.isnan().any()) for weight in weights)
        yield "Lightning: a loss of nan", 1, f"exit code {code}, weights of nan saved: {ruined}"
        if os.geteuid() == 0:
            folder = base / "closed"
            folder.mkdir()
            base.chmod(0o777)
            folder.chmod(0o555)

            def as_nobody() -> str:
                os.seteuid(65534)
                return train(folder)

            answer = base / "closed.txt"
            answer.touch()
            answer.chmod(0o666)
            code = ended(fork(as_nobody, answer))
            yield (
                "Lightning: a folder that can't be written",
                1,
                f"exit code {code}, files: {len(list(folder.iterdir()))}",
            )
        limit = len(data) // 2

        def without_room() -> str:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            return train(base / "full")

        code = ended(fork(without_room, base / "full.txt"))
        files = list((base / "full").glob("*.ckpt"))
        yield "Lightning: no room for a checkpoint", 1, f"exit code {code} with a traceback, files: {len(files)}"
