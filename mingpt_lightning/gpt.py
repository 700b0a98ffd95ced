"""GPT: tokens in, next-token logits out. Pure torch, and exactly GPT-2.

Notable: pre-LayerNorm, tanh GELU, learned positions, biases everywhere, output matrix tied to the token embedding,
attention through `scaled_dot_product_attention` (no mask is stored, whatever the block size). It knows nothing of
losses, optimizers, tokenizers or Lightning.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3.

Shapes: B batch, T time, V vocabulary, C channels (n_embd), H heads, D head size (C = H * D).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mingpt_lightning.errors import UserError, check_gpt_sizes, require_positive


class CausalSelfAttention(nn.Module):
    """Every position looks at itself and at what came before it."""

    def __init__(self, n_embd: int, n_head: int, dropout: float = 0.0):
        super().__init__()
        self.n_head = n_head
        self.dropout = dropout
        self.qkv = nn.Linear(n_embd, 3 * n_embd)
        self.proj = nn.Linear(n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # 3 x (B, H, T, D)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))  # heads side by side again


class MLP(nn.Module):
    """The position-wise feed-forward layer: four times as wide inside."""

    def __init__(self, n_embd: int):
        super().__init__()
        self.fc = nn.Linear(n_embd, 4 * n_embd)
        self.proj = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.gelu(self.fc(x), approximate="tanh"))


class Block(nn.Module):
    """One Transformer layer: communicate, then compute, each on a residual branch."""

    def __init__(self, n_embd: int, n_head: int, dropout: float = 0.0):
        super().__init__()
        self.norm_1 = nn.LayerNorm(n_embd)
        self.attn = CausalSelfAttention(n_embd, n_head, dropout)
        self.norm_2 = nn.LayerNorm(n_embd)
        self.mlp = MLP(n_embd)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attn(self.norm_1(x)))
        x = x + self.dropout(self.mlp(self.norm_2(x)))
        return x


class GPT(nn.Module):
    """A GPT-2 of any size.

    vocab_size: how many different tokens there are. block_size: the longest sequence, in tokens.
    n_layer, n_head, n_embd: depth, heads per layer and width; n_embd is divisible by n_head.
    dropout: one rate for the three usual places: after the embeddings, on the attention weights, and at the end of
    each residual branch.

    Raises UserError (a ValueError) when a size is not positive, n_embd is not divisible by n_head, or dropout is not
    in [0, 1).

    >>> gpt = GPT(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768)  # GPT-2, 124 M parameters
    >>> gpt(torch.zeros(1, 5, dtype=torch.long)).shape
    torch.Size([1, 5, 50257])
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        *,
        n_layer: int,
        n_head: int,
        n_embd: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        check_gpt_sizes(n_layer, n_head, n_embd, dropout)
        require_positive(vocab_size=vocab_size, block_size=block_size)
        self.config: dict[str, Any] = {
            "vocab_size": vocab_size,
            "block_size": block_size,
            "n_layer": n_layer,
            "n_head": n_head,
            "n_embd": n_embd,
            "dropout": dropout,
        }
        self.block_size = block_size
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.position_embedding = nn.Embedding(block_size, n_embd)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.blocks = nn.ModuleList(Block(n_embd, n_head, dropout) for _ in range(n_layer))
        self.norm = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size, bias=False)
        self.head.weight = self.token_embedding.weight  # one matrix reads tokens in and writes them out
        self.init_weights()

    def init_weights(self) -> None:
        """Draw all weights anew: N(0, 0.02), zero biases, residual projections scaled by 1/sqrt(2 * n_layer).

        Source: Radford et al. 2019, section 2.3 (each layer adds to the residual stream twice).
        """
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif weight.dim() >= 2:
                residual = name.endswith("proj.weight")
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * len(self.blocks)) if residual else 0.02)
            else:
                nn.init.ones_(weight)  # the LayerNorm gains

    @property
    def n_parameters(self) -> int:
        """The number of parameters, the tied matrix counted once."""
        return sum(weight.numel() for weight in self.parameters())

    def forward(self, tokens: Tensor) -> Tensor:
        """Next-token logits for every position.

        tokens: (B, T) int64 ids in [0, vocab_size), T at most block_size. Returns (B, T, V), unnormalised.
        Raises UserError, naming both lengths, when T exceeds block_size.
        """
        T = tokens.shape[1]
        if self.block_size < T:
            raise UserError(f"a sequence of {T} tokens is longer than block_size={self.block_size}", "GPT", "Crop it.")
        positions = torch.arange(T, device=tokens.device)
        x = self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def generate(self, tokens: Tensor, max_new_tokens: int, **options: Any) -> Tensor:
        """Continue `tokens` (B, T) by `max_new_tokens`; see `mingpt_lightning.generation.generate` for the options."""
        from mingpt_lightning.generation import generate

        return generate(self, tokens, max_new_tokens, **options)
