"""Every YAML of `configs/` makes what it promises."""

import re

import pytest
import torch
from omegaconf import OmegaConf

from mingpt_lightning.cli.build import build
from mingpt_lightning.cli.config import CONFIG_DIR
from mingpt_lightning.datamodule import IGNORE, SequenceDataModule
from mingpt_lightning.tokenizer import Tokenizer
from tests.common import choices


@pytest.mark.parametrize("name", choices("datamodule"))
def test_datamodule_contract(config, name):
    cfg = config(f"datamodule={name}", "datamodule.batch_size=5", "seed=3")
    data = build(cfg.datamodule, "datamodule")
    assert isinstance(data, SequenceDataModule)
    assert data.vocab_size == data.tokenizer.vocab_size > 1
    assert Tokenizer.from_state(data.tokenizer.state()).state() == data.tokenizer.state()
    assert set(data.tokenizer.arguments) <= set(cfg.datamodule), "a checkpoint must be able to restore the vocabulary"

    loader = data.train_dataloader()
    batches = [batch for batch, _ in zip(loader, range(3), strict=False)]
    again = build(cfg.datamodule, "datamodule").train_dataloader()
    for (inputs, targets), (same_inputs, same_targets) in zip(batches, again, strict=False):
        length = inputs.shape[1] if getattr(data.dataset("train"), "ragged", False) else data.block_size
        assert inputs.shape == targets.shape == (5, length)
        assert length <= data.block_size
        assert inputs.dtype == targets.dtype == torch.int64
        assert ((inputs >= 0) & (inputs < data.vocab_size)).all()
        assert (((targets >= 0) & (targets < data.vocab_size)) | (targets == IGNORE)).all()
        assert (targets != IGNORE).any(dim=1).all()
        assert torch.equal(inputs[:, 1:][targets[:, :-1] != IGNORE], targets[:, :-1][targets[:, :-1] != IGNORE])
        assert torch.equal(inputs, same_inputs)
        assert torch.equal(targets, same_targets)
    other = build(config(f"datamodule={name}", "datamodule.batch_size=5", "seed=4").datamodule, "datamodule")
    assert not torch.equal(batches[0][0], next(iter(other.train_dataloader()))[0])

    for split in ("val", "test"):
        evaluation = data.evaluation_dataloader(split)
        first, second = ([inputs for inputs, _ in evaluation] for _ in range(2))
        assert sum(map(len, first)) == len(data.dataset(split))
        assert all(map(torch.equal, first, second))
        same = other.evaluation_dataloader(split)
        assert all(torch.equal(a, b) for a, (b, _) in zip(first, same, strict=True)), "a split depends on the seed"

    if data.tokenizer.answer_length is not None:
        sequence = torch.cat([batches[0][0][0], batches[0][1][0, -1:]]).tolist()
        prompt, whole = sequence[: -data.tokenizer.answer_length], data.tokenizer.decode(sequence)
        assert data.tokenizer.encode(data.tokenizer.decode(prompt)) == prompt
        assert whole.startswith(data.tokenizer.decode(prompt))


@pytest.mark.parametrize("name", choices("model"))
def test_models_build(config, name, make_gpt, tmp_path):
    if name.endswith("-pretrained"):
        cfg = config(f"model={name}")
        assert cfg.model.name.lower().rpartition("/")[2].startswith(name.removesuffix("-pretrained"))
        make_gpt(10, block_size=9).save_pretrained(tmp_path)
        gpt = build(config(f"model={name}", f"model.name={tmp_path}").model, "model", vocab_size=10, block_size=6)
        assert gpt(torch.zeros(2, 6, dtype=torch.long)).shape == (2, 6, 10)
        return
    with torch.device("meta"):
        gpt = build(config(f"model={name}").model, "model", vocab_size=10, block_size=6)
    assert gpt(torch.zeros(2, 6, dtype=torch.long, device="meta")).shape == (2, 6, 10)


@pytest.mark.parametrize("name", choices("optimizer"))
def test_optimizers_step(config, name):
    weight = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = build(config(f"optimizer={name}").optimizer, "optimizer")([{"params": [weight]}])
    weight.square().sum().backward()
    optimizer.step()
    assert weight.mean() < 1


@pytest.mark.parametrize("name", choices("scheduler"))
def test_schedules_are_factors(config, name):
    schedule = build(config(f"scheduler={name}").scheduler, "scheduler")
    assert all(0 <= schedule(step, 100) <= 1 for step in range(120))
    assert max(schedule(step, 100) for step in range(100)) == 1


@pytest.mark.parametrize("choice", [f"{g}={c}" for g in ("trainer", "callbacks", "logger", "task") for c in choices(g)])
def test_other_groups_compose(config, choice):
    assert OmegaConf.to_container(config(choice), resolve=False)


@pytest.mark.parametrize("name", choices("experiment"))
def test_experiments_compose_and_open_with_their_command(config, name):
    assert config(f"experiment={name}")
    opening = (CONFIG_DIR / f"experiment/{name}.yaml").read_text().splitlines()[:4]
    assert any(re.match(rf"# python main.py experiment={name}( |$)", line) for line in opening)
