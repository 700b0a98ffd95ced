"""LanguageModel: what is learnt from which token, what is logged, and what a checkpoint gives back."""

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mingpt_lightning import GPT, CharTokenizer, LanguageModel, UserError
from mingpt_lightning.datamodule import IGNORE, Batch
from mingpt_lightning.optim import constant, linear
from mingpt_lightning.text import language_reference
from mingpt_lightning.tokenizer import BPETokenizer
from projects.adder.datamodule import AdderDataModule, AdderTokenizer
from projects.sort.datamodule import SortDataModule
from projects.text.datamodule import TextDataModule

MakeGPT = Callable[..., GPT]
MakeTrainer = Callable[..., pl.Trainer]

V, T = 11, 8  # the sizes of `make_gpt`
plain_sgd = partial(torch.optim.SGD, lr=0.5)


class Loader:
    """The same few batches for ever. (Lightning would take each item of a list for a loader.)"""

    def __init__(self, *batches: Batch):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class Batches(pl.LightningDataModule):
    """The same few batches for everything."""

    def __init__(self, *batches: Batch):
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> Loader:
        return Loader(*self.batches)

    val_dataloader = test_dataloader = train_dataloader


class Losses(pl.Callback):
    """Notes the training loss of every batch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.values.append(pl_module.train_loss.item())


def random_batch(counted: list[int], seed: int = 0) -> Batch:
    """Random tokens; of the targets in row i, `counted[i]` take loss."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(V, (len(counted), T + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    for row, count in zip(targets, counted, strict=True):
        row[torch.randperm(T, generator=generator)[count:]] = IGNORE
    return tokens[:, :-1], targets


def by_hand(gpt: GPT, batches: list[Batch]) -> tuple[Tensor, int]:
    """The loss of each token that counts, added up one by one; and how many there are."""
    losses = []
    for inputs, targets in batches:
        logs = torch.log_softmax(gpt(inputs), dim=-1)
        for row, (tokens, log) in enumerate(zip(targets, logs, strict=True)):
            losses += [-log[t, tokens[t]] for t in range(T) if targets[row, t] != IGNORE]
    return (torch.stack(losses).sum() if losses else torch.tensor(0.0)), len(losses)


def weights(system: LanguageModel) -> Tensor:
    """All weights in one row."""
    return torch.cat([weight.detach().flatten() for weight in system.parameters()])


def difference(one: LanguageModel, other: LanguageModel) -> float:
    """How far apart the weights of two systems are at most."""
    return (weights(one) - weights(other)).abs().max().item()


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


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    """A small vocabulary of words and bytes."""
    return BPETokenizer.train(language_reference(), 300)


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


