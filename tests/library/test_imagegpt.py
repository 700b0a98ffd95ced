"""ImageGPT: equal to transformers' in every number, in and out; its colours; what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling

from mingpt_lightning import GPT
from mingpt_lightning.errors import CheckpointError, UserError
from mingpt_lightning.imagegpt import read_palette, read_tokenizer
from projects.pixels.datamodule import PixelTokenizer

SIZES = {"vocab_size": 17, "n_positions": 36, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
CLUSTERS = np.random.default_rng(0).uniform(-1, 1, (16, 3))


def theirs_with(**settings: object) -> ImageGPTForCausalImageModeling:
    """A random ImageGPT, no weight of which is zero or one."""
    torch.manual_seed(0)
    model = ImageGPTForCausalImageModeling(ImageGPTConfig(**SIZES | settings)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(0.2 * torch.randn_like(weight) + ("ln_" in name))
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An ImageGPT with its colours, as transformers writes it."""
    theirs_with().save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs/preprocessor_config.json").write_text(json.dumps({"clusters": CLUSTERS.tolist()}))
    return tmp_path / "theirs"


@pytest.mark.parametrize(
    "settings", [{}, {"activation_function": "gelu_new", "n_inner": 48}, {"scale_attn_by_inverse_layer_idx": True}]
)
def test_it_computes_what_transformers_computes(settings: dict[str, object], tmp_path: Path) -> None:
    theirs = theirs_with(**settings)
    theirs.save_pretrained(tmp_path)
    gpt = GPT.from_pretrained(tmp_path)
    tokens = torch.randint(17, (3, 36))
    logits, expected = gpt(tokens), theirs(tokens).logits
    assert logits.shape == (3, 36, 16)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    for found in (logits, expected):
        found.square().mean().backward()
    for ours, name in (
        ("blocks.0.attn.qkv.weight", "transformer.h.0.attn.c_attn.weight"),
        ("head.weight", "lm_head.weight"),
    ):
        gradient, reference = gpt.get_parameter(ours).grad, theirs.get_parameter(name).grad
        assert gradient is not None
        transposed = reference if ours.startswith("head") else reference.T
        if not (settings.get("scale_attn_by_inverse_layer_idx") and "qkv" in ours):
            torch.testing.assert_close(gradient, transposed, rtol=1e-4, atol=1e-5)
    start = torch.tensor([[16, 3, 4]])
    text = gpt.generate(start, 33, temperature=0)
    assert torch.equal(text[:, 3:], theirs(text[:, :-1]).logits.argmax(-1)[:, 2:])  # each is the likeliest there
    assert gpt.n_parameters == sum(weight.numel() for weight in theirs.parameters())


def test_what_is_written_is_what_was_read(folder: Path, tmp_path: Path) -> None:
    gpt, tokenizer = GPT.from_pretrained(folder), read_tokenizer(folder, None, 36)
    assert isinstance(tokenizer, PixelTokenizer)
    gpt.save_pretrained(tmp_path / "ours", tokenizer)
    again = ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "ours").eval()
    tokens = torch.randint(17, (2, 36))
    torch.testing.assert_close(again(tokens).logits, gpt(tokens), rtol=0, atol=1e-5)
    np.testing.assert_allclose(read_palette(tmp_path / "ours"), read_palette(folder))
    assert GPT.from_pretrained(tmp_path / "ours").config == gpt.config


def test_its_colours_are_the_tokens_that_transformers_gives(folder: Path) -> None:
    from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil

    tokenizer = read_tokenizer(folder, None, 36)
    assert isinstance(tokenizer, PixelTokenizer)
    assert (tokenizer.picture, tokenizer.start_token, tokenizer.vocab_size) == ((6, 6), 16, 17)
    pixels = np.random.default_rng(1).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    processor = ImageGPTImageProcessorPil(clusters=CLUSTERS, size={"height": 6, "width": 6})
    theirs = processor(pixels, return_tensors="np", input_data_format="channels_last")["input_ids"]
    assert tokenizer.quantize(pixels).ravel().tolist() == theirs.ravel().tolist()
    assert read_tokenizer(folder, None, 35) is None  # no square


@pytest.mark.parametrize("clusters", [None, [], [[0, 0]], [[0, 0, 2]], [["a", 0, 0]], "abc"])
def test_colours_that_are_none_are_refused(folder: Path, clusters: object) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"clusters": clusters}))
    with pytest.raises(CheckpointError, match="has no clusters of 3 numbers from -1 to 1"):
        read_palette(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no preprocessor_config\.json"):
        read_palette(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("activation_function", "mish", "has activation_function=mish, and this GPT takes one of"),
        ("tie_word_embeddings", True, "has a head of its own"),
        ("n_layer", 3, "missing"),
        ("add_cross_attention", True, "add_cross_attention=True"),
    ],
)
def test_what_gpt_would_compute_differently_is_refused(folder: Path, key: str, value: object, message: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(CheckpointError, match=message):
        GPT.from_pretrained(folder)


def test_a_head_that_cannot_be_is_refused(tmp_path: Path) -> None:
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 8}
    for n_output, tied, message in (
        (9, False, "more than vocab_size=8"),
        (7, True, "a head of its own"),
        (0, False, "0"),
    ):
        with pytest.raises(UserError, match=message):
            GPT(8, 4, **sizes, n_output=n_output, tie_embeddings=tied)
    with pytest.raises(UserError, match="has no n_output=6"):
        GPT(8, 4, **sizes, n_output=6, tie_embeddings=False).save_pretrained(tmp_path)
