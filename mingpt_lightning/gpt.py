"""GPT: tokens in, next-token logits out. Pure torch, and exactly GPT-2 unless told otherwise.

Notable: pre-LayerNorm, tanh GELU, learned positions, biases everywhere, output matrix tied to the token embedding,
attention through `scaled_dot_product_attention` (no stored mask). What newer models do instead is a named choice in the
constructor, which picks a layer; no `forward` branches on it. This module knows nothing of losses, optimizers,
tokenizers or Lightning.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3; for the newer choices,
Jordan et al. 2024, "modded-nanogpt".

Shapes: B batch, T time, V vocabulary, C channels (n_embd), H heads, D head size (C = H * D).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mingpt_lightning.cache import KVCache
from mingpt_lightning.errors import UserError, check_gpt_sizes, check_output, require_number, require_positive
from mingpt_lightning.layers import (
    ACTIVATIONS,
    NORMS,
    POSITIONS,
    QK_NORMS,
    Activation,
    GatedMLP,
    Identity,
    LearnedPositions,
    Norm,
    Position,
    Softcap,
    choose,
)

if TYPE_CHECKING:
    from mingpt_lightning.tokenizer import Tokenizer

Extend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]
"""A layer's `KVCache.extend`: the keys and values of new tokens -> those of all tokens so far, and a mask."""