def test_metrics_fit_the_task(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    trainer, data = make_trainer(limit_val_batches=1.0), Batches(random_batch([3, 4]))
    for tokenizer, names in [
        (None, {"val/loss", "val/perplexity"}),
        (AdderTokenizer(2), {"val/loss", "val/perplexity", "val/exact_match"}),
        (CharTokenizer("abc"), {"val/loss", "val/perplexity", "val/bits_per_character"}),
    ]:
        (metrics,) = trainer.validate(LanguageModel(make_gpt(), tokenizer=tokenizer), data, verbose=False)
        assert set(metrics) == names


def test_the_training_loss_is_logged(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    system, batch, losses = LanguageModel(make_gpt()), random_batch([3, 8]), Losses()
    total, number = by_hand(system.gpt, [batch])
    trainer = make_trainer(max_steps=1, log_every_n_steps=1, callbacks=[losses])
    trainer.fit(system, datamodule=Batches(batch))
    assert losses.values == pytest.approx([total.item() / number], rel=1e-5)
    assert trainer.callback_metrics["train/loss"].item() == losses.values[0]
    assert system.tokens_seen == 2 * T


@pytest.mark.parametrize("windows", [1, 2])
def test_a_batch_with_nothing_to_learn_has_loss_0(make_gpt: MakeGPT, make_trainer: MakeTrainer, windows: int) -> None:
    system, losses = LanguageModel(make_gpt(), plain_sgd), Losses()
    before = copy.deepcopy(system)
    nothing = random_batch([0, 0])
    trainer = make_trainer(
        max_steps=2, accumulate_grad_batches=windows, callbacks=[losses], limit_val_batches=1.0, detect_anomaly=True
    )
    trainer.fit(system, datamodule=Batches(*[nothing] * 4))
    assert losses.values == [0.0] * 2 * windows
    assert difference(system, before) == 0
    (metrics,) = trainer.validate(system, Batches(nothing), verbose=False)
    assert metrics == {"val/loss": 0.0, "val/perplexity": 1.0}


def test_weight_decay_goes_to_matrices_only(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    system = LanguageModel(make_gpt(), partial(torch.optim.SGD, lr=0.5, weight_decay=0.5), constant)
    before = copy.deepcopy(system.gpt)
    make_trainer(max_steps=1).fit(system, datamodule=Batches(random_batch([0])))  # no gradient, so decay alone
    for (name, weight), old in zip(system.gpt.named_parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(weight, old * (0.75 if old.dim() >= 2 else 1.0), msg=name)


# Accumulation


def train(system: LanguageModel, trainer: pl.Trainer, *batches: Batch) -> LanguageModel:
    """A copy of a system, trained."""
    trained = copy.deepcopy(system)
    trainer.fit(trained, datamodule=Batches(*batches))
    return trained


def together(batches: list[Batch]) -> Batch:
    """One batch of several."""
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


MICRO = [random_batch(counted, seed) for seed, counted in enumerate([[1, 0], [8, 8], [3, 0], [0, 0]])]


def test_accumulated_batches_are_one_large_batch(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    system = LanguageModel(make_gpt(), plain_sgd, partial(constant, warmup=0.0))
    accumulated = train(system, make_trainer(max_steps=1, accumulate_grad_batches=4), *MICRO)
    at_once = train(system, make_trainer(max_steps=1), together(MICRO))
    assert difference(accumulated, at_once) < 1e-6
    assert difference(accumulated, system) > 1e-2

    mean_of_means = copy.deepcopy(system)  # what Lightning alone would do, to see that it is another result
    optimizer = plain_sgd(mean_of_means.parameters())
    for batch in MICRO:
        total, number = by_hand(mean_of_means.gpt, [batch])
        (total / max(number, 1) / 4).backward() if number else None
    optimizer.step()
    assert difference(mean_of_means, at_once) > 1e-2


def test_the_rest_of_an_epoch_is_a_batch_of_its_own(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    system = LanguageModel(make_gpt(), plain_sgd, partial(constant, warmup=0.0))
    accumulated = train(system, make_trainer(max_epochs=1, accumulate_grad_batches=2), *MICRO[:3])
    at_once = train(system, make_trainer(max_steps=2), together(MICRO[:2]), MICRO[2])
    assert difference(accumulated, at_once) < 1e-6


def test_gradients_are_clipped_after_accumulation(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    system = LanguageModel(make_gpt(), plain_sgd, partial(constant, warmup=0.0))
    clipping = {"gradient_clip_val": 0.1, "max_steps": 1}
    accumulated = train(system, make_trainer(accumulate_grad_batches=4, **clipping), *MICRO)
    at_once = train(system, make_trainer(**clipping), together(MICRO))
    assert difference(accumulated, at_once) < 1e-6
    assert (weights(accumulated) - weights(system)).norm().item() == pytest.approx(0.5 * 0.1, rel=1e-3)  # lr * clip


class Gradients(pl.Callback):
    """Notes the norm, and the largest value, of the gradients that the optimizer took."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.largest: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        def note(*_: Any) -> None:
            gradients = torch.cat([weight.grad.flatten() for weight in pl_module.parameters()])
            self.norms.append(gradients.norm().item())
            self.largest.append(gradients.abs().max().item())

        trainer.optimizers[0].register_step_post_hook(note)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
@pytest.mark.parametrize("algorithm", ["norm", "value", None])
def test_clipping_works_with_the_fused_optimizer(
    make_gpt: MakeGPT, make_trainer: MakeTrainer, precision: str, algorithm: str | None
) -> None:
    system, seen = LanguageModel(make_gpt()), Gradients()  # the default optimizer is a fused AdamW
    before = copy.deepcopy(system)
    clipping = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": algorithm} if algorithm else {}
    trainer = make_trainer(max_steps=2, precision=precision, callbacks=[seen], **clipping)
    trainer.fit(system, datamodule=Batches(random_batch([8, 8])))
    assert trainer.global_step == 2
    assert difference(system, before) > 1e-4
    assert weights(system).isfinite().all()
    match algorithm:
        case "norm":
            assert seen.norms == pytest.approx([0.01, 0.01], rel=1e-2)
        case "value":
            assert seen.largest == pytest.approx([0.01, 0.01], rel=1e-2)
            assert min(seen.norms) > 0.02
        case None:
            assert min(seen.largest) > 0.02


# The end of training


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"max_steps": 3}, 3),
        ({"max_epochs": 2}, 10),
        ({"max_epochs": 2, "limit_train_batches": 3}, 6),
        ({"max_epochs": 2, "limit_train_batches": 0.5}, 4),
        ({"max_epochs": 2, "accumulate_grad_batches": 2}, 6),
        ({"max_epochs": 2, "accumulate_grad_batches": 8}, 2),
        ({"max_epochs": 2, "max_steps": 7}, 7),
        ({"max_epochs": 1, "max_steps": 7}, 5),
    ],
)
def test_the_schedule_ends_when_training_ends(
    make_gpt: MakeGPT, make_trainer: MakeTrainer, limits: dict[str, Any], steps: int
) -> None:
    system = LanguageModel(make_gpt(), plain_sgd, partial(linear, warmup=0.0, floor=0.25))
    trainer = make_trainer(**limits)
    trainer.fit(system, datamodule=Batches(*[random_batch([8])] * 5))
    assert system.total_steps() == trainer.global_step == steps
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.25 * 0.5)  # floor * lr


def test_the_learning_rate_follows_the_schedule(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    rates: list[float] = []

    class Rates(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    schedule = partial(linear, warmup=0.4)
    trainer = make_trainer(max_steps=5, callbacks=[Rates()])
    trainer.fit(LanguageModel(make_gpt(), plain_sgd, schedule), datamodule=Batches(random_batch([8])))
    assert rates == pytest.approx([0.5 * schedule(step, 5) for step in range(5)])


def test_training_without_an_end_is_refused(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    with pytest.raises(UserError, match=r"trainer\.max_steps.*trainer\.max_epochs"):
        make_trainer(max_steps=-1, max_epochs=-1).fit(LanguageModel(make_gpt()), Batches(random_batch([8])))


def test_epochs_without_a_datamodule_are_refused(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    loader = Loader(random_batch([8]))
    with pytest.raises(UserError, match="with a datamodule"):
        make_trainer(max_epochs=1).fit(LanguageModel(make_gpt()), loader, val_dataloaders=loader)


def test_an_optimizer_that_cannot_be_made_is_refused(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    system = LanguageModel(make_gpt(), partial(torch.optim.SGD, lr=-1.0))
    with pytest.raises(UserError, match=r"Invalid learning rate: -1\.0 \(optimizer\)"):
        make_trainer(max_steps=1).fit(system, datamodule=Batches(random_batch([8])))


# Learning


def test_one_batch_is_learnt_by_heart(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    losses = Losses()
    system = LanguageModel(make_gpt(n_embd=32, scale=1.0))
    trainer = make_trainer(max_steps=100, callbacks=[losses], gradient_clip_val=1.0)
    trainer.fit(system, datamodule=Batches(random_batch([8, 4])))
    assert losses.values[0] > 2
    assert losses.values[-1] < 0.02


def curve(seed: int, make_trainer: MakeTrainer) -> list[float]:
    """The losses of 20 steps of sort."""
    pl.seed_everything(seed, verbose=False)
    data, losses = SortDataModule(seed=seed, batch_size=16), Losses()
    gpt = GPT(data.vocab_size, data.block_size, n_layer=2, n_head=2, n_embd=16, dropout=0.1)
    make_trainer(max_steps=20, callbacks=[losses]).fit(LanguageModel(gpt, tokenizer=data.tokenizer), datamodule=data)
    return losses.values


def test_a_seed_fixes_the_whole_training(make_trainer: MakeTrainer) -> None:
    first = curve(0, make_trainer)
    assert len(first) == 20
    assert curve(0, make_trainer) == first
    assert curve(1, make_trainer) != first


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
