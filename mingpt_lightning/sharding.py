"""A training whose weights, gradients and optimizer state are divided over all processes (FSDP2), by Lightning.

Notable: the model is built whole in the memory of the CPU, so its first weights are those of one process, and goes to
the devices block by block: none ever holds more than its part and one block. A checkpoint is the one file that a
single process writes, gathered by the first process; so a run goes on with another number of processes, or without
division. The models themselves know nothing of this.

Source: Rajbhandari et al. 2019, "ZeRO" (stage 3); Zhao et al. 2023, "PyTorch FSDP"; torch's `fully_shard`.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.collectives.torch_collective import default_pg_timeout
from pytorch_lightning.callbacks import StochasticWeightAveraging, WeightAveraging
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import ModelParallelStrategy, ParallelStrategy
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from mingpt_lightning.checkpoint import read_checkpoint
from mingpt_lightning.errors import UserError
from mingpt_lightning.gpt import GPT
from mingpt_lightning.shards import divided, gathered

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-true")
"""What Lightning supports where weights are divided."""


def shard(gpt: GPT, mesh: DeviceMesh) -> None:
    """Divide a GPT over the processes of a mesh, in place: each block, then what remains. Twice is once.

    A block's weights are gathered when it computes, forward and backward, and freed after it.
    """
    if isinstance(gpt, FSDPModule):
        return
    for block in gpt.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(gpt, mesh=mesh)
    for method in ("hidden", "logits"):  # training and generation call these instead of `forward`
        register_fsdp_forward_method(gpt, method)


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2 with every device of every node, and with this library's checkpoints.

    process_group_backend: gloo or nccl; None: by the device. timeout: of each exchange between processes.

    Raises UserError for callbacks that average weights, and for a LightningModule with weights of its own to train.
    """

    def __init__(self, process_group_backend: str | None = None, timeout: timedelta | None = default_pg_timeout):
        super().__init__(1, 1, save_distributed_checkpoint=False, process_group_backend=process_group_backend)
        self._timeout = timeout

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
        system: Any = self.lightning_module
        check_divisible(system)
        shard(system.gpt, self.device_mesh["data_parallel"])

    def setup(self, trainer: pl.Trainer) -> None:
        ParallelStrategy.setup(self, trainer)  # ModelParallelStrategy's asks for a `configure_model`, of no use here

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return False  # the weights are divided before, and so callbacks know what was before, as with any strategy

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole weights in the first process, and names without them in all others."""
        assert self.lightning_module is not None
        state: dict[str, Any] = gathered(self.lightning_module.state_dict(keep_vars=True), self.is_global_zero)
        return state

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The whole state of an optimizer in the first process, in the form that it has in one process."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer._optimizer
        state: dict[str, Any] = gathered(optimizer.state_dict(), self.is_global_zero)
        return state

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The content of a checkpoint, whole. Each process maps the file, and later reads its own parts of it."""
        return read_checkpoint(checkpoint_path, mmap=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict(keep_vars=True)  # which FSDP divides again, if it had gathered them
        state = {n: divided(v, own[n]) if n in own else v for n, v in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(divided_state(state, optimizer))


def divided_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """This process's part of the state of an optimizer: what is of a weight's shape is divided as the weight is."""
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def part(value: Any, weight: torch.Tensor) -> Any:
        return divided(value, weight) if isinstance(value, torch.Tensor) else value

    own = {
        number: {name: part(value, weight) for name, value in state["state"][number].items()}
        for number, weight in zip(numbers, weights, strict=True)
        if number in state["state"]
    }
    return {**state, "state": own}


def check_callbacks(callbacks: list[pl.Callback]) -> None:
    """Raise UserError for a callback that averages weights: it takes whole ones."""
    if any(isinstance(callback, WeightAveraging | StochasticWeightAveraging) for callback in callbacks):
        fix = "Leave the callback out, or use trainer=ddp, where each process has all weights."
        raise UserError("averages of weights that are divided over processes are not supported", "callbacks", fix)


def check_divisible(system: Any) -> None:
    """Raise UserError for a training that can't be divided."""
    check_callbacks(system.trainer.callbacks)
    own = [name for name, w in system.named_parameters() if w.requires_grad and not name.startswith("gpt.")]
    if own:
        what = f"{type(system).__name__} trains {own[0]}, which is not a weight of the GPT"
        raise UserError(what, "strategy", "Put it into the model, or use trainer=ddp.")
