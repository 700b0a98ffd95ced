"""Each argument of Lightning's Trainer does what its documentation says, or is refused in one line."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from mingpt_lightning import LanguageModel
from tests.common import SMALL, Cli, log_of, summary

BASE = (
    *("datamodule=sort", "datamodule.batch_size=8", *SMALL, "trainer=cpu", "trainer.max_steps=4"),
    *("trainer.val_check_interval=2", "trainer.log_every_n_steps=1", "callbacks=none", "logger=none", "run_dir=run"),
)
STOPPING = (
    "+callbacks.stop={_target_:pytorch_lightning.callbacks.EarlyStopping,monitor:val/loss,patience:1,min_delta:9}"
)
SGD = ("optimizer=sgd", "optimizer.lr=1.0", "optimizer.momentum=0.0", "optimizer.nesterov=false")
CLIPPED = (*SGD, "scheduler=constant", "trainer.max_steps=1", "trainer.gradient_clip_val=1e-3")
EPOCHS = ("trainer.max_steps=-1", "trainer.check_val_every_n_epoch=1", "trainer.val_check_interval=1.0")
LONG = "datamodule.length=12"  # has two batches of validation


class Seen:
    """What happens in a run: the steps, the settings in force during each kind of them, the Trainer."""

    def __init__(self, system: Any):
        self.trainer = system.trainer
        self.train: list[bytes] = []  # inputs
        self.val: list[Any] = []  # the number of steps before, for each batch
        self.test = 0
        self.deterministic = torch.are_deterministic_algorithms_enabled()
        self.benchmark = torch.backends.cudnn.benchmark
        self.dtype = system.gpt.token_embedding.weight.dtype
        self.before = torch.nn.utils.parameters_to_vector(system.parameters()).detach().clone()
        self.anomaly = self.autocast = self.inference = False
        self.err = ""

    def note(self, kind: str, system: Any, batch: Any) -> None:
        """Remember a step."""
        if kind == "training":
            self.train.append(batch[0].numpy().tobytes())
            self.anomaly, self.autocast = torch.is_anomaly_enabled(), torch.is_autocast_enabled("cpu")
        elif kind == "validation":
            self.val.append("sanity" if self.trainer.sanity_checking else self.trainer.global_step)
        else:
            self.test += 1
            self.inference = torch.is_inference_mode_enabled()

    @property
    def steps(self) -> int:
        return self.trainer.global_step

    @property
    def change(self) -> torch.Tensor:
        """Of all weights."""
        return torch.nn.utils.parameters_to_vector(self.trainer.lightning_module.parameters()).detach() - self.before

    def has(self, callback: str) -> bool:
        return callback in [type(item).__name__ for item in self.trainer.callbacks]


@pytest.fixture
def run(cli: Cli, caplog: pytest.LogCaptureFixture) -> Callable[..., Seen]:
    """Trains with some overrides, and returns what was seen."""

    def train(*overrides: str) -> Seen:
        runs: list[Seen] = []
        with pytest.MonkeyPatch.context() as patch:
            for kind in ("training", "validation", "test"):
                real = getattr(LanguageModel, f"{kind}_step")

                def step(self: Any, batch: Any, n: int, kind: str = kind, real: Any = real) -> Any:
                    if not runs:
                        runs.append(Seen(self))
                    runs[0].note(kind, self, batch)
                    return real(self, batch, n)

                patch.setattr(LanguageModel, f"{kind}_step", step)
            code, _, err = cli(*BASE, *overrides)
        assert code == 0, err
        runs[0].err = err + caplog.text
        return runs[0]

    return train


Case = tuple[str, tuple[str, ...], Callable[[Seen], Any]]
OBSERVED: list[Case] = [
    ("accelerator", ("=cpu",), lambda s: s.trainer.strategy.root_device.type == "cpu"),
    (
        "strategy",
        ("={_target_:pytorch_lightning.strategies.SingleDeviceStrategy,device:cpu}",),
        lambda s: type(s.trainer.strategy).__name__ == "SingleDeviceStrategy",
    ),
    ("devices", ("=auto",), lambda s: s.trainer.num_devices == 1),
    ("precision", ("=bf16-mixed",), lambda s: s.autocast and s.dtype == torch.float32),
    ("precision", ("=64-true",), lambda s: s.dtype == torch.float64),
    ("fast_dev_run", ("=3",), lambda s: (s.steps, len(s.val)) == (3, 1)),
    (
        "max_epochs",
        ("=2", "trainer.limit_train_batches=3", *EPOCHS),
        lambda s: (s.steps, summary()["ended"]) == (6, "max_epochs"),
    ),
    (
        "min_epochs",
        ("=3", "trainer.max_epochs=9", "trainer.limit_train_batches=2", STOPPING, *EPOCHS),
        lambda s: s.steps == 6,
    ),
    ("max_steps", ("=3",), lambda s: len(s.train) == s.steps == 3),
    ("min_steps", ("=7", "trainer.max_steps=20", STOPPING), lambda s: 7 <= s.steps <= 8),
    ("max_time", ("={seconds:0.000001}",), lambda s: (s.steps, summary()["ended"]) == (1, "max_time")),
    ("limit_train_batches", ("=2", "trainer.max_epochs=1", *EPOCHS), lambda s: s.steps == 2),
    ("limit_train_batches", ("=0.02", "trainer.max_epochs=1", *EPOCHS), lambda s: s.steps == 2),
    ("limit_val_batches", ("=0",), lambda s: s.val == []),
    ("limit_val_batches", ("=1", LONG), lambda s: s.val == [2, 4]),
    ("limit_test_batches", ("=0",), lambda s: s.test == 0),
    ("overfit_batches", ("=2", "trainer.max_steps=7"), lambda s: len(s.train) == 7 and len({*s.train}) == 2),
    ("val_check_interval", ("=1",), lambda s: s.val == [1, 2, 3, 4]),
    ("val_check_interval", ("='00:01:00:00'", "callbacks=default"), lambda s: s.val == [4]),  # at the end alone
    ("val_check_interval", ("={microseconds:1}", "trainer.max_steps=3"), lambda s: set(s.val) >= {2, 3}),
    (
        "val_check_interval",
        ("=0.5", "trainer.limit_train_batches=4", "trainer.check_val_every_n_epoch=1"),
        lambda s: s.val == [2, 4],
    ),
    ("check_val_every_n_epoch", ("=2", "trainer.limit_train_batches=2"), lambda s: s.val == [4]),
    ("num_sanity_val_steps", ("=1",), lambda s: s.val == ["sanity", 2, 4]),
    (
        "log_every_n_steps",
        ("=3", "logger=csv", "trainer.limit_val_batches=0"),
        lambda s: [row["step"] for row in log_of() if row["train/loss"]] == ["3"],
    ),
    ("enable_checkpointing", ("=true",), lambda s: len([*Path("run").rglob("*.ckpt")]) == 1),
    ("enable_progress_bar", ("=true",), lambda s: s.trainer.progress_bar_callback is not None),
    ("enable_model_summary", ("=true",), lambda s: s.has("ModelSummary") or s.has("RichModelSummary")),
    ("accumulate_grad_batches", ("=3",), lambda s: (len(s.train), s.steps) == (12, 4)),
    ("gradient_clip_val", ("=null", *CLIPPED[:-1]), lambda s: s.change.norm() > 0.01),
    ("gradient_clip_val", ("=1e-3", *CLIPPED), lambda s: 0.9e-3 < s.change.norm() < 1.1e-3),
    (
        "gradient_clip_algorithm",
        ("=value", *CLIPPED),
        lambda s: s.change.abs().max() < 1.1e-3 and s.change.norm() > 2e-3,
    ),
    ("deterministic", ("=true",), lambda s: s.deterministic),
    ("deterministic", ("=false",), lambda s: not s.deterministic),
    ("benchmark", ("=true",), lambda s: s.benchmark),
    ("inference_mode", ("=true",), lambda s: s.inference),
    ("inference_mode", ("=false",), lambda s: not s.inference),
    ("use_distributed_sampler", ("=true",), lambda s: s.trainer._accelerator_connector.use_distributed_sampler),
    ("sync_batchnorm", ("=true",), lambda s: s.trainer._accelerator_connector._layer_sync is not None),
    ("profiler", ("=simple",), lambda s: "Profiler Report" in s.err and "run_training_batch" in s.err),
    (
        "profiler",
        ("={_target_:pytorch_lightning.profilers.SimpleProfiler,filename:times,dirpath:.}",),
        lambda s: "run_training_batch" in Path("fit-times.txt").read_text(),
    ),
    ("detect_anomaly", ("=true",), lambda s: s.anomaly),
    ("barebones", ("=true", "trainer.log_every_n_steps=0"), lambda s: s.trainer.barebones and s.steps == 4),
    (
        "plugins",
        ("=[{_target_:pytorch_lightning.plugins.io.AsyncCheckpointIO}]",),
        lambda s: type(s.trainer.strategy.checkpoint_io).__name__ == "AsyncCheckpointIO",
    ),
    (
        "reload_dataloaders_every_n_epochs",
        ("=1", "trainer.limit_train_batches=2"),
        lambda s: len(s.train) == len({*s.train}) == 4,
    ),
    (
        "default_root_dir",
        ("=elsewhere", "trainer.enable_checkpointing=true"),
        lambda s: len([*Path("elsewhere").rglob("*.ckpt")]) == 1,
    ),
    ("enable_autolog_hparams", ("=false",), lambda s: not s.trainer.enable_autolog_hparams),
]

REFUSED = [
    ("limit_predict_batches", ("=3",), "no task that predicts"),
    ("model_registry", ("=mine",), "has no effect"),
    ("num_nodes", ("=2",), "Start it by SLURM or torchrun"),
    ("devices", ("=99",), "more processes than the"),
    ("logger", ("=true",), "a section of its own"),
    ("callbacks", ("=[]",), "a section of its own"),
    ("overfit_batches", ("=0.5",), "trainer.overfit_batches=0.5 of the 1 batch of the val split is none"),
    ("limit_train_batches", ("=1e-6",), "Use 0.0085 or more"),
    ("limit_val_batches", ("=0.5",), "of the 1 batch of the val split is none"),
    ("limit_test_batches", ("=0.5",), "of the 1 batch of the test split is none"),
    ("accumulate_grad_batches", ("=8", "trainer.limit_train_batches=2"), "more than the 2 batches of an epoch"),
    (
        "val_check_interval",
        ("=50", "trainer.check_val_every_n_epoch=1", "trainer.limit_train_batches=10"),
        "more than the 10 batches of an epoch",
    ),
    ("min_steps", ("=9",), "more than trainer.max_steps=4"),
    ("min_epochs", ("=2", "trainer.max_epochs=1"), "more than trainer.max_epochs=1"),
    ("max_time", ("='00:00:00:00'",), "no time is left"),
    ("max_time", ("=5",), "trainer.max_time=5 is not text"),
    ("max_time", ("='5:00'",), "DD:HH:MM:SS. (trainer.max_time='5:00')"),
    ("deterministic", ("=maybe",), "Use true or false, null or warn"),
    ("profiler", ("=true",), "can only be one of"),
    ("profiler", ("=fast",), "(trainer.profiler=fast)"),
    ("plugins", ("=fast",), "Use a list or null"),
    ("benchmark", ("=3",), "Use true or false"),
    ("barebones", ("=true", "callbacks=default"), "barebones"),
    ("precision", ("=transformer-engine",), "transformer_engine"),
    ("strategy", ("=deepspeed",), "pip install"),
]


def given(argument: str, overrides: tuple[str, ...]) -> tuple[str, ...]:
    plus = "+" if argument in ("logger", "callbacks") else ""
    return *overrides[1:], f"{plus}trainer.{argument}{overrides[0]}"


@pytest.mark.slow
@pytest.mark.parametrize(("argument", "overrides", "observed"), OBSERVED, ids=lambda x: x if isinstance(x, str) else "")
def test_it_does_what_is_documented(
    run: Callable[..., Seen], argument: str, overrides: tuple[str, ...], observed: Callable[[Seen], Any]
) -> None:
    assert observed(run(*given(argument, overrides)))


@pytest.mark.parametrize(("argument", "overrides", "message"), REFUSED)
def test_what_would_do_nothing_or_something_else_is_refused(
    cli: Cli, argument: str, overrides: tuple[str, ...], message: str
) -> None:
    code, _, err = cli(*BASE, *given(argument, overrides))
    assert (code, len(err.splitlines())) == (2, 1), err
    assert message in err
    assert not Path("run").exists()


def test_every_argument_is_tried() -> None:
    tried = {case[0] for case in (*OBSERVED, *REFUSED)}
    assert tried == inspect.signature(pl.Trainer).parameters.keys()


def test_an_evaluation_refuses_a_fraction_of_nothing(cli: Cli) -> None:
    assert cli(*BASE, "callbacks=default", "trainer.max_steps=1", "trainer.val_check_interval=1")[0] == 0
    for task, split in (("validate", "val"), ("test", "test")):
        code, _, err = cli(f"task={task}", "checkpoint=run", f"trainer.limit_{split}_batches=0.5")
        assert (code, len(err.splitlines())) == (2, 1)
        assert f"of the 1 batch of the {split} split is none" in err
