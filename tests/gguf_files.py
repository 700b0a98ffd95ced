"""GGUF files as llama.cpp's converter writes them: of a model of transformers, and of a small vocabulary."""

import json
from collections.abc import Callable
from pathlib import Path

import gguf
from transformers import PreTrainedModel

from mingpt_lightning.bpe import BPETokenizer
from tests.llama_models import SIZES

WIDE = {"hidden_size": 64, "intermediate_size": 96}  # blocks of a quantised weight have 32 numbers

Change = Callable[[gguf.GGUFWriter], None]


def write_model(path: Path, theirs: PreTrainedModel, kind: str = "F32", change: Change | None = None) -> Path:
    """A model of transformers as llama.cpp's converter writes it; `change` adds to its settings."""
    config = theirs.config
    arch = config.model_type
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if arch == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        if arch == "qwen3":
            writer.add_key_length(config.head_dim)
            writer.add_value_length(config.head_dim)
    if change:
        change(writer)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, arch.upper()), config.num_hidden_layers)
    dtype = gguf.GGMLQuantizationType[kind]
    for name, weight in theirs.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value = weight.float()
        value = value.T.contiguous() if is_conv1d(name) else value
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            value = value.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)  # neighbours are rotated
        array, own = value.numpy(), names.get_name(name, try_suffixes=(".weight", ".bias"))
        if value.dim() == 2 and kind != "F32":
            writer.add_tensor(own, gguf.quants.quantize(array, dtype), raw_dtype=dtype)
        else:
            writer.add_tensor(own, array)
    finish(writer)
    return path


def is_conv1d(name: str) -> bool:
    return name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight"))


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


TEXT = (
    "We can't do it in 1984, it's 25°C — naïve, 100% fun!\n\n  Two\tspaces. 東京 e\u0301 <|im_start|>don't<|im_end|>\n"
)


def trained() -> BPETokenizer:
    return BPETokenizer.train([TEXT * 3 + "1984 1984 100 it's can't"], 400)


def add_tokenizer(writer: gguf.GGUFWriter, pre: str | None) -> None:
    """A vocabulary of bytes and merges and two more special tokens, as llama.cpp's converter writes it."""
    tokenizer = trained()
    size, content = tokenizer.vocab_size, json.loads(tokenizer.backend.to_str())
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    tokens = [str(tokenizer.backend.id_to_token(number)) for number in range(size)]
    writer.add_token_list([*tokens, "<|im_start|>", "<|im_end|>"])
    writer.add_token_types([1] * (size - 1) + [3] * 3)
    writer.add_token_merges([" ".join(merge) for merge in content["model"]["merges"]])
    writer.add_bos_token_id(size)
    writer.add_eos_token_id(size + 1)
