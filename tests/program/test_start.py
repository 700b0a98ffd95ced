"""checkpoint=RUN: a new run starts with the weights, the positions and the vocabulary of another one."""

from pathlib import Path

import pytest
import torch

from mingpt_lightning import LanguageModel
from tests.common import CATS, CHARS, FOX, PRETRAINED, SMALL, TINY, Cli, summary

OTHER = "A LAZY dog; the quick fox!\n" * 60
FEW = (*TINY[3:], "trainer=cpu", "trainer.limit_val_batches=2", "trainer.limit_test_batches=2")
TEXT = ("datamodule=text", "datamodule.vocab_size=270", "datamodule.block_size=16")


def weights(run: str) -> list[torch.Tensor]:
    """All weights of a run's best checkpoint."""
    return list(LanguageModel.load_from_checkpoint(run).gpt.parameters())


@pytest.fixture
def texts(cli: Cli) -> None:
    """Two texts, the second with characters that the first doesn't have."""
    Path("fox.txt").write_text(FOX[:3000])
    Path("other.txt").write_text(OTHER)


@pytest.mark.parametrize("data", [CHARS, TEXT], ids=["characters", "bpe"])
@pytest.mark.usefixtures("texts")
def test_another_text_is_read_in_the_vocabulary_of_the_run(cli: Cli, data: tuple[str, ...]) -> None:
    assert cli(*SMALL, *FEW, *data, "datamodule.path=fox.txt", "run_dir=first")[0] == 0
    known = LanguageModel.load_from_checkpoint("first").tokenizer
    new = ("checkpoint=first", *FEW, "datamodule.path=other.txt", "run_dir=new")
    code, _, err = cli(*new)
    if data is CHARS:
        assert (code, len(err.splitlines())) == (2, 1)
        assert "characters that the model has never seen: '!'" in err
        code, _, err = cli(*new, "datamodule.on_unknown=skip")
    assert code == 0, err
    assert "weights     first/checkpoints/best.ckpt, step" in err
    tokenizer = LanguageModel.load_from_checkpoint("new").tokenizer
    assert tokenizer is not None
    assert known is not None
    assert tokenizer.encode("the quick fox\n") == known.encode("the quick fox\n")
    assert tokenizer.vocab_size == known.vocab_size
    assert cli("task=test", "checkpoint=new", "run_dir=again", FEW[-1])[0] == 0
    assert summary("again")["metrics"]["test/loss"] == pytest.approx(summary("new")["metrics"]["test/loss"], abs=1e-6)
    code, _, err = cli("run_dir=new", "resume=auto", "trainer.max_steps=8")
    assert code == 0, err
    assert "resuming    new/checkpoints/last.ckpt, step 6" in err
    code, _, err = cli("checkpoint=new", *FEW, "run_dir=third")
    assert code == 0, err  # on its text and, where characters are skipped, still skipping them


@pytest.mark.usefixtures("texts")
def test_a_new_run_may_change_dropout_and_windows_but_not_the_model(cli: Cli) -> None:
    assert cli(*SMALL, *FEW, *CHARS, "datamodule.path=fox.txt", "run_dir=first")[0] == 0
    code, _, err = cli("checkpoint=first", *FEW, CHARS[0], "run_dir=named", "trainer.max_steps=1")
    assert code == 0, err
    assert LanguageModel.load_from_checkpoint("named").config["datamodule"]["path"] == "fox.txt", "the same choice"
    still = ("trainer.max_steps=1", "optimizer.lr=1e-30", "trainer.val_check_interval=1")
    changes = ("model.dropout=0.1", "datamodule.block_size=8", "datamodule.split=[0.8,0.1,0.1]")
    code, _, err = cli("checkpoint=first", *FEW, *still, *changes, "run_dir=new")
    assert code == 0, err
    gpt = LanguageModel.load_from_checkpoint("new").gpt
    assert (gpt.block_size, gpt.config["dropout"]) == (16, 0.1)
    assert all(map(torch.equal, weights("first"), weights("new")))
    code, _, err = cli(
        "checkpoint=first", *FEW, *still, "model.block_size=12", "datamodule.block_size=8", "run_dir=crop"
    )
    assert code == 0, err
    assert LanguageModel.load_from_checkpoint("crop").gpt.block_size == 12
    code, _, err = cli("run_dir=crop", "resume=auto", "trainer.max_steps=2")
    assert code == 0, err
    for arguments, code, message in (
        (("model.n_layer=2",), 3, "n_layer: 1 in the checkpoint, 2 now"),
        (("datamodule.characters=abcdefg\\ ", "datamodule.on_unknown=skip"), 3, "another vocabulary than first/checkp"),
        (
            ("datamodule=text", "datamodule.path=fox.txt", "datamodule.block_size=8"),
            3,
            "the data has another vocabulary",
        ),
        (("datamodule.block_size=17",), 2, "block_size=17 is more than the 16 positions of the model (datamodule."),
        (("model.block_size=17",), 2, "block_size=17 is more than the 16 positions of the model (model."),
        ((*PRETRAINED,), 3, "name: None in the checkpoint, gpt now"),
    ):
        for task in ("fit", "check"):
            found, _, err = cli(f"task={task}", "checkpoint=first", *FEW, *arguments, "run_dir=wrong")
            assert (found, message in err, len(err.splitlines())) == (code, True, 1), err
    assert not Path("wrong").exists()


@pytest.mark.usefixtures("model", "texts")
def test_a_fine_tuned_model_needs_no_more_the_one_that_it_came_from(cli: Cli) -> None:
    Path("book.txt").write_text(CATS * 20)
    data = ("datamodule.path=book.txt", "datamodule.block_size=16")
    code, _, err = cli("experiment=finetune_gpt2", PRETRAINED[1], *data, *FEW, "run_dir=first")
    assert code == 0, err
    Path("gpt").rename("gone")
    code, _, err = cli("checkpoint=first", "datamodule.path=other.txt", *FEW, "run_dir=new")
    assert code == 0, err
    assert LanguageModel.load_from_checkpoint("new").gpt.block_size == 32
    for run in ("new", "first"):
        code, _, err = cli(f"run_dir={run}", "resume=auto", "trainer.max_steps=7")
        assert code == 0, err
