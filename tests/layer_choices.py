"""The named choices of GPT, for tests that go over all of them."""

from typing import Any

V, T = 11, 8
SIZES: dict[str, Any] = {"vocab_size": V, "block_size": T, "n_layer": 2, "n_head": 2, "n_embd": 16}
MODERN = {"position": "rotary", "qk_norm": True, "tie_embeddings": False, "init": "zero_residual", "bias": False}
LLAMA = {"n_kv_head": 1, "mlp": "gated", "activation": "silu", "norm": "rmsnorm", "bias": False, "position": "rotary"}
CHOICES: dict[str, dict[str, Any]] = {
    **{f"{name}={value}": {name: value} for name, value in MODERN.items()},
    "norm=rmsnorm": {"norm": "rmsnorm"},
    "activation=relu_squared": {"activation": "relu_squared"},
    "logit_softcap": {"logit_softcap": 2.0},
    "activation=quick_gelu": {"activation": "quick_gelu"},
    "n_kv_head=1": {"n_kv_head": 1},
    "head_dim=6": {"head_dim": 6},
    "mlp=gated": {"mlp": "gated", "activation": "silu", "n_inner": 24},
    "norm_order=post": {"norm_order": "post"},
    "bias=qkv": {"bias": "qkv"},
    "qk_norm=separate": {"qk_norm": "separate", "n_kv_head": 1},
    "rope_scaling": {"position": "rotary", "rope_theta": 50.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "n_output=9": {"n_output": 9, "tie_embeddings": False},
    "llama": LLAMA,
    "qwen3": {**LLAMA, "head_dim": 12, "qk_norm": "separate", "tie_embeddings": False},
    "all": {**MODERN, "norm": "rmsnorm", "activation": "relu_squared", "logit_softcap": 15.0},
}
