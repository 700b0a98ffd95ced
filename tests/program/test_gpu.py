"""Training on a CUDA GPU, alone and by the strategies of several processes with one: NCCL, precisions, the log."""

import pytest
import torch

from tests.common import SMALL, Cli, log_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
]
RUN = (*SMALL, "trainer.max_steps=6", "trainer.val_check_interval=3", "trainer.log_every_n_steps=1", "compile=false")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("trainer", ["gpu", "ddp", "fsdp"])
def test_each_strategy_ends_where_one_process_does(cli: Cli, trainer: str, optimizer: str) -> None:
    losses = []
    for name in dict.fromkeys(("gpu", trainer)):
        arguments = (f"trainer={name}", "trainer.devices=1", f"optimizer={optimizer}", f"run_dir={name}")
        code, _, err = cli(*RUN, *arguments)
        assert code == 0, err
        losses.append([float(row["train/loss"]) for row in log_of(name)])
    assert losses[0] == pytest.approx(losses[-1], abs=1e-4)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "bf16-true"])
def test_gradients_are_clipped_in_each_precision(cli: Cli, precision: str) -> None:
    code, _, err = cli(*RUN, "trainer=gpu", f"trainer.precision={precision}", "run_dir=run")
    assert code == 0, err
    assert len(log_of()) >= 6
