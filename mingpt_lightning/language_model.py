"""LanguageModel: the LightningModule around a GPT.

It computes the loss and the metrics and updates the weights; it doesn't know what the tokens mean. The loss is summed
over the tokens that count and divided by their number, whatever is masked and however batches are accumulated.
"""

import inspect
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytorch_lightning as pl
import torch
from torch import Tensor

from mingpt_lightning.adapter import adapter_of, has_adapter_dropout, is_adapters
from mingpt_lightning.averages import keep_buffers
from mingpt_lightning.checkpoint import KEY, read_checkpoint
from mingpt_lightning.completion import complete
from mingpt_lightning.datamodule import IGNORE, Batch, SequenceDataModule
from mingpt_lightning.device import peak_flops
from mingpt_lightning.errors import DivergedError, UserError
from mingpt_lightning.gpt import GPT
from mingpt_lightning.loop_state import log_step, total_steps, validation_is_due
from mingpt_lightning.loss import cross_entropy_sum
from mingpt_lightning.metrics import metric_sums, metrics_of
from mingpt_lightning.optim import OptimizerFactory, Schedule, cosine, lr_for_width, parameter_groups
from mingpt_lightning.recompute import keep_activations, recompute_blocks
from mingpt_lightning.restore import is_plain, metadata, own_arguments, restore
from mingpt_lightning.shards import whole
from mingpt_lightning.shuffle import mix
from mingpt_lightning.structure import check_methods, class_name
from mingpt_lightning.tokenizer import Tokenizer


