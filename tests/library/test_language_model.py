"""LanguageModel: what is measured of which token, what is generated, and what a checkpoint gives back."""

import copy
import itertools
import math
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st

from mingpt_lightning import GPT, CharTokenizer, LanguageModel, UserError
from mingpt_lightning.bpe import BPETokenizer
from mingpt_lightning.checkpoint import Checkpoint
from mingpt_lightning.datamodule import IGNORE, Batch
from mingpt_lightning.text import language_reference
from projects.adder.datamodule import AdderDataModule, AdderTokenizer
from projects.text.datamodule import TextDataModule
from tests.batches import Batches, T, by_hand, difference, random_batch, weights
from tests.common import MakeGPT, MakeTrainer, python

# The loss


@given(counted=st.lists(st.integers(0, T), min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_the_loss_is_the_sum_over_what_counts_by_its_number(make_gpt: MakeGPT, counted: list[int], seed: int) -> None:
    system, (inputs, targets) = LanguageModel(make_gpt()), random_batch(counted, seed)
    total, tokens = system.loss_sum(inputs, targets)
    expected, number = by_hand(system.gpt, [(inputs, targets)])
    assert tokens == number == sum(counted)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_logged_losses_weigh_every_token_the_same(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    system = LanguageModel(make_gpt(), tokenizer=CharTokenizer("abcdefghijk"))
    batches = [random_batch([8, 8, 7]), random_batch([1]), random_batch([0, 0]), random_batch([2, 0])]
    total, number = by_hand(system.gpt, batches)
    loss = total.item() / number
    trainer = make_trainer(limit_val_batches=1.0, limit_test_batches=1.0)
    (val,) = trainer.validate(system, datamodule=Batches(*batches), verbose=False)
    assert val == pytest.approx(
        {"val/loss": loss, "val/perplexity": math.exp(loss), "val/bits_per_character": loss / math.log(2)}, rel=1e-5
    )
    (test,) = trainer.test(system, datamodule=Batches(*batches), verbose=False)
    assert list(test.values()) == pytest.approx(list(val.values()))
    assert [name.replace("test/", "val/") for name in test] == list(val)


def test_bits_per_byte_are_all_bits_by_all_bytes(
    make_gpt: MakeGPT, make_trainer: MakeTrainer, bpe: BPETokenizer
) -> None:
    system = LanguageModel(make_gpt(bpe.vocab_size), tokenizer=bpe)
    rows = torch.tensor([bpe.encode("é🤗, the class<|endoftext|> definition of functions<|endoftext|>")[: T + 1]] * 3)
    batches = []
    for seed in range(3):
        inputs, targets = rows[:, :-1].roll(seed, 1), rows[:, 1:].roll(seed, 1)
        batches.append((inputs, targets.where(random_batch([8, 3, 0], seed)[1] != IGNORE, IGNORE)))
    counted = [token for _, targets in batches for token in targets.flatten().tolist() if token != IGNORE]
    size = sum(len(bpe.token_bytes[token]) for token in counted if token != bpe.end_of_text)
    total, _ = by_hand(system.gpt, batches)
    trainer = make_trainer(limit_val_batches=1.0, limit_test_batches=1.0)
    for stage, run in (("val", trainer.validate), ("test", trainer.test)):
        (metrics,) = run(system, datamodule=Batches(*batches), verbose=False)
        assert metrics[f"{stage}/bits_per_byte"] == pytest.approx(total.item() / math.log(2) / size, rel=1e-5)
        assert f"{stage}/bits_per_character" not in metrics


def test_tokens_without_bytes_count_their_loss(make_gpt: MakeGPT, make_trainer: MakeTrainer, bpe: BPETokenizer) -> None:
    system = LanguageModel(make_gpt(bpe.vocab_size), tokenizer=bpe)
    tokens = torch.tensor([bpe.encode("a<|endoftext|>b")])
    batch = tokens[:, :-1], tokens[:, 1:]
    losses = -torch.log_softmax(system(batch[0]), dim=-1)[0].gather(1, batch[1].T)
    (metrics,) = make_trainer(limit_val_batches=1.0).validate(system, datamodule=Batches(batch), verbose=False)
    assert metrics["val/bits_per_byte"] == pytest.approx(losses.sum().item() / math.log(2), rel=1e-5)  # one byte, "b"


def test_byte_lengths_are_no_part_of_the_weights(make_gpt: MakeGPT, bpe: BPETokenizer) -> None:
    with_bytes = LanguageModel(make_gpt(bpe.vocab_size), tokenizer=bpe)
    without = LanguageModel(make_gpt(bpe.vocab_size))
    assert with_bytes.state_dict().keys() == without.state_dict().keys()
    assert with_bytes.metric_names() == [*without.metric_names(), "val/bits_per_byte"]


def test_the_loss_on_text_is_that_of_gpt2(make_trainer: MakeTrainer, bpe: BPETokenizer, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": bpe.vocab_size, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    special = {"bos_token_id": bpe.end_of_text, "eos_token_id": bpe.end_of_text}
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(**sizes, **special, initializer_range=0.3)).eval()
    theirs.save_pretrained(tmp_path / "gpt2")
    (tmp_path / "text.txt").write_text("".join(language_reference()[:4])[:3000], encoding="utf-8")
    data = TextDataModule(
        str(tmp_path / "text.txt"), **bpe.arguments, block_size=32, split=[0.6, 0.4, 0], cache_dir=str(tmp_path)
    )
    total, tokens = 0.0, 0
    for inputs, targets in data.val_dataloader():
        for row, labels in zip(inputs, targets, strict=True):
            with torch.no_grad():
                loss = theirs(row[None], labels=row[None], shift_labels=labels[None]).loss
            number = int((labels != IGNORE).sum())
            total, tokens = total + loss.item() * number, tokens + number
    system = LanguageModel(GPT.from_pretrained(tmp_path / "gpt2"), tokenizer=bpe)
    (metrics,) = make_trainer(limit_val_batches=1.0).validate(system, datamodule=data, verbose=False)
    assert tokens == len(data.dataset("val").tokens) - 1
    assert metrics["val/loss"] == pytest.approx(total / tokens, rel=1e-5)
    size = bpe.byte_lengths[data.dataset("val").tokens[1:]].sum()
    assert metrics["val/bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-5)


def test_each_evaluation_starts_from_nothing(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    system, one, other = LanguageModel(make_gpt()), random_batch([8, 8], seed=1), random_batch([5], seed=2)
    for batch in (one, other, one):
        total, number = by_hand(system.gpt, [batch])
        (metrics,) = make_trainer(limit_val_batches=1.0).validate(system, datamodule=Batches(batch), verbose=False)
        assert metrics["val/loss"] == pytest.approx(total.item() / number, rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*no `val_dataloader`")
def test_several_loaders_are_one_evaluation_and_each_by_itself(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    system, batches = LanguageModel(make_gpt()), [random_batch([8, 8], seed=1), random_batch([5], seed=2)]
    loaders = [torch.utils.data.DataLoader([batch], batch_size=None) for batch in batches]
    trainer = make_trainer(limit_val_batches=1.0, max_epochs=2, max_steps=-1)
    trainer.fit(system, torch.utils.data.DataLoader([batches[0]] * 3, batch_size=None), loaders)
    assert trainer.global_step == 6
    for evaluate, stage in ((trainer.validate, "val"), (trainer.test, "test")):
        found = evaluate(system, loaders, verbose=False)
        metrics = {name: value for one in found for name, value in one.items()}
        sums = [by_hand(system.gpt, [batch]) for batch in batches]
        total, number = sum(loss.item() for loss, _ in sums), sum(tokens for _, tokens in sums)
        assert metrics[f"{stage}/loss"] == pytest.approx(total / number, rel=1e-5)
        for n, (loss, tokens) in enumerate(sums):
            assert metrics[f"{stage}/loss/dataloader_idx_{n}"] == pytest.approx(loss.item() / tokens, rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*no `val_dataloader`")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_schedule_ends_with_the_epochs_of_a_plain_loader(
    make_gpt: MakeGPT, make_trainer: MakeTrainer, accumulate: int
) -> None:
    examples = [tuple(tensor[0] for tensor in random_batch([8], seed=n)) for n in range(10)]
    loader = torch.utils.data.DataLoader(examples, batch_size=2)  # type: ignore[arg-type]
    asked: set[int] = set()
    system = LanguageModel(make_gpt(), scheduler=lambda step, total: asked.add(total) or 1.0)
    trainer = make_trainer(max_epochs=3, max_steps=-1, accumulate_grad_batches=accumulate)
    trainer.fit(system, loader)
    assert asked == {trainer.global_step} == {3 * -(-5 // accumulate)}


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*no `val_dataloader`")
def test_a_loader_without_a_length_needs_a_number_of_steps(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[Batch]:
            return iter([random_batch([8])] * 3)

    loader = torch.utils.data.DataLoader(Stream(), batch_size=None)
    make_trainer(max_steps=2).fit(LanguageModel(make_gpt()), loader)
    with pytest.raises(UserError, match=r"the schedule needs to know when training ends.*max_steps"):
        make_trainer(max_epochs=1, max_steps=-1).fit(LanguageModel(make_gpt()), loader)


@pytest.mark.slow
@pytest.mark.parametrize(("project", "text"), [("adder", "4+5=9"), ("sort", "021 -> 012")])
def test_a_checkpoint_of_a_project_is_read_by_itself(
    make_gpt: MakeGPT, make_trainer: MakeTrainer, tmp_path: Path, project: str, text: str
) -> None:
    module = import_module(f"projects.{project}.datamodule")
    data = module.AdderDataModule(ndigit=1) if project == "adder" else module.SortDataModule(length=3)
    system = LanguageModel(make_gpt(data.vocab_size, data.block_size), tokenizer=data.tokenizer)
    trainer = make_trainer(max_steps=1, callbacks=[Checkpoint(str(tmp_path))], enable_checkpointing=True)
    trainer.fit(system, datamodule=data)
    code = f"""
from mingpt_lightning import LanguageModel
print(LanguageModel.load_from_checkpoint({str(tmp_path / "last.ckpt")!r}).tokenizer.name)
"""
    assert python(code).stdout == f"{project}\n"


def test_metrics_fit_the_task(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    trainer, data = make_trainer(limit_val_batches=1.0), Batches(random_batch([3, 4]))
    for tokenizer, names in [
        (None, {"val/loss", "val/perplexity"}),
        (AdderTokenizer(2), {"val/loss", "val/perplexity", "val/exact_match"}),
        (CharTokenizer("abc"), {"val/loss", "val/perplexity", "val/bits_per_character"}),
    ]:
        (metrics,) = trainer.validate(LanguageModel(make_gpt(), tokenizer=tokenizer), data, verbose=False)
        assert set(metrics) == names


@pytest.fixture(scope="module")
def half_trained() -> LanguageModel:
    """An adder that is right now and then."""
    pl.seed_everything(0, verbose=False)
    data = AdderDataModule(ndigit=1, batch_size=70)
    gpt = GPT(data.vocab_size, data.block_size, n_layer=2, n_head=4, n_embd=32)
    system = LanguageModel(gpt, tokenizer=data.tokenizer, config={"note": ["plain", 1, None]})
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=4e-3)
    for inputs, targets in itertools.islice(itertools.cycle(data.train_dataloader()), 60):
        total, tokens = system.loss_sum(inputs, targets)
        (total / tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    return system


def test_exact_match_is_that_of_greedy_generation(half_trained: LanguageModel, make_trainer: MakeTrainer) -> None:
    data = AdderDataModule(ndigit=1)
    dataset = data.dataset("train")
    inputs, targets = dataset[torch.arange(len(dataset))]
    system = copy.deepcopy(half_trained)
    (metrics,) = make_trainer(limit_test_batches=1.0).test(
        system, Batches(*zip(inputs.split(16), targets.split(16), strict=True)), verbose=False
    )
    sequences = torch.cat([inputs, targets[:, -1:]], dim=1)
    generated = system.gpt.generate(sequences[:, :2], max_new_tokens=2, temperature=0)
    right = (generated == sequences).all(dim=1)
    assert 0.05 < right.double().mean() < 0.95  # else being always right or always wrong would pass
    assert metrics["test/exact_match"] == pytest.approx(right.double().mean().item())


def test_solutions_are_generated_and_judged(half_trained: LanguageModel) -> None:
    batch = AdderDataModule(ndigit=1).dataset("train")[torch.arange(70)]
    solutions = half_trained.solve(batch)
    for text, right in solutions:
        a, b, answer = map(int, text.replace("=", "+").split("+"))
        assert right == (a + b == answer)
    assert {right for _, right in solutions} == {True, False}


# Text


def test_a_prompt_is_completed(make_gpt: MakeGPT) -> None:
    system = LanguageModel(make_gpt(), tokenizer=CharTokenizer("\nabcdefghij"))
    texts = system.complete("abc", 5, num_samples=3, seed=0)
    assert len(texts) == 3
    assert len(set(texts)) > 1
    assert all(text.startswith("abc") and len(text) == 8 for text in texts)
    assert texts == system.complete("abc", 5, num_samples=3, seed=0)


def test_an_empty_prompt_starts_after_a_line_break_that_is_not_shown(make_gpt: MakeGPT) -> None:
    system = LanguageModel(make_gpt(), tokenizer=CharTokenizer("\nabcdefghij"))
    (text,) = system.complete("", 5, temperature=0)
    assert len(text) == 5
    assert system.complete("\n", 5, temperature=0) == ["\n" + text]


# Checkpoints


@pytest.fixture
def saved(half_trained: LanguageModel, make_trainer: MakeTrainer, tmp_path: Path) -> tuple[LanguageModel, Path]:
    """The half-trained adder after two more steps, and a checkpoint of it."""
    system, trainer, path = copy.deepcopy(half_trained), make_trainer(max_steps=2), tmp_path / "adder.ckpt"
    trainer.fit(system, datamodule=AdderDataModule(ndigit=1))
    trainer.save_checkpoint(path)
    return system.eval(), path


def test_a_checkpoint_gives_everything_back(saved: tuple[LanguageModel, Path]) -> None:
    original, path = saved
    loaded = LanguageModel.load_from_checkpoint(path)
    inputs, _ = AdderDataModule(ndigit=1).dataset("test")[torch.arange(20)]
    assert torch.equal(loaded(inputs), original(inputs))
    assert loaded.gpt.config == original.gpt.config
    assert loaded.config == {"note": ["plain", 1, None]}
    assert loaded.tokenizer.state() == original.tokenizer.state()
    assert loaded.tokens_seen == original.tokens_seen == 2 * 64 * 3
    assert not loaded.training


def test_a_checkpoint_of_a_bare_gpt_loads_too(make_gpt: MakeGPT, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer, system, (inputs, targets) = make_trainer(max_steps=1), LanguageModel(make_gpt()), random_batch([8])
    trainer.fit(system, datamodule=Batches((inputs, targets)))
    trainer.save_checkpoint(tmp_path / "bare.ckpt")
    loaded = LanguageModel.load_from_checkpoint(tmp_path / "bare.ckpt")
    assert loaded.tokenizer is None
    assert torch.equal(loaded(inputs), system(inputs))


def test_a_loaded_system_lives_its_own_life(saved: tuple[LanguageModel, Path], make_trainer: MakeTrainer) -> None:
    original, path = saved
    loaded, before = LanguageModel.load_from_checkpoint(path), weights(original)
    make_trainer(max_steps=2).fit(loaded.train(), datamodule=AdderDataModule(ndigit=1))
    assert difference(loaded, original) > 0
    assert torch.equal(weights(original), before)


def test_a_checkpoint_holds_plain_data_only(saved: tuple[LanguageModel, Path]) -> None:
    content = torch.load(saved[1], weights_only=True)
    assert content["global_step"] == 2
    assert content["mingpt_lightning"]["gpt"]["n_embd"] == 32
