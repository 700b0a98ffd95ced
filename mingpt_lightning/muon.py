"""Muon: orthogonalised updates for hidden matrices, AdamW for everything else.

One optimizer object, so that Lightning steps, saves and resumes it like any other. Notable: matrices of equal shape
are orthogonalised as one batch, because those of a small GPT are too small to use a processor well one by one.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from mingpt_lightning.device import fast_dtype
from mingpt_lightning.errors import UserError
from mingpt_lightning.shards import divided, whole

COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of the polynomial that takes singular values towards 1; from Jordan et al."""


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Each of (..., rows, columns) matrices with all its singular values near 1 (0.7 to 1.2), in the same directions.

    By Newton-Schulz iteration, which takes nothing but products of matrices.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for the parameter group with the name "hidden", AdamW (fused) for all others.

    groups: see `optim.parameter_groups`. lr: the spectral size of a step of a hidden matrix; matrices with more rows
    than columns take sqrt(rows / columns) times as much. adamw_lr, betas, eps: AdamW's, of the rest. momentum:
    Nesterov's, of hidden matrices. weight_decay: of both, times the learning rate. steps: of Newton-Schulz.

    Where weights are divided over processes (FSDP), the directions of hidden matrices are gathered, each process
    orthogonalises all of them, and keeps its part: the numbers are those of one process, and so is the time. It takes
    one more exchange of the hidden matrices per step, and the memory of those of one shape.

    Raises UserError when a learning rate is not positive or a parameter in "hidden" is not a matrix.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float = 0.02,
        *,
        adamw_lr: float = 3e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        steps: int = 5,
    ):
        groups = [{"lr": lr if group.get("name") == "hidden" else adamw_lr, **group} for group in groups]
        if not all(group["lr"] > 0 for group in groups):
            raise UserError(f"lr={lr} and adamw_lr={adamw_lr} must be above 0", "optimizer", "Use 0.02 and 0.003.")
        if any(weight.dim() != 2 for group in groups if group.get("name") == "hidden" for weight in group["params"]):
            raise UserError('the group "hidden" takes matrices only', "optimizer", "Use optim.parameter_groups.")
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(groups, defaults | {"weight_decay": weight_decay, "steps": steps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights and group.get("name") == "hidden":
                for shape in dict.fromkeys(weight.shape for weight in weights):
                    self.muon_step([weight for weight in weights if weight.shape == shape], group)
            elif weights:
                self.adamw_step(weights, group)
        return loss

    def muon_step(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """Update matrices of one shape."""
        grads = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        momenta = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        rows, columns = weights[0].shape
        nesterov = [grad.clone() for grad in grads]
        torch._foreach_lerp_(nesterov, momenta, group["momentum"])  # in place: DTensor has no other before torch 2.13
        directions = torch.stack([*map(whole, nesterov)])
        dtype = fast_dtype(directions.device, min(rows, columns))
        updates = orthogonalize(directions.to(dtype), group["steps"]).to(directions.dtype)
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        parts = [divided(update, weight) for update, weight in zip(updates, weights, strict=True)]
        torch._foreach_add_(weights, parts, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)

    def adamw_step(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """Update anything else."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {
                    "step": torch.zeros((), device=weight.device),
                    "exp_avg": torch.zeros_like(weight),
                    "exp_avg_sq": torch.zeros_like(weight),
                }
        states = [self.state[weight] for weight in weights]
        adamw(
            weights,
            [weight.grad for weight in weights if weight.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
