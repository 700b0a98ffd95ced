"""Lightning's own checkpoints under the faults of `benchmarks.reliability`, for comparison.

The same GPT, with torch's shuffled DataLoader, dropout, ModelCheckpoint(save_last=True, every_n_train_steps=5) and
`fit(ckpt_path="last")`, as Lightning documents it.
"""

import argparse
import contextlib
import os
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from benchmarks.common import Table
from benchmarks.reliability.runs import hash_of


def train(folder: Path, poisoned: bool = False) -> str:
    """Train to step 60, from last.ckpt where there is one; a hash of the final state."""
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
    trainer = pl.Trainer(
        max_steps=60,
        accelerator="cpu",
        logger=False,
        callbacks=[pl.callbacks.ModelCheckpoint(folder, save_last=True, every_n_train_steps=5)],
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    system = Plain()
    trainer.fit(system, loader, ckpt_path="last")
    return hash_of([system.state_dict(), trainer.optimizers[0].state_dict()["state"]])


def fork(function: Callable[[], Any], answer: Path) -> int:
    """Run a function in a process of its own, which writes the result into a file; its process id."""
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


def exit_code(pid: int) -> int:
    """Wait for a process."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def compare(options: argparse.Namespace, table: Table) -> None:
    """Add a row for each fault to the table."""
    n = 2 if options.tiny else 10
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        start = time.perf_counter()
        exit_code(fork(lambda: train(base / "whole"), base / "whole.txt"))
        seconds = time.perf_counter() - start
        kills(base, n, seconds, table)
        for kind in (signal.SIGTERM, signal.SIGINT):
            signals(base, n, seconds, kind, table)
        good = next(iter((base / "whole").glob("epoch*.ckpt")))
        flipped_bits(good, 10 * n, table)
        not_finite(base, table)
        if os.geteuid() == 0:
            not_writable(base, table)
        disk_full(base, good.stat().st_size // 2, table)


def interrupt(folder: Path, seconds: float, kind: signal.Signals) -> int:
    """Train, and send a signal after so many seconds; the exit code."""
    pid = fork(lambda: train(folder), folder.with_suffix(".txt"))
    time.sleep(seconds)
    os.kill(pid, kind)
    return exit_code(pid)


def kills(base: Path, n: int, seconds: float, table: Table) -> None:
    same = 0
    for number in range(n):
        folder = base / f"kill_{number}"
        interrupt(folder, random.Random(number).uniform(0.4, 0.9) * seconds, signal.SIGKILL)
        answer = folder.with_suffix(".txt")
        code = exit_code(fork(lambda folder=folder: train(folder), answer))
        same += code == 0 and answer.read_text() == (base / "whole.txt").read_text()
    table.row("Lightning: SIGKILL, then ckpt_path='last', to the same bits", n, str(same))


def signals(base: Path, n: int, seconds: float, kind: signal.Signals, table: Table) -> None:
    codes, lost = set(), 0
    for number in range(n):
        folder = base / f"{kind.name}_{number}"
        codes.add(interrupt(folder, random.Random(number).uniform(0.5, 0.8) * seconds, kind))
        files = sorted(folder.glob("epoch*.ckpt"))
        lost += not files or torch.load(files[-1], weights_only=True)["global_step"] % 5 == 0
    table.row(f"Lightning: {kind.name}", n, f"exit codes {sorted(codes)}; steps since the last save lost in {lost}")


def flipped_bits(file: Path, n: int, table: Table) -> None:
    data, changed, good = file.read_bytes(), 0, hash_of(torch.load(file, weights_only=True))
    for number in range(n):
        rng = random.Random(number)
        place = rng.randrange(len(data))
        bad = file.with_name("bad.ckpt")
        bad.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :])
        with contextlib.suppress(Exception):  # an error is what should come
            changed += hash_of(torch.load(bad, weights_only=True)) != good
    table.row("Lightning: flipped bits that change what is read, without an error", n, str(changed))


def not_finite(base: Path, table: Table) -> None:
    code = exit_code(fork(lambda: train(base / "nan", poisoned=True), base / "nan.txt"))
    newest = max((base / "nan").glob("epoch*.ckpt"), key=lambda path: path.stat().st_mtime)
    weights = torch.load(newest, weights_only=True)["state_dict"].values()
    ruined = any(bool(weight.isnan().any()) for weight in weights)
    table.row("Lightning: a loss of NaN", 1, f"exit code {code}, weights of NaN saved: {ruined}")


def not_writable(base: Path, table: Table) -> None:
    folder, answer = base / "closed", base / "closed.txt"
    folder.mkdir()
    base.chmod(0o777)
    folder.chmod(0o555)
    answer.touch()
    answer.chmod(0o666)

    def as_nobody() -> str:
        os.seteuid(65534)
        return train(folder)

    code = exit_code(fork(as_nobody, answer))
    files = len(list(folder.iterdir()))
    table.row("Lightning: a folder that is not writable", 1, f"exit code {code}, files: {files}")


def disk_full(base: Path, limit: int, table: Table) -> None:
    def limited() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return train(base / "full")

    code = exit_code(fork(limited, base / "full.txt"))
    files = len(list((base / "full").glob("*.ckpt")))
    table.row("Lightning: disk full during a save", 1, f"exit code {code} with a traceback, files: {files}")
