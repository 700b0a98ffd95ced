"""Going on with a run, or refusing to."""

import csv
import hashlib
import shutil
from pathlib import Path

import pytest
import pytorch_lightning as pl

from mingpt_lightning import LanguageModel
from mingpt_lightning.checkpoint import read_checkpoint
from mingpt_lightning.datamodule import WindowDataset
from tests.common import ROOT, SMALL, log_of, same, summary

TINY = (
    *(*SMALL, "model.dropout=0.1", "trainer=cpu"),
    *("trainer.max_steps=12", "trainer.val_check_interval=4", "trainer.log_every_n_steps=1"),
    *("callbacks.checkpoint.every_n_train_steps=3", "run_dir=run"),
)


def files(folder: str = "run") -> dict[str, str]:
    """A hash of every file of a run."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_the_command_line_goes_on_where_a_run_was_stopped(cli):
    assert cli(*TINY, "resume=auto")[0] == 0, "nothing is there, so it starts"
    whole, log = read_checkpoint("run/checkpoints/last.ckpt"), Path("run/metrics.csv").read_text()
    first = summary()
    code, _, err = cli(*TINY, "resume=must")
    assert code == 0
    assert "resuming    run/checkpoints/last.ckpt, step 12" in err
    assert Path("run/metrics.csv").read_text() == log, "a run that is over is only tested again"
    assert summary()["metrics"]["test/loss"] == first["metrics"]["test/loss"]
    code, _, err = cli(*TINY, "resume=must", "trainer.max_steps=14")
    assert code == 0
    assert "changed     trainer.max_steps: 12 in the checkpoint, 14 now" in err
    assert read_checkpoint("run/checkpoints/last.ckpt")["global_step"] == 14
    assert whole["global_step"] == 12


def test_a_run_is_found_whose_folder_is_named_by_the_environment(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("SCRATCH", str(tmp_path / "disk"))
    assert cli(*TINY[:-1], "run_dir=${oc.env:SCRATCH}/run")[0] == 0
    code, _, err = cli("run_dir=${oc.env:SCRATCH}/run", "resume=auto", "trainer.max_steps=14")
    assert code == 0, err
    assert "changed     trainer.max_steps: 12 in the checkpoint, 14 now" in err
    code, _, err = cli("checkpoint=${oc.env:SCRATCH}/run", "run_dir=new", "trainer.max_steps=1")
    assert code == 0, err
    assert summary("new")["parameters"] == summary("disk/run")["parameters"], "its own model"


CHANGES = [
    (("model.n_layer=2",), "model.n_layer: 1 in the checkpoint, 2 now"),
    (("seed=1",), "seed: 0 in the checkpoint, 1 now"),
    (("optimizer.lr=0.5",), "optimizer.lr: 0.0168 in the checkpoint, 0.5 now"),
    (("scheduler=linear",), "scheduler._target_: mingpt_lightning.optim.cosine"),
    (("datamodule=sort",), "datamodule._target_"),
    (("datamodule.ndigit=1",), "datamodule.ndigit: 2 in the checkpoint, 1 now"),
    (("optimized_metric=val/perplexity",), "optimized_metric: val/loss in the checkpoint"),
]


def test_what_would_make_the_result_wrong_is_refused_and_nothing_is_touched(cli):
    assert cli(*TINY)[0] == 0
    before = files()
    for arguments, message in CHANGES:
        code, _, err = cli(*TINY, *arguments, "resume=auto")
        assert code == 3, arguments
        assert message in err
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1
    for arguments, message in (
        (("resume=never",), "already holds a run (run_dir). Go on with it by resume=auto"),
        (("resume=perhaps",), "Use auto, must or never"),
    ):
        code, _, err = cli(*TINY, *arguments)
        assert (code, message in err) == (2, True)
    assert files() == before


def test_other_data_under_the_same_name_is_refused(cli):
    arguments = (*TINY, "datamodule=chargpt", "datamodule.path=book.txt", "datamodule.block_size=8")
    Path("book.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 50)
    assert cli(*arguments)[0] == 0
    Path("book.txt").write_text("the quick brown fox jumps over the lazy god\n" * 50)
    code, _, err = cli(*arguments, "resume=auto")
    assert code == 3
    assert "other data: its fingerprint has changed" in err
    Path("book.txt").write_text("the quick brown fox jumps over the lazy dog!\n" * 50)
    code, _, err = cli(*arguments, "resume=auto")
    assert (code, "another vocabulary" in err) == (3, True)


MOVED = """
from mingpt_lightning import CharTokenizer
from mingpt_lightning.datamodule import SequenceDataModule, WindowDataset

