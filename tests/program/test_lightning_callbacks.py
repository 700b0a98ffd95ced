"""Every callback that Lightning has trains here, or is refused in one line."""

from pathlib import Path

import pytest
import pytorch_lightning.callbacks as lightning

from tests.common import SMALL, Cli, summary

ARGUMENTS = {
    "BackboneFinetuning": "unfreeze_backbone_at_epoch:1",
    "EarlyStopping": "monitor:val/loss",
    "GradientAccumulationScheduler": "scheduling:{0:2}",
    "StochasticWeightAveraging": "swa_lrs:0.01,swa_epoch_start:1",
    "Timer": "duration:'00:01:00:00'",
    "ModelPruning": "pruning_fn:l1_unstructured,amount:0.1",
    "LambdaCallback": "",
}
ABSTRACT = {"Callback", "Checkpoint", "ProgressBar", "BaseFinetuning", "BasePredictionWriter"}
"""They do nothing by themselves."""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*lightning.__all__} - ABSTRACT))
def test_it_trains_or_ends_in_one_line(cli: Cli, name: str) -> None:
    arguments = f",{ARGUMENTS[name]}" if ARGUMENTS.get(name) else ""
    code, _, err = cli(
        *("datamodule=sort", *SMALL, "trainer=cpu", "trainer.max_steps=4", "trainer.val_check_interval=2"),
        *("logger=none", f"+callbacks.mine={{_target_:pytorch_lightning.callbacks.{name}{arguments}}}", "run_dir=run"),
    )
    assert code in (0, 2), err
    assert "Traceback" not in err
    if code == 0:
        assert summary()["steps"] == 4
    else:
        assert err.splitlines()[-1].startswith("error: ")
        assert "callbacks.mine" in err.splitlines()[-1] or name in err.splitlines()[-1], err
        assert not Path("run/checkpoints").exists()