class CausalSelfAttention(nn.Module):
    """Multi-head attention of every position to itself and the positions before it.

    With fewer heads of keys and values (G) than of queries (H), each of them serves H / G heads of queries that are
    beside each other. Source: Ainslie et al. 2023, "GQA".
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        dropout: float = 0.0,
        *,
        n_kv_head: int | None = None,
        head_dim: int | None = None,
        bias: bool | Literal["qkv"] = True,
        qk_norm: nn.Module | None = None,
        rotate: nn.Module | None = None,
    ):
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = n_head, n_kv_head or n_head, head_dim or n_embd // n_head
        self.dropout = dropout
        self.qkv = nn.Linear(n_embd, (n_head + 2 * self.n_kv_head) * self.head_dim, bool(bias))
        self.qk_norm = qk_norm or Identity()
        self.rotate = rotate or Identity()
        self.proj = nn.Linear(n_head * self.head_dim, n_embd, bias is True)

    def forward(self, x: Tensor, positions: Tensor, extend: Extend | None = None) -> Tensor:
        B, T, _ = x.shape
        H, G, D = self.n_head, self.n_kv_head, self.head_dim
        heads = self.qkv(x).view(B, T, H + 2 * G, D).transpose(1, 2)  # (B, heads, T, D)
        q, k = self.rotate(self.qk_norm(heads[:, : H + G]), positions).split([H, G], dim=1)
        v, mask = heads[:, H + G :], None
        if extend is not None:
            k, v, mask = extend(k, v)  # (B, G, tokens so far, D)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q.type_as(k), k, v, mask, dropout, is_causal=T > 1, enable_gqa=G < H)
        return self.proj(y.type_as(x).transpose(1, 2).reshape(B, T, H * D))  # heads side by side again


class MLP(nn.Module):
    """The position-wise feed-forward layer, four times as wide inside by default."""

    def __init__(
        self, n_embd: int, n_inner: int | None = None, activation: Activation = "gelu_tanh", *, bias: bool = True
    ):
        super().__init__()
        self.fc = nn.Linear(n_embd, n_inner or 4 * n_embd, bias)
        self.activation = choose("activation", activation, ACTIVATIONS)()
        self.proj = nn.Linear(n_inner or 4 * n_embd, n_embd, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.activation(self.fc(x)))


class Block(nn.Module):
    """One Transformer layer: attention, then an MLP, each normalised first and on a residual branch."""

    def __init__(
        self, attn: CausalSelfAttention, mlp: nn.Module, make_norm: Callable[[], nn.Module], dropout: float = 0.0
    ):
        super().__init__()
        self.norm_1 = make_norm()
        self.attn = attn
        self.norm_2 = make_norm()
        self.mlp = mlp
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor, positions: Tensor, extend: Extend | None = None) -> Tensor:
        x = x + self.dropout(self.attn(self.norm_1(x), positions, extend))
        x = x + self.dropout(self.mlp(self.norm_2(x)))
        return x


class PostNormBlock(Block):
    """A layer of GPT-1: attention, then an MLP, each added to its input and the sum normalised."""

    def forward(self, x: Tensor, positions: Tensor, extend: Extend | None = None) -> Tensor:
        x = self.norm_1(x + self.dropout(self.attn(x, positions, extend)))
        x = self.norm_2(x + self.dropout(self.mlp(x)))
        return x


MLPS: dict[str, Callable[..., nn.Module]] = {"plain": MLP, "gated": GatedMLP}
BLOCKS = {"pre": Block, "post": PostNormBlock}


class GPT(nn.Module):
    """A GPT-2 of any size, or an older or newer one by named choices.

    vocab_size: how many different tokens there are. block_size: the longest sequence, in tokens.
    n_layer, n_head, n_embd: depth, heads per layer and width; n_embd is divisible by n_head, unless head_dim, the
    channels of a head, is given. n_kv_head: heads of keys and values, n_head by default, which it divides.
    dropout: one rate for the three usual places, or a rate for each: after the embeddings, on the attention weights,
    and at the end of each residual branch.
    mlp: plain or gated. n_inner: width inside the MLP, 4 * n_embd by default. activation: inside the MLP.
    norm, norm_eps: before each layer and at the end; norm_order="post": after each residual sum instead, as in GPT-1.
    bias: of all linear layers and LayerNorms; "qkv": of queries, keys and values only. position: a learned embedding,
    or rotary, with rope_theta and rope_scaling as for `RotaryPositions`. qk_norm: RMSNorm of queries and keys, with one
    gain, or "separate" ones. init: "zero_residual" starts every residual branch at zero. tie_embeddings: the output
    matrix is the token embedding. n_output: how many tokens can be predicted, the first ones; all by default, and less
    only with a matrix of its own. logit_softcap: bounds the logits to plus and minus it.

    Raises UserError (a ValueError) when a size is not positive or does not divide what it must, dropout is not in
    [0, 1), or a name is not known.

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
        n_kv_head: int | None = None,
        head_dim: int | None = None,
        dropout: float | Sequence[float] = 0.0,
        mlp: Literal["plain", "gated"] = "plain",
        n_inner: int | None = None,
        activation: Activation = "gelu_tanh",
        norm: Norm = "layernorm",
        norm_order: Literal["pre", "post"] = "pre",
        norm_eps: float = 1e-5,
        bias: bool | Literal["qkv"] = True,
        position: Position = "learned",
        rope_theta: float = 10000.0,
        rope_scaling: Mapping[str, Any] | None = None,
        qk_norm: bool | Literal["separate"] = False,
        init: Literal["gpt2", "zero_residual"] = "gpt2",
        tie_embeddings: bool = True,
        n_output: int | None = None,
        logit_softcap: float | None = None,
    ):
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        check_gpt_sizes(n_layer, n_head, n_embd, dropout, n_kv_head, head_dim)
        require_positive(vocab_size=vocab_size, block_size=block_size, n_inner=n_inner or 4 * n_embd)
        check_output(vocab_size, n_output, tie_embeddings)
        cap = 1.0 if logit_softcap is None else logit_softcap
        require_number(norm_eps=norm_eps, rope_theta=rope_theta, logit_softcap=cap)
        self.config: dict[str, Any] = arguments  # the constructor arguments, as plain data
        self.config["dropout"] = list(dropout) if isinstance(dropout, Sequence) else dropout
        self.config["rope_scaling"] = dict(rope_scaling) if isinstance(rope_scaling, Mapping) else None
        embd, attn, residual = dropout if isinstance(dropout, Sequence) else (dropout,) * 3
        add_position, make_rotation = choose("position", position, POSITIONS)
        D, G = head_dim or n_embd // n_head, n_kv_head or n_head
        rotate = make_rotation(D, block_size, rope_theta, rope_scaling)  # one for all layers: it has no weights
        all_biases = choose("bias", bias, {True: True, False: False, "qkv": False})
        make_norm = partial(choose("norm", norm, NORMS), n_embd, eps=norm_eps, bias=all_biases)
        make_mlp = partial(choose("mlp", mlp, MLPS), n_embd, n_inner, activation, bias=all_biases)
        block = choose("norm_order", norm_order, BLOCKS)
        make_qk_norm = choose("qk_norm", qk_norm, QK_NORMS)

        def make_block() -> Block:
            layers = {"rotate": rotate, "qk_norm": make_qk_norm(n_head, G, D, norm_eps)}
            attention = CausalSelfAttention(n_embd, n_head, attn, n_kv_head=G, head_dim=D, bias=bias, **layers)
            return block(attention, make_mlp(), make_norm, residual)

        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.position_embedding = add_position(block_size, n_embd)
        self.dropout = nn.Dropout(embd) if embd else nn.Identity()
        self.blocks = nn.ModuleList(make_block() for _ in range(n_layer))
        self.norm = make_norm() if norm_order == "pre" else Identity()
        self.head = nn.Linear(n_embd, n_output or vocab_size, bias=False)
        if tie_embeddings:
            self.head.weight = self.token_embedding.weight
        self.softcap = Identity() if logit_softcap is None else Softcap(logit_softcap)
        choose("init", init, {"gpt2": self.init_weights, "zero_residual": self.init_zero_residual})()

    def init_weights(self) -> None:
        """Initialise all weights: N(0, 0.02), zero biases, residual projections scaled by 1/sqrt(2 * n_layer).

        Source: Radford et al. 2019, section 2.3 (each layer adds to the residual stream twice).
        """
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif weight.dim() >= 2:
                residual = name.endswith("proj.weight")
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * len(self.blocks)) if residual else 0.02)
            else:
                nn.init.ones_(weight)  # the gains of norms

    def init_zero_residual(self) -> None:
        """GPT-2's initialisation, with zeros at the end of every residual branch and in an untied head.

        Source: Jordan et al. 2024, "modded-nanogpt".
        """
        self.init_weights()
        for name, weight in self.blocks.named_parameters():
            if name.endswith("proj.weight"):
                nn.init.zeros_(weight)
        if not self.config["tie_embeddings"]:
            nn.init.zeros_(self.head.weight)

    @property
    def block_size(self) -> int:
        """The longest sequence, in tokens."""
        return self.config["block_size"]

    @property
    def n_parameters(self) -> int:
        """The number of parameters, the tied matrix counted once."""
        return sum(weight.numel() for weight in self.parameters())

    def forward(self, tokens: Tensor) -> Tensor:
        """Next-token logits for every position.

        tokens: (B, T) int64 ids in [0, vocab_size), T at most block_size. Returns (B, T, V), unnormalised.
        Raises UserError, naming both lengths, when T exceeds block_size.
        """
        return self.logits(self.hidden(tokens))

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits of hidden states: (..., C) -> (..., V)."""
        return self.softcap(self.head(hidden))

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """The last hidden states, which `logits` takes: (B, T) -> (B, T, C). `tokens` continue those in the cache."""
        T = tokens.shape[1]
        if self.block_size < T:
            raise UserError(f"a sequence of {T} tokens is longer than block_size={self.block_size}", "GPT", "Crop it.")
        positions = torch.arange(T, device=tokens.device) if cache is None else cache.advance(T)
        x = self.dropout(self.position_embedding(self.token_embedding(tokens), positions))
        for i, block in enumerate(self.blocks):
            x = block(x, positions, cache and partial(cache.extend, i))
        return self.norm(x)

    def new_cache(self, rows: int, size: int) -> KVCache:
        """An empty key/value cache for `rows` sequences of up to `size` tokens (at most block_size is useful)."""
        sizes, weight = self.config, self.token_embedding.weight
        head_dim = sizes["head_dim"] or sizes["n_embd"] // sizes["n_head"]
        heads = sizes["n_kv_head"] or sizes["n_head"]
        return KVCache(sizes["n_layer"], heads, head_dim, rows, size, weight.dtype, weight.device)

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

    def save_pretrained(self, folder: str | Path, tokenizer: "Tokenizer | None" = None, **facts: Any) -> None:
        """Write a folder that transformers loads; see `mingpt_lightning.saving`, and `card.Facts` for `facts`."""
        from mingpt_lightning.saving import save_pretrained

        save_pretrained(self, folder, tokenizer, **facts)

    def crop_block_size(self, block_size: int) -> None:
        """Reduce the context to the first `block_size` positions. Raises UserError when there are fewer."""
        require_positive(block_size=block_size)
        if block_size > self.block_size:
            what = f"block_size={block_size} is more than the {self.block_size} positions of the model"
            raise UserError(what, "block_size", f"Use {self.block_size} or less.")
        if isinstance(self.position_embedding, LearnedPositions):
            weight = self.position_embedding.weight.detach()[:block_size].clone()
            self.position_embedding = LearnedPositions.from_pretrained(weight, freeze=False)
        self.config["block_size"] = block_size

    def grow_vocabulary(self, vocab_size: int) -> None:
        """Add tokens up to `vocab_size`; the embedding of each is the mean of the existing ones.

        So a new token is as likely as an average one, and no old one much less likely than before; a head of `n_output`
        tokens stays. Raises UserError when there are more already. Source: Hewitt 2021, "Initializing New Word
        Embeddings for Pretrained Language Models".
        """
        old = self.token_embedding.weight.detach()
        if vocab_size < len(old):
            what = f"vocab_size={vocab_size} is less than the {len(old)} tokens of the model"
            raise UserError(what, "vocab_size", f"Use {len(old)} or more.")

        def grown(weight: Tensor) -> Tensor:
            return torch.cat([weight, weight.mean(dim=0).expand(vocab_size - len(weight), -1)])

        head = self.head.weight.detach()
        self.token_embedding = nn.Embedding.from_pretrained(grown(old), freeze=False)
        self.config["vocab_size"] = vocab_size
        if self.config["n_output"] is None:
            self.head = nn.Linear(old.shape[1], vocab_size, bias=False, device="meta")
            tied = self.config["tie_embeddings"]
            self.head.weight = self.token_embedding.weight if tied else nn.Parameter(grown(head))