class LanguageModel(pl.LightningModule):
    """Trains a GPT to predict the next token.

    gpt: the network. optimizer: makes an optimizer from parameter groups; None is AdamW as in nanoGPT. scheduler: maps
    (step, total steps) to a factor of the learning rate; None is warm-up and cosine. tokenizer: goes into the
    checkpoint; one with an `answer_length` adds the exact match to the metrics, one with a `unit` the bits per unit
    (character or byte). config: plain data for the checkpoint, never read here. recompute: keep only
    the input of each block for the backward pass, and compute the block again there; see `recompute_blocks`.

    Logs train/loss and train/grad_norm (before clipping), and for val and test loss, perplexity, exact_match and
    bits_per_UNIT; losses are in nats per token. A batch is (inputs, targets), both (B, T) int64; targets of -100 take
    no loss.
    """

    COUNTERS = ("tokens_seen", "validated_step", "row_step", "seed")
    """What a resumed training needs to know of the one before."""

    byte_lengths: Tensor | None  # of each token, (V,) int64; None where a token is one unit

    def __init__(
        self,
        gpt: GPT,
        optimizer: OptimizerFactory | None = None,
        scheduler: Schedule | None = None,
        tokenizer: Tokenizer | None = None,
        config: dict[str, Any] | None = None,
        recompute: bool = False,
    ):
        super().__init__()
        check_methods(gpt)
        lr = lr_for_width(3.5e-4, gpt.config["n_embd"])
        self.gpt = gpt.train()  # a pretrained one is in evaluation mode, and Lightning would leave it there
        self.optimizer = optimizer or partial(torch.optim.AdamW, lr=lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        self.scheduler = scheduler or cosine
        self.tokenizer = tokenizer
        self.config = config or {}
        self.recompute = recompute
        lengths = None if tokenizer is None else tokenizer.byte_lengths
        self.register_buffer("byte_lengths", None if lengths is None else torch.from_numpy(lengths), persistent=False)
        rates = gpt.config["dropout"]
        self.has_dropout = any(rates if isinstance(rates, list) else [rates]) or has_adapter_dropout(gpt)
        self.seed = torch.initial_seed()  # of dropout
        self.tokens_seen = 0  # in training, in all processes, masked ones included
        self.validated_step = 0  # optimizer steps before the newest validation
        self.seconds_before = 0.0  # that earlier processes have spent on this run
        self.started = time.perf_counter()  # when this process began with it
        self.timed: tuple[int, float] | None = None  # tokens_seen and the clock at the last row, or validation, since
        self.peak_flops: float | None = None  # of all processes together, if it is known
        self.train_loss: Tensor | None = None  # mean of the current step so far, detached; reading it may synchronise
        self.grad_norm: Tensor | None = None  # of the newest step, before clipping; None where it isn't computed
        self.accumulated_loss: Tensor | int = 0  # the sum over the batches since the last optimizer step
        self.accumulated_tokens: Tensor | int = 0  # the number of tokens that it sums over
        self.sums: dict[
            int, list[Tensor]
        ] = {}  # rows of `evaluate`, by loader, for each batch of the running evaluation
        self.modes: dict[str, bool] | None = None  # of each module in training, where they may be others now
        self.row_step = -1  # the newest step that was logged, counted from 0
        self.lightnings_step = 0  # the step under which Lightning would log

    def forward(self, tokens: Tensor) -> Tensor:
        """Next-token logits: (B, T) -> (B, T, V)."""
        return self.gpt(tokens)

    def loss_sum(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The summed loss of a batch in nats, and the number of tokens that it sums over."""
        return cross_entropy_sum(self.gpt, self.gpt.hidden(inputs), targets), (targets != IGNORE).sum()

    def on_fit_start(self) -> None:
        """Put each module into the mode that it trains in: it may be a loaded one, or left by an interrupted fit."""
        if self.modes is not None:
            for name, module in self.named_modules():
                module.training = self.modes.get(name, module.training)
        self.modes = {name: module.training for name, module in self.named_modules()}
        keep_buffers(self.trainer)
        if self.recompute:
            recompute_blocks(self.gpt)

    def on_fit_end(self) -> None:
        self.modes = None
        keep_activations(self.gpt)

    def on_train_start(self) -> None:
        self.accumulated_loss = self.accumulated_tokens = 0  # an earlier training may have been interrupted
        trainer, n_embd = self.trainer, self.gpt.config["n_embd"]
        devices = trainer.num_nodes if self.device.type == "cpu" else trainer.world_size  # processes share a CPU
        peak = peak_flops(self.device, str(trainer.precision), n_embd)
        self.peak_flops = peak and peak * devices
        self.timed = self.tokens_seen, time.perf_counter()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.has_dropout:  # its random numbers are a function of the seed and of the tokens trained so far
            torch.manual_seed(int(mix(self.tokens_seen, key=mix(self.global_rank, key=self.seed % 2**64))))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = batch
        total, tokens = self.loss_sum(inputs, targets)
        if self.trainer.world_size > 1:  # gradients are averaged over processes with different numbers of tokens
            tokens = self.trainer.strategy.reduce(tokens.float(), reduce_op="mean")
        self.tokens_seen += inputs.numel() * self.trainer.world_size
        self.accumulated_loss = self.accumulated_loss + total.detach()
        self.accumulated_tokens = self.accumulated_tokens + tokens
        self.train_loss = self.accumulated_loss / torch.as_tensor(self.accumulated_tokens).clamp(min=1)
        if self.logs_this_step():
            self.log("train/loss", self.train_loss, logger=False)  # for callbacks
        batches = self.trainer.accumulate_grad_batches
        if batches == 1:
            return total / tokens.clamp(min=1)  # a batch with nothing to learn has loss 0
        return total * batches  # Lightning divides by it; on_before_optimizer_step divides by the tokens

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.trainer.accumulate_grad_batches > 1:
            tokens = torch.as_tensor(self.accumulated_tokens).clamp(min=1)
            for weight in self.parameters():
                if weight.grad is not None:
                    weight.grad /= tokens
        self.accumulated_loss = self.accumulated_tokens = 0

    def optimizer_step(self, *arguments: Any, **more: Any) -> None:
        super().optimizer_step(*arguments, **more)
        self.zero_grad()  # Lightning would keep the gradients through the next forward pass
        if self.logs_this_step() and self.train_loss is not None:
            # Here, because Lightning would log it only after a checkpoint may have been written.
            loss = self.trainer.strategy.reduce(self.train_loss)  # the mean over all processes
            norm = {} if self.grad_norm is None else {"train/grad_norm": self.grad_norm.item()}
            self.log_row({"train/loss": loss.item(), **norm, **self.throughput()}, self.global_step)

    def logs_this_step(self) -> bool:
        """Whether the loss of the running optimizer step is to be logged: every n-th, and before a validation."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # 0 in a barebones Trainer
        return bool(every) and ((self.global_step + 1) % every == 0 or validation_is_due(self.trainer))

    def log_row(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics with the tokens and seconds so far. step: counted from 0, as Lightning has it."""
        self.row_step = step
        row = {"tokens": self.tokens_seen, "seconds": round(self.seconds, 2), **metrics}
        for logger in self.trainer.loggers:
            logger.log_metrics(row, step)

    def throughput(self) -> dict[str, float]:
        """Tokens per second of all processes since the last row, without validation, and the MFU where it is known.

        MFU, model FLOPs utilization: the share of the devices' peak that the model's own products take, 6 N + 12 L C T
        FLOP a token (Chowdhery et al. 2022, "PaLM", appendix B).
        """
        if self.timed is None:
            return {}
        (tokens, since), now = self.timed, time.perf_counter()
        self.timed = self.tokens_seen, now
        rate = (self.tokens_seen - tokens) / max(now - since, 1e-9)
        gpt = self.gpt.config
        flops = 6 * self.gpt.n_parameters + 12 * gpt["n_layer"] * gpt["n_embd"] * self.gpt.block_size
        return {"tokens_per_second": round(rate, 1)} | (
            {"mfu": flops * rate / self.peak_flops} if self.peak_flops else {}
        )

    @property
    def seconds(self) -> float:
        """How long this run has taken so far, in all processes that resumed it."""
        return self.seconds_before + time.perf_counter() - self.started

    def evaluate(self, batch: Batch) -> Tensor:
        """Sums over a batch from which `metrics_of` makes the metrics; see `metrics.metric_sums`."""
        vocab_size = None if self.tokenizer is None else self.tokenizer.vocab_size
        return metric_sums(self.gpt, batch, self.byte_lengths, vocab_size)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.sums.setdefault(dataloader_idx, []).append(self.evaluate(batch))

    test_step = validation_step

    def on_validation_epoch_start(self) -> None:
        self.sums = {}  # an earlier evaluation may have been interrupted

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        self.validated_step = self.global_step
        step = self.global_step - 1
        if self.trainer.state.fn == "fit" and step >= 0 and step != self.row_step:
            self.log_row({}, step)
        self.log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self.log_evaluation("test")

    def on_validation_end(self) -> None:
        if self.timed is not None:
            self.timed = self.tokens_seen, time.perf_counter()
        log_step(self.trainer, self.lightnings_step)

    on_test_end = on_validation_end

    def log_evaluation(self, stage: str) -> None:
        """Log the metrics of all batches of an evaluation; and those of each loader under Lightning's names for it."""
        by_loader = {loader: torch.stack(rows).cpu().double().sum(dim=0) for loader, rows in self.sums.items()}
        if self.device.type == "cuda":  # NCCL sends what is on a GPU only
            by_loader = {loader: its.to(self.device) for loader, its in by_loader.items()}
        sums = torch.stack([*by_loader.values()]).sum(dim=0)
        values = metrics_of(self.trainer.strategy.reduce(sums, reduce_op="sum"), self.tokenizer)
        if not math.isfinite(values["loss"]) and self.trainer.state.fn == "fit":
            what = f"{stage}/loss is {values['loss']} after step {self.global_step:,}"
            raise DivergedError(what, "lr", "Lower lr, or check the data.")
        self.lightnings_step = log_step(self.trainer, max(0, self.global_step - 1))  # not the next one, amid a step
        for loader, its in by_loader.items() if len(by_loader) > 1 else ():
            own = metrics_of(self.trainer.strategy.reduce(its, reduce_op="sum"), self.tokenizer)
            values |= {f"{name}/dataloader_idx_{loader}": value for name, value in own.items()}
        distributed = self.trainer.world_size > 1  # all have the same values, and Lightning asks for it
        values = {f"{stage}/{name}": value for name, value in values.items()}
        self.log_dict(values, sync_dist=distributed, add_dataloader_idx=False)

    def metric_names(self) -> list[str]:
        """Every metric that training logs and a callback can monitor."""
        return ["train/loss", *(f"val/{name}" for name in metrics_of(torch.zeros(5), self.tokenizer))]

    def compile_blocks(self) -> None:
        """Compile each block by itself for training: they share the code, which is compiled once.

        In place, so that the names in checkpoints stay. Generation, whose shapes grow, is not compiled.
        """
        for block in self.gpt.blocks:
            block.compile(dynamic=False)

    @torch.compiler.set_stance("force_eager")
    def solve(self, batch: Batch) -> list[tuple[str, bool]]:
        """Each problem of a batch with its greedy answer, as text, and whether that is right.

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
        optimizer, total = self.make_optimizer(), total_steps(self.trainer)
        if self.trainer.precision == "16-mixed" and self.trainer.gradient_clip_val:
            # A fused optimizer would undo the loss scaling itself, after the gradients are clipped.
            optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
            for group in optimizer.param_groups:
                group.update({"fused": False} if "fused" in group else {})
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.scheduler(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        by_value, scaled = gradient_clip_algorithm == "value", self.trainer.precision == "16-mixed"
        self.grad_norm = None
        if gradient_clip_val and not by_value and not scaled:
            # Lightning 2.6 refuses to clip for a fused optimizer under bf16-mixed, though that has no loss scaler.
            self.grad_norm = whole(torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val))
        elif not scaled:  # a loss scaler expects gradients to overflow, and skips the step
            gradients = [weight.grad for weight in self.parameters() if weight.grad is not None]
            self.grad_norm = whole(torch.nn.utils.get_total_norm(gradients))
        self.stop_if_diverged()
        if gradient_clip_val and by_value and self.trainer.precision == "bf16-mixed":
            torch.nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        elif by_value or scaled:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def stop_if_diverged(self) -> None:
        """Raise DivergedError before an update by a loss or a gradient that isn't finite."""
        assert self.train_loss is not None
        norm = self.grad_norm
        if math.isfinite(self.train_loss if norm is None else self.train_loss + norm):  # one read from the device
            return
        loss = float(self.train_loss)
        what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        what += f" at step {self.global_step + 1:,}, with learning rate {lr:.3g}; the weights were not updated"
        raise DivergedError(what, "lr", "Lower lr, or check the data.")

    def state_dict(self, *arguments: Any, **more: Any) -> Any:
        """The weights; of a GPT with an adapter, the adapter's instead of the GPT's."""
        state = super().state_dict(*arguments, **more)
        if adapter_of(self.gpt) is not None:
            for name in [name for name in state if "gpt." in name and not is_adapters(name)]:
                del state[name]
        return state

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load what `state_dict` gives. Raises RuntimeError for other names."""
        if adapter_of(self.gpt) is None or not strict:
            return super().load_state_dict(state_dict, strict, assign)
        missing, unknown = found = super().load_state_dict(state_dict, False, assign)
        wrong = [*unknown, *(name for name in missing if not name.startswith("gpt.") or is_adapters(name))]
        if wrong:
            raise RuntimeError(f"these weights are missing or unknown: {', '.join(wrong[:5])}")
        return found

    def metadata(self, datamodule: Any = None) -> dict[str, Any]:
        """What a checkpoint of this system holds beside Lightning's entries; see `restore.metadata`."""
        counters = {"seconds": self.seconds, **{name: getattr(self, name) for name in self.COUNTERS}}
        ours = metadata(self.gpt, self.tokenizer, self.config, counters)
        if isinstance(datamodule, SequenceDataModule):
            ours |= {"data": datamodule.fingerprint, "epoch_size": datamodule.epoch_size}
            if datamodule.trainer is not None:
                trainer = datamodule.trainer
                ours["environment"] |= {"precision": trainer.precision, "processes": trainer.world_size}
        return {**ours, "system": class_name(type(self))}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = self.metadata(getattr(self._trainer, "datamodule", None))
        if saved := checkpoint.get("hyper_parameters"):  # of `save_hyperparameters`, which keeps objects too
            checkpoint["hyper_parameters"] = {name: value for name, value in saved.items() if is_plain(value)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        ours = checkpoint[KEY]
        for name in self.COUNTERS:
            setattr(self, name, ours.get(name, getattr(self, name)))
        self.seconds_before = ours.get("seconds", 0.0)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, gpt: Callable[..., GPT] = GPT, **hyperparameters: Any
    ) -> Self:
        """The system of a run folder or a checkpoint file, on the CPU and in evaluation mode.

        gpt: the class of the model, if it is one of your own. hyperparameters: constructor arguments that a class
        derived from this one adds; left out, they are those of the run's config or of `save_hyperparameters`.

        Raises CheckpointError when the file is missing, damaged or not one of this library's, or when the classes are
        not those that were trained.
        """
        content = read_checkpoint(checkpoint_path)
        known = content[KEY]["config"].get("system"), content.get("hyper_parameters")
        inherited = inspect.signature(LanguageModel).parameters
        own = own_arguments(cls, inherited, *known, **hyperparameters)
        return restore(content, gpt, partial(cls, **own))