class Moved(SequenceDataModule):
    def __init__(self, path, val_path, seed=0):
        super().__init__(8, seed)
        self.tokenizer, self.block_size = CharTokenizer("\\n abcdefghijklmnopqrstuvwxyz"), 8
        self.files = {"train": path, "val": val_path, "test": val_path}

    def dataset(self, split):
        with open(self.files[split]) as file:
            tokens = self.tokenizer.encode_array(file.read())
        return WindowDataset(tokens, 8, 1 if split == "train" else 8)
"""


@pytest.mark.parametrize("data", ["chargpt", "text", "moved"])
def test_the_same_text_at_another_path_is_the_same_data(cli, data):
    text = "the quick brown fox jumps over the lazy dog\n" * 50
    for name in ("here/a.txt", "here/b.txt", "there/c.txt", "there/d.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    before, after, options = ["datamodule.path=here/a.txt"], ["datamodule.path=there/c.txt"], []
    if data == "moved":
        for folder, name, content in (
            ("projects/moved", "datamodule.py", MOVED),
            (
                "conf/datamodule",
                "moved.yaml",
                "_target_: projects.moved.datamodule.Moved\npath: null\nval_path: null\n",
            ),
        ):
            Path(folder).mkdir(parents=True)
            Path(folder, name).write_text(content)
        before, after = [*before, "datamodule.val_path=here/b.txt"], [*after, "datamodule.val_path=there/d.txt"]
        options = ["--config-dir", str(Path("conf").absolute())]
    else:
        before.append("datamodule.block_size=8")
    code, _, err = cli(*options, *TINY, f"datamodule={data}", *before, "trainer.limit_val_batches=2")
    assert code == 0, err
    shutil.rmtree("here")
    code, _, err = cli("run_dir=run", "resume=auto", "trainer.max_steps=13", *after)
    assert code == 0, err
    assert "resuming    run/checkpoints/last.ckpt, step 12" in err
    assert "changed     datamodule.path: here/a.txt in the checkpoint, there/c.txt now" in err
    Path("there/c.txt").write_text(text.replace("dog", "god", 1))
    code, _, err = cli("run_dir=run", "resume=auto", "trainer.max_steps=14", *after)
    assert (code, "other data: its fingerprint has changed" in err, len(err.splitlines())) == (3, True, 1)


def test_resuming_falls_back_to_the_newest_good_file_and_says_so(cli):
    assert cli(*TINY)[0] == 0
    whole = read_checkpoint("run/checkpoints/last.ckpt")
    last, previous = Path("run/checkpoints/last.ckpt"), Path("run/checkpoints/previous.ckpt")
    last.write_bytes(last.read_bytes()[:-100])
    code, _, err = cli("task=test", "checkpoint=run/checkpoints/last.ckpt", "run_dir=t")
    assert code == 3
    assert "last.ckpt is damaged: it has" in err
    assert "previous.ckpt" in err
    code, _, err = cli(*TINY, "resume=auto")
    assert code == 0
    assert "note: run/checkpoints/last.ckpt is damaged: it has" in err
    assert "resuming    run/checkpoints/previous.ckpt, step 9" in err
    assert same(whole["state_dict"], read_checkpoint(last)["state_dict"])
    assert Path("run/checkpoints/last.ckpt.damaged").exists(), "nothing is thrown away"
    for file in (last, previous):
        file.write_bytes(b"")
    before = files()
    code, _, err = cli(*TINY, "resume=auto")
    assert (code, len(err.splitlines())) == (3, 1)
    assert "last.ckpt is damaged: it is empty" in err
    assert files() == before, "starting over is never silent"


def test_a_damaged_best_file_is_replaced_by_the_next_best(cli):
    assert cli(*TINY, "trainer.max_steps=6")[0] == 0
    Path("run/checkpoints/best.ckpt").write_bytes(b"PK")
    code, _, err = cli(*TINY, "resume=must")
    assert code == 0, err
    assert read_checkpoint("run/checkpoints/best.ckpt")["global_step"] in (8, 12)


def test_must_insists_and_weights_alone_are_no_run(cli):
    code, _, err = cli(*TINY, "resume=must")
    assert code == 3
    assert "there is nothing to resume in run: no checkpoints/last.ckpt" in err
    assert not Path("run").exists()
    assert cli(*TINY)[0] == 0
    for name in ("last", "previous"):
        Path(f"run/checkpoints/{name}.ckpt").unlink()
    code, _, err = cli(*TINY, "resume=must")
    assert code == 3
    assert "only weights, run/checkpoints/best.ckpt (resume). Start from them with checkpoint=" in err
    code, _, err = cli(*TINY, "checkpoint=run", "run_dir=new")
    assert code == 0
    assert "weights     run/checkpoints/best.ckpt, step " in err
    code, _, err = cli(*TINY, "checkpoint=run", "run_dir=other", "model.n_layer=2")
    assert (code, "n_layer: 1 in the checkpoint, 2 now" in err) == (3, True)


def test_other_versions_are_named(cli, monkeypatch):
    assert cli(*TINY)[0] == 0
    monkeypatch.setattr(pl, "__version__", "9.9.9")
    code, _, err = cli(*TINY, "resume=auto")
    assert code == 0
    assert "now; the last bits may differ" in err
    assert "changed     pytorch_lightning: " in err


def test_a_run_in_epochs_of_every_window_is_not_cut_short(cli, monkeypatch):
    """Such as an earlier version began, whose checkpoints do not say how long an epoch is."""
    Path("book.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 5)
    data = ("datamodule=chargpt", "datamodule.path=book.txt", "datamodule.block_size=8", "datamodule.batch_size=16")
    data = (*TINY, *data, "trainer.limit_val_batches=1", "trainer.max_epochs=2", "datamodule.split=[0.8,0.1,0.1]")
    with monkeypatch.context() as earlier:
        earlier.setattr(WindowDataset, "epoch_size", property(len))
        metadata = LanguageModel.metadata
        earlier.setattr(
            LanguageModel, "metadata", lambda *given: {k: v for k, v in metadata(*given).items() if k != "epoch_size"}
        )
        assert cli(*data, "trainer.max_steps=-1", "callbacks.checkpoint.every_n_train_steps=7", "run_dir=whole")[0] == 0
    shutil.copytree("whole", "run")
    Path("run/checkpoints/last.ckpt").unlink()  # stopped after 14 steps
    assert summary("whole")["steps"] == 2 * 10  # of the 168 windows
    code, _, err = cli("run_dir=run", "resume=auto")
    assert (code, len(err.splitlines())) == (3, 1)
    assert "trainer.max_epochs=2 is not what it was in run/checkpoints/previous.ckpt" in err
    assert "an epoch was 168 sequences, and is 22 now" in err
    steps = "trainer.max_steps=20 trainer.max_epochs=null"
    assert f"Give {steps}." in err
    code, _, err = cli("run_dir=run", "resume=auto", *steps.split())
    assert code == 0, err
    assert "changed     an epoch: 168 sequences in the checkpoint, 22 now" in err
    whole, resumed = (read_checkpoint(f"{folder}/checkpoints/last.ckpt") for folder in ("whole", "run"))
    assert same(whole["state_dict"], resumed["state_dict"])
    assert log_of("whole") == log_of("run")


OLD = (
    *("model.n_layer=1", "model.n_head=2", "model.n_embd=8", "model.dropout=0.1", "datamodule.ndigit=1"),
    *("trainer=cpu", "trainer.max_steps=16", "trainer.val_check_interval=6", "trainer.log_every_n_steps=2"),
    *("callbacks.checkpoint.every_n_train_steps=4", "datamodule.batch_size=8", "run_dir=run", "resume=auto"),
)
"""The settings of a run that the version of 2026-11-26 began, and that was stopped after 10 of 16 steps."""


@pytest.mark.parametrize("spelled", [(), ("model._target_=mingpt_lightning.GPT",)], ids=["same", "another spelling"])
def test_a_run_of_the_version_before_goes_on(cli, spelled):
    shutil.copytree(ROOT / "tests/fixtures/run_0_1_0", "run")
    code, _, err = cli(*OLD, *spelled)
    assert code == 0, err
    assert "resuming    run/checkpoints/last.ckpt, step 10" in err
    assert "_target_" not in err
    result = summary()
    assert (result["steps"], result["tokens"]) == (16, 16 * 8 * 3)
    # What that version came to when nothing stopped it; another processor may differ in the last digits.
    assert result["metrics"]["test/loss"] == pytest.approx(1.7903646, rel=1e-3)
    assert result["metrics"]["val/loss"] == pytest.approx(1.6882244, rel=1e-3)
    assert cli("task=generate", "checkpoint=run", "prompt=1+1")[1].startswith("1+1=")
    with open("run/metrics.csv") as stream:
        assert [row["step"] for row in csv.DictReader(stream)][-3:] == ["12", "14", "16"]


def test_another_class_of_the_same_name_is_another_model(cli):
    shutil.copytree(ROOT / "tests/fixtures/run_0_1_0", "run")
    code, _, err = cli(*OLD, "optimizer._target_=torch.optim.Adam")
    assert code == 3
    assert "optimizer._target_: torch.optim.AdamW in the checkpoint, torch.optim.Adam now" in err
