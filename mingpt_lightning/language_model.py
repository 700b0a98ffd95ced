"""LanguageModel: the LightningModule around a GPT (Lightning's "system").

It knows the loss, the metrics and how the weights are updated; it doesn't know what the tokens mean. Loss is summed
over the tokens that count and divided by their number, whatever is masked and however batches are accumulated.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from mingpt_lightning.checkpoint import FORMAT, Checkpoint, read_checkpoint
from mingpt_lightning.completion import complete
from mingpt_lightning.datamodule import IGNORE, Batch, SequenceDataModule
from mingpt_lightning.errors import CheckpointError, DivergedError, UserError
from mingpt_lightning.gpt import GPT
from mingpt_lightning.loss import cross_entropy_sum, rows_at_once
from mingpt_lightning.optim import OptimizerFactory, Schedule, cosine, lr_for_width, parameter_groups
from mingpt_lightning.resume import KEY, environment
from mingpt_lightning.shuffle import mix
from mingpt_lightning.tokenizer import BPETokenizer, CharTokenizer, Tokenizer


class LanguageModel(pl.LightningModule):
    """Trains a GPT to predict the next token.

    gpt: the network. optimizer: makes an optimizer of parameter groups; None is AdamW as in nanoGPT. scheduler: maps
    (step, total steps) to a factor of the learning rate; None is warm-up and cosine. tokenizer: goes into the
    checkpoint; one with an `answer_length` adds the exact match to the metrics, one of characters the bits per
    character, BPE the bits per byte. config: plain data for the checkpoint, never read here.

    Logs train/loss, and for val and test loss, perplexity, exact_match, bits_per_character and bits_per_byte; losses
    are in nats per token. A batch is (inputs, targets), both (B, T) int64; targets of -100 take no loss.
    """

    byte_lengths: Tensor | None  # of each token, (V,) int64; None where tokens aren't bytes

    def __init__(
        self,
        gpt: GPT,
        optimizer: OptimizerFactory | None = None,
        scheduler: Schedule | None = None,
        tokenizer: Tokenizer | None = None,
        config: dict[str, Any] | None = None,
    ):
        super().__init__()
        lr = lr_for_width(3.5e-4, gpt.config["n_embd"])
        self.gpt = gpt.train()  # a pretrained one is in evaluation mode, and Lightning would leave it there
        self.optimizer = optimizer or partial(torch.optim.AdamW, lr=lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        self.scheduler = scheduler or cosine
        self.tokenizer = tokenizer
        self.config = config or {}
        lengths = torch.from_numpy(tokenizer.byte_lengths) if isinstance(tokenizer, BPETokenizer) else None
        self.register_buffer("byte_lengths", lengths, persistent=False)
        self.train_loss: Tensor | None = None  # of the newest batch, detached; reading it may wait for the device
        self.tokens_seen = 0  # in training, in all processes, the masked ones included
        self.seed = torch.initial_seed()  # of dropout
        rates = gpt.config["dropout"]
        self.drops = any(rates if isinstance(rates, list) else [rates])
        self.validated_step = 0  # optimizer steps before the newest validation
        self.window_tokens: Tensor | int = 0  # tokens with a loss since the last optimizer step
        self.window_loss: Tensor | int = 0  # since then, the sum; not finite if that of any batch wasn't
        self.sums: list[Tensor] = []  # a row of `evaluate` for each batch of the evaluation under way

    def forward(self, tokens: Tensor) -> Tensor:
        """Next-token logits: (B, T) -> (B, T, V)."""
        return self.gpt(tokens)

    def loss_sum(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The summed loss of a batch in nats, and the number of tokens that it sums over."""
        return cross_entropy_sum(self.gpt, self.gpt.hidden(inputs), targets), (targets != IGNORE).sum()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.drops:  # what is dropped is a function of the seed and of what was trained before
            torch.manual_seed(int(mix(self.tokens_seen, key=mix(self.global_rank, key=self.seed % 2**64))))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = batch
        total, tokens = self.loss_sum(inputs, targets)
        ranks = self.trainer.world_size
        if ranks > 1:  # gradients are averaged over the processes, which may have different numbers of tokens
            tokens = self.trainer.strategy.reduce(tokens.float(), reduce_op="mean")
        loss = total / tokens.clamp(min=1)  # a batch with nothing to learn has loss 0
        self.train_loss = loss.detach()
        self.tokens_seen += inputs.numel() * ranks
        self.window_loss = self.window_loss + self.train_loss
        if self.logs_this_step():
            self.log("train/loss", self.train_loss, logger=False)
        windows = self.trainer.accumulate_grad_batches
        if windows == 1:
            return loss
        self.window_tokens = self.window_tokens + tokens
        return total * windows  # Lightning divides by it; the sum is divided in on_before_optimizer_step

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if isinstance(self.window_tokens, Tensor):
            for weight in self.parameters():
                if weight.grad is not None:
                    weight.grad /= self.window_tokens.clamp(min=1)
            self.window_tokens = 0

    def optimizer_step(self, *arguments: Any, **more: Any) -> None:
        super().optimizer_step(*arguments, **more)
        self.zero_grad()  # Lightning would keep the gradients through the next forward pass
        if self.logs_this_step() and self.train_loss is not None:
            loss = self.trainer.strategy.reduce(self.train_loss).item()  # the mean of all processes
            for logger in self.trainer.loggers:  # Lightning would log it only after a checkpoint may have been written
                logger.log_metrics({"train/loss": loss}, self.global_step)

    def logs_this_step(self) -> bool:
        """Whether the loss of the step under way is to be logged."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # 0 in a barebones Trainer
        return bool(every) and (self.global_step + 1) % every == 0

    def evaluate(self, batch: Batch) -> Tensor:
        """Sums over a batch: loss in nats, tokens, sequences with every target right, sequences, bytes of text."""
        inputs, targets = batch
        rows = max(1, rows_at_once(inputs.device, self.gpt.config["vocab_size"]) // inputs.shape[1])
        pieces = zip(self.gpt.hidden(inputs).split(rows), targets.split(rows), strict=True)
        return torch.stack([self.evaluate_piece(self.gpt.logits(hidden), wanted) for hidden, wanted in pieces]).sum(0)

    def evaluate_piece(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What `evaluate` returns, of some sequences."""
        total = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
        tokens = (targets != IGNORE).sum()
        # Greedy decoding goes wrong at the first target that is not the likeliest token, and only there.
        right = ((logits.argmax(dim=-1) == targets) | (targets == IGNORE)).all(dim=1)
        length = tokens  # where each token is one
        if self.byte_lengths is not None:
            length = (self.byte_lengths[targets.clamp(min=0)] * (targets != IGNORE)).sum()
        return torch.stack([total, tokens, right.sum(), targets.new_tensor(len(targets)), length])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.sums.append(self.evaluate(batch))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.sums.append(self.evaluate(batch))

    def on_validation_epoch_end(self) -> None:
        self.validated_step = self.global_step
        self.log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self.log_evaluation("test")

    def log_evaluation(self, stage: str) -> None:
        """Log the metrics of all batches since the last call."""
        sums = torch.stack(self.sums).cpu().double().sum(dim=0)
        self.sums = []
        total, tokens, right, sequences, length = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        loss = total / max(tokens, 1)
        if not math.isfinite(loss) and self.trainer.state.fn == "fit":
            fix = "Lower optimizer.lr, or see what is in the data."
            raise DivergedError(f"{stage}/loss is {loss} after step {self.global_step:,}", "optimizer.lr", fix)
        values = {
            "loss": loss,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "exact_match": right / sequences,
            "bits_per_character": loss / math.log(2),
            "bits_per_byte": total / math.log(2) / max(length, 1),
        }
        several = self.trainer.world_size > 1  # all have the same values, and Lightning wants to hear it
        self.log_dict({f"{stage}/{name}": values[name] for name in self.evaluation_metrics()}, sync_dist=several)

    def evaluation_metrics(self) -> list[str]:
        """The metrics of val and test that this tokenizer gives a meaning to."""
        exact = self.tokenizer is not None and self.tokenizer.answer_length is not None
        characters = isinstance(self.tokenizer, CharTokenizer)
        names = ["loss", "perplexity"] + exact * ["exact_match"] + characters * ["bits_per_character"]
        return names + (self.byte_lengths is not None) * ["bits_per_byte"]

    def metric_names(self) -> list[str]:
        """Every metric that training logs and a callback can monitor."""
        return ["train/loss", *(f"val/{name}" for name in self.evaluation_metrics())]

    def compile_blocks(self) -> None:
        """Compile each block by itself, for training: the same code for all of them, compiled once.

        In place, so that checkpoints keep their names. Generation, whose shapes grow, runs as before.
        """
        for block in self.gpt.blocks:
            block.compile(dynamic=False)

    @torch.compiler.set_stance("force_eager")
    def solve(self, batch: Batch) -> list[tuple[str, bool]]:
        """Each problem of a batch with the greedy answer, as people write it, and whether that is right.

        By real generation; for tasks whose tokenizer has an `answer_length`.
        """
        assert self.tokenizer is not None and self.tokenizer.answer_length is not None  # noqa: PT018
        inputs, targets = (tensor.to(self.device) for tensor in batch)
        sequences = torch.cat([inputs, targets[:, -1:]], dim=1)
        length = self.tokenizer.answer_length
        completed = self.gpt.generate(sequences[:, :-length], length, temperature=0)
        right = (completed == sequences).all(dim=1).tolist()
        return list(zip(map(self.tokenizer.decode, completed.tolist()), right, strict=True))

    @torch.compiler.set_stance("force_eager")
    def complete(self, prompt: str, max_new_tokens: int, num_samples: int = 1, **options: Any) -> list[str]:
        """Samples of a prompt and its continuation, as text; options as for `completion.complete`."""
        assert self.tokenizer is not None
        samples = complete(self.gpt, self.tokenizer, [prompt] * num_samples, max_new_tokens, **options)
        return [sample.prompt + sample.text for sample in samples]

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer over the parameter groups. Raises UserError where its arguments don't fit."""
        try:
            return self.optimizer(parameter_groups(self.gpt))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"this optimizer cannot be made: {error}", "optimizer", "Correct its arguments.") from error

    def configure_optimizers(self) -> Any:
        optimizer, total = self.make_optimizer(), self.total_steps()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.scheduler(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def total_steps(self) -> int:
        """Optimizer steps in the whole training, from the Trainer's limits alone.

        Lightning's own estimate makes the training loader too early, which breaks resuming (PL #20550).
        """
        trainer, limits = self.trainer, []
        datamodule = getattr(trainer, "datamodule", None)
        if trainer.max_steps > 0:
            limits.append(trainer.max_steps)
        if trainer.max_epochs is not None and trainer.max_epochs > 0 and datamodule is not None:
            batches = len(datamodule.train_dataloader())
            limit = trainer.limit_train_batches
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
            limits.append(trainer.max_epochs * math.ceil(batches / trainer.accumulate_grad_batches))
        if not limits:
            fix = "Set trainer.max_steps, or trainer.max_epochs with a datamodule."
            raise UserError("the schedule needs to know when training ends", "trainer.max_steps", fix)
        return min(limits)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        norm: Tensor | None = None
        # Lightning 2.6 refuses to clip for a fused optimizer under bf16-mixed, which has no loss scaler to mind.
        if gradient_clip_val and gradient_clip_algorithm != "value" and self.trainer.precision != "16-mixed":
            norm = torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        self.stop_if_diverged(norm)
        if gradient_clip_val and gradient_clip_algorithm == "value" and self.trainer.precision == "bf16-mixed":
            torch.nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        elif norm is None:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def stop_if_diverged(self, norm: Tensor | None) -> None:
        """Raise DivergedError before an update by a loss or a gradient that isn't finite. norm: the gradient's."""
        loss, self.window_loss = self.window_loss, 0
        scaled = self.trainer.precision == "16-mixed"  # whose scaler expects gradients to overflow, and skips the step
        if norm is None and not scaled:
            norm = torch.nn.utils.get_total_norm([w.grad for w in self.parameters() if w.grad is not None])
        if math.isfinite(loss if norm is None else loss + norm):
            return
        what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {float(loss)}"
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        keeper = self.trainer.checkpoint_callback
        good = keeper.newest() if isinstance(keeper, Checkpoint) else None
        raise DivergedError(
            f"{what} at step {self.global_step + 1:,}, with learning rate {lr:.3g}; the weights were not updated",
            "optimizer.lr",
            f"The last good checkpoint is {good or 'none'}. Lower optimizer.lr, or see what is in the data.",
        )

    def about(self, datamodule: Any) -> dict[str, Any]:
        """What a checkpoint holds under KEY: plain data that makes this system, and tells other runs from its own."""
        from mingpt_lightning import __version__

        return {
            "format": FORMAT,
            "version": __version__,
            "gpt": self.gpt.config,
            "tokenizer": self.tokenizer and self.tokenizer.state(),
            "config": self.config,
            "tokens_seen": self.tokens_seen,
            "validated_step": self.validated_step,
            "seed": self.seed,
            "data": datamodule.fingerprint if isinstance(datamodule, SequenceDataModule) else None,
            "environment": environment(),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = self.about(getattr(self._trainer, "datamodule", None))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name in ("tokens_seen", "validated_step", "seed"):
            setattr(self, name, checkpoint[KEY].get(name, getattr(self, name)))

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path) -> Self:  # type: ignore[override]
        """The system of a run folder or a checkpoint file, on the CPU and in evaluation mode.

        Raises CheckpointError when the file is missing, damaged or not one of ours.
        """
        return cls.from_checkpoint(read_checkpoint(checkpoint_path))

    @classmethod
    def from_checkpoint(cls, checkpoint: dict[str, Any]) -> Self:
        """The system of a checkpoint's contents (see `read_checkpoint`).

        Raises CheckpointError when what it says of itself doesn't fit its weights, before memory is taken for it.
        """
        ours, weights = checkpoint[KEY], checkpoint["state_dict"]
        try:
            blocks = {name.split(".")[2] for name in weights if name.startswith("gpt.blocks.")}
            shape = tuple(weights["gpt.token_embedding.weight"].shape)
            sizes = ours["gpt"]
            if (shape, len(blocks)) != ((sizes["vocab_size"], sizes["n_embd"]), sizes["n_layer"]):
                raise RuntimeError
            tokenizer = Tokenizer.from_state(ours["tokenizer"]) if ours["tokenizer"] else None
            system = cls(GPT(**sizes), tokenizer=tokenizer, config=ours["config"])
            system.tokens_seen = ours["tokens_seen"]
            system.load_state_dict(weights)
        except CheckpointError:
            raise
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            what = "the weights do not fit the model in the checkpoint"
            raise CheckpointError(what, "checkpoint", "Take another file of the run.") from error
        return system.eval()
