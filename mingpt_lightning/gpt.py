"""GPT: tokens in, next-token logits out. Pure torch, and exactly GPT-2.

Notable: pre-LayerNorm, tanh GELU, learned positions, biases everywhere, output matrix tied to the token embedding,
attention through `scaled_dot_product_attention` (no mask is stored, whatever the block size). It knows nothing of
losses, optimizers, tokenizers or Lightning.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3.

Shapes: B batch, T time, V vocabulary, C channels (n_embd), H heads, D head size (C = H * D).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mingpt_lightning.errors import UserError, check_gpt_sizes, nearest, require_positive

if TYPE_CHECKING:
    from mingpt_lightning.cache import Cache
    from mingpt_lightning.tokenizer import Tokenizer

Activation = Literal["gelu_tanh", "gelu", "relu", "silu"]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}

Remember = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]
"""Takes the keys and values of new tokens, returns those of all tokens so far, and which of them each row may see."""


class CausalSelfAttention(nn.Module):
    """Every position looks at itself and at what came before it."""

    def __init__(self, n_embd: int, n_head: int, dropout: float = 0.0):
        super().__init__()
        self.n_head = n_head
        self.dropout = dropout
        self.qkv = nn.Linear(n_embd, 3 * n_embd)
        self.proj = nn.Linear(n_embd, n_embd)

    def forward(self, x: Tensor, remember: Remember | None = None) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # 3 x (B, H, T, D)
        mask = None
        if remember is not None:
            k, v, mask = remember(k, v)  # (B, H, tokens so far, D)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q.type_as(k), k, v, attn_mask=mask, dropout_p=dropout, is_causal=T > 1)
        return self.proj(y.type_as(x).transpose(1, 2).reshape(B, T, C))  # heads side by side again


class MLP(nn.Module):
    """The position-wise feed-forward layer: four times as wide inside."""

    def __init__(self, n_embd: int, n_inner: int | None = None, activation: Activation = "gelu_tanh"):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UserError(f"activation={activation} is not known", "activation", nearest(activation, ACTIVATIONS))
        self.fc = nn.Linear(n_embd, n_inner or 4 * n_embd)
        self.activation = ACTIVATIONS[activation]()
        self.proj = nn.Linear(n_inner or 4 * n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.activation(self.fc(x)))


class Block(nn.Module):
    """One Transformer layer: communicate, then compute, each on a residual branch."""

    def __init__(self, attn: CausalSelfAttention, mlp: MLP, norm_eps: float = 1e-5, dropout: float = 0.0):
        super().__init__()
        n_embd = attn.proj.out_features
        self.norm_1 = nn.LayerNorm(n_embd, eps=norm_eps)
        self.attn = attn
        self.norm_2 = nn.LayerNorm(n_embd, eps=norm_eps)
        self.mlp = mlp
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor, remember: Remember | None = None) -> Tensor:
        x = x + self.dropout(self.attn(self.norm_1(x), remember))
        x = x + self.dropout(self.mlp(self.norm_2(x)))
        return x


class GPT(nn.Module):
    """A GPT-2 of any size.

    vocab_size: how many different tokens there are. block_size: the longest sequence, in tokens.
    n_layer, n_head, n_embd: depth, heads per layer and width; n_embd is divisible by n_head.
    dropout: one rate for the three usual places, or a rate for each: after the embeddings, on the attention weights,
    and at the end of each residual branch.
    n_inner: width inside the MLP, 4 * n_embd by default. activation: inside the MLP. norm_eps: of the LayerNorms.

    Raises UserError (a ValueError) when a size is not positive, n_embd is not divisible by n_head, dropout is not in
    [0, 1), or the activation is not known.

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
        dropout: float | Sequence[float] = 0.0,
        n_inner: int | None = None,
        activation: Activation = "gelu_tanh",
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        check_gpt_sizes(n_layer, n_head, n_embd, dropout)
        require_positive(vocab_size=vocab_size, block_size=block_size, n_inner=n_inner or 4 * n_embd)
        self.config: dict[str, Any] = {
            "vocab_size": vocab_size,
            "block_size": block_size,
            "n_layer": n_layer,
            "n_head": n_head,
            "n_embd": n_embd,
            "dropout": list(dropout) if isinstance(dropout, Sequence) else dropout,
            "n_inner": n_inner,
            "activation": activation,
            "norm_eps": norm_eps,
        }
        embd, attn, residual = dropout if isinstance(dropout, Sequence) else (dropout,) * 3
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.position_embedding = nn.Embedding(block_size, n_embd)
        self.dropout = nn.Dropout(embd) if embd else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(CausalSelfAttention(n_embd, n_head, attn), MLP(n_embd, n_inner, activation), norm_eps, residual)
            for _ in range(n_layer)
        )
        self.norm = nn.LayerNorm(n_embd, eps=norm_eps)
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
    def block_size(self) -> int:
        """The longest sequence, in tokens."""
        return self.position_embedding.num_embeddings

    @property
    def n_parameters(self) -> int:
        """The number of parameters, the tied matrix counted once."""
        return sum(weight.numel() for weight in self.parameters())

    def forward(self, tokens: Tensor) -> Tensor:
        """Next-token logits for every position.

        tokens: (B, T) int64 ids in [0, vocab_size), T at most block_size. Returns (B, T, V), unnormalised.
        Raises UserError, naming both lengths, when T exceeds block_size.
        """
        return self.head(self.hidden(tokens))

    def hidden(self, tokens: Tensor, cache: "Cache | None" = None) -> Tensor:
        """What the head turns into logits: (B, T) -> (B, T, C). With a cache, `tokens` follow what it has read."""
        T = tokens.shape[1]
        if self.block_size < T:
            raise UserError(f"a sequence of {T} tokens is longer than block_size={self.block_size}", "GPT", "Crop it.")
        positions = torch.arange(T, device=tokens.device) if cache is None else cache.advance(T)
        x = self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))
        for i, block in enumerate(self.blocks):
            x = block(x, cache and partial(cache.extend, i))
        return self.norm(x)

    def generate(self, tokens: Tensor | Sequence[Tensor], max_new_tokens: int, **options: Any) -> Any:
        """Continue `tokens` by `max_new_tokens`; see `mingpt_lightning.generation.generate` for the options.

        tokens: (B, T) -> (B, T + new); a list of 1-D tensors of different lengths -> a list.
        """
        from mingpt_lightning.generation import generate

        return generate(self, tokens, max_new_tokens, **options)

    @staticmethod
    def from_pretrained(name: str | Path, revision: str | None = None, **changes: Any) -> "GPT":
        """A GPT with the weights of a Hugging Face hub id or local folder; see `mingpt_lightning.pretrained`."""
        from mingpt_lightning.pretrained import from_pretrained

        return from_pretrained(name, revision, **changes)

    def save_pretrained(self, folder: str | Path, tokenizer: "Tokenizer | None" = None) -> None:
        """Write a folder that transformers loads; see `mingpt_lightning.pretrained`."""
        from mingpt_lightning.pretrained import save_pretrained

        save_pretrained(self, folder, tokenizer)

    def crop_block_size(self, block_size: int) -> None:
        """Forget the positions from `block_size` on. Raises UserError when there are fewer."""
        require_positive(block_size=block_size)
        if block_size > self.block_size:
            what = f"block_size={block_size} is more than the {self.block_size} positions of the model"
            raise UserError(what, "block_size", f"Use {self.block_size} or less.")
        weight = self.position_embedding.weight.detach()[:block_size].clone()
        self.position_embedding = nn.Embedding.from_pretrained(weight, freeze=False)
        self.config["block_size"] = block_size

    def grow_vocabulary(self, vocab_size: int) -> None:
        """Add tokens up to `vocab_size`; each starts as the mean of those that are there.

        So a new token is as likely as an average one, and no old one much less likely than before. Raises UserError
        when there are more already. Source: Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language
        Models".
        """
        old = self.token_embedding.weight.detach()
        if vocab_size < len(old):
            what = f"vocab_size={vocab_size} is less than the {len(old)} tokens of the model"
            raise UserError(what, "vocab_size", f"Use {len(old)} or more.")
        new = old.mean(dim=0).expand(vocab_size - len(old), -1)
        self.token_embedding = nn.Embedding.from_pretrained(torch.cat([old, new]), freeze=False)
        self.head = nn.Linear(old.shape[1], vocab_size, bias=False, device="meta")
        self.head.weight = self.token_embedding.weight
        self.config["vocab_size"] = vocab_size
