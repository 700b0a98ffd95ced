"""metrics.csv: one row for each logged step, with all that is known then."""

import csv
from pathlib import Path

import pytest

from mingpt_lightning import LanguageModel
from mingpt_lightning.callbacks import CSVLogger
from tests.batches import Batches, by_hand, plain_sgd, random_batch
from tests.common import MakeGPT, MakeTrainer


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_what_is_logged_for_one_step_is_one_row(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path))
    logger.log_metrics({"lr": 0.1}, 0)  # Lightning counts steps from 0
    logger.log_metrics({"train/loss": 2.0, "epoch": 0}, 0)
    logger.save()
    logger.log_metrics({"val/loss": 1.5}, 0)  # of the same step, after a save
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.finalize("success")
    assert rows(tmp_path) == [
        {"step": "1", "train/loss": "2.0", "val/loss": "1.5", "lr": "0.1"},
        {"step": "2", "train/loss": "1.0", "val/loss": "1.5", "lr": ""},  # the newest validation is still known
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_rows_reach_the_file_every_few_of_them(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path), flush_every=3)
    for step in range(9):
        logger.log_metrics({"train/loss": float(step)}, step)
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "3", "4", "5", "6"], "never the newest rows"
    logger.save()
    assert [row["step"] for row in rows(tmp_path)][-1] == "9"


def test_a_resumed_run_continues_after_its_checkpoint(tmp_path: Path) -> None:
    first = CSVLogger(str(tmp_path))
    for step in range(6):
        first.log_metrics({"tokens": 8 * step, "train/loss": float(step)}, step)
    first.save()
    with (tmp_path / "metrics.csv").open("a") as stream:
        stream.write("7,48,0.")  # half a row, of a process that was killed
    second = CSVLogger(str(tmp_path))
    second.rewind(4)
    second.log_metrics({"val/loss": 9.0}, 3)  # a validation that was due at the checkpoint
    second.log_metrics({"train/loss": 5.5}, 4)
    second.finalize("success")
    found = [(row["step"], row["train/loss"], row["val/loss"]) for row in rows(tmp_path)]
    assert found == [("1", "0.0", ""), ("2", "1.0", ""), ("3", "2.0", ""), ("4", "3.0", "9.0"), ("5", "5.5", "9.0")]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_training_fills_every_row(
    make_gpt: MakeGPT, make_trainer: MakeTrainer, tmp_path: Path, accumulate: int
) -> None:
    batches = [random_batch([4, 8], seed) for seed in range(6)]
    system = LanguageModel(make_gpt(), plain_sgd)
    trainer = make_trainer(
        max_steps=4,
        accumulate_grad_batches=accumulate,
        logger=CSVLogger(str(tmp_path)),
        log_every_n_steps=1,
        val_check_interval=2 * accumulate,
        limit_val_batches=1,
        gradient_clip_val=1.0,
    )
    trainer.fit(system, Batches(*batches))
    table = rows(tmp_path)
    assert [int(row["step"]) for row in table] == [1, 2, 3, 4]
    assert [int(row["tokens"]) for row in table] == [n * accumulate * batches[0][0].numel() for n in (1, 2, 3, 4)]
    assert all(float(row["train/loss"]) > 0 and float(row["train/grad_norm"]) > 0 for row in table)
    assert [bool(row["val/loss"]) for row in table] == [False, True, True, True]
    assert table[1]["val/loss"] == table[2]["val/loss"] != table[3]["val/loss"]
    seconds = [float(row["seconds"]) for row in table]
    assert seconds == sorted(seconds)


def test_the_loss_of_accumulated_batches_is_that_of_all_of_them(
    make_gpt: MakeGPT, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    batches = [random_batch([1, 2], 0), random_batch([8, 8], 1), random_batch([0, 3], 2)]
    system = LanguageModel(make_gpt(), plain_sgd)
    total, tokens = by_hand(system.gpt, batches)
    expected = total.item() / tokens
    trainer = make_trainer(max_steps=1, accumulate_grad_batches=3, logger=CSVLogger(str(tmp_path)), log_every_n_steps=1)
    trainer.fit(system, Batches(*batches))
    assert float(rows(tmp_path)[0]["train/loss"]) == pytest.approx(expected, abs=1e-5)
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(expected, abs=1e-5)
