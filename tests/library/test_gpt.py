"""GPT: its size, its causality, its start, and that it computes what GPT-2 computes."""

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional as F

from mingpt_lightning import GPT, UserError
from mingpt_lightning.cli.config import CONFIG_DIR
from mingpt_lightning.gpt import MLP, Block, CausalSelfAttention
from tests.common import MakeGPT

# Parameters of the blocks and the last norm. GPT-2 without its (50,257 + 1,024) embeddings; the others as minGPT's.
BODIES = {
    "openai-gpt": 85_056_000,
    "gpt2": 124_439_808 - 51_281 * 768,
    "gpt2-medium": 354_823_168 - 51_281 * 1024,
    "gpt2-large": 774_030_080 - 51_281 * 1280,
    "gpt2-xl": 1_557_611_200 - 51_281 * 1600,
    "gopher-44m": 25_220_096,
    "gpt-mini": 2_669_568,
    "gpt-micro": 793_344,
    "gpt-nano": 84_912,
    "gpt-adder": 790_272,
    "gpt-pico": 2 * (12 * 64**2 + 13 * 64) + 2 * 64,
    "gpt-modern-pico": 2 * (12 * 64**2 + 2 * 64 + 8) + 64,
    "gpt-modern-micro": 4 * (12 * 128**2 + 2 * 128 + 32) + 128,
    "gpt-modern-gpt2": 12 * (12 * 768**2 + 2 * 768 + 64) + 768,
    "llama-nano": 3 * (3 * 48**2 + 3 * 48 * 128 + 2 * 48) + 48,
    "smollm2-135m": 134_515_008 - 49_152 * 576,  # as published, without embeddings
    "qwen3-0.6b": 596_049_920 - 151_936 * 1024,
}
MODELS = sorted(path.stem for path in Path(CONFIG_DIR, "model").glob("*.yaml") if "pretrained" not in path.stem)


def from_config(name: str, vocab_size: int, block_size: int) -> GPT:
    """The model of a YAML file, without memory for its weights."""
    node = OmegaConf.load(Path(CONFIG_DIR, "model", f"{name}.yaml"))
    with torch.device("meta"):
        return instantiate(node, vocab_size=vocab_size, block_size=block_size)


def tokens_of(gpt: GPT, batch_size: int = 3, seed: int = 0) -> Tensor:
    """Random tokens that fill the block."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(gpt.config["vocab_size"], (batch_size, gpt.block_size), generator=generator)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_gpt2_has_the_published_number_of_parameters(name: str, count: int) -> None:
    assert from_config(name, vocab_size=50257, block_size=1024).n_parameters == count


@pytest.mark.parametrize("name", MODELS)
def test_every_model_file_has_its_number_of_parameters(name: str) -> None:
    gpt = from_config(name, vocab_size=7, block_size=5)
    assert sum(weight.numel() for part in (gpt.blocks, gpt.norm) for weight in part.parameters()) == BODIES[name]
    outside = 2 * 7 if "modern" in name else 7 + 5 * (gpt.config["position"] == "learned")  # tokens in and out, …
    assert gpt.n_parameters == BODIES[name] + outside * gpt.config["n_embd"]


def test_forward_gives_logits_for_every_position(make_gpt: MakeGPT) -> None:
    gpt = make_gpt(vocab_size=11, block_size=8)
    assert gpt(tokens_of(gpt, batch_size=3)).shape == (3, 8, 11)
    assert gpt(torch.zeros(1, 1, dtype=torch.long)).shape == (1, 1, 11)


@given(data=st.data())
def test_a_token_never_changes_logits_before_it(make_gpt: MakeGPT, data: st.DataObject) -> None:
    gpt = make_gpt(vocab_size=11, block_size=8)
    before = torch.tensor([data.draw(st.lists(st.integers(0, 10), min_size=1, max_size=8), label="tokens")])
    t = data.draw(st.integers(0, before.shape[1] - 1), label="t")
    after = before.clone()
    after[0, t] = (before[0, t] + data.draw(st.integers(1, 10), label="shift")) % 11
    with torch.no_grad():
        logits, changed = gpt(before), gpt(after)
    torch.testing.assert_close(changed[:, :t], logits[:, :t], rtol=0, atol=1e-5)
    assert (changed[:, t:] - logits[:, t:]).abs().amax(dim=-1).min() > 1e-3  # and it does change all that follow


def test_a_prefix_has_the_same_logits_alone(make_gpt: MakeGPT) -> None:
    gpt = make_gpt()
    tokens = tokens_of(gpt)
    for length in range(1, gpt.block_size):
        torch.testing.assert_close(gpt(tokens[:, :length]), gpt(tokens)[:, :length], rtol=0, atol=1e-5)


def test_positions_matter(make_gpt: MakeGPT) -> None:
    gpt = make_gpt()
    logits = gpt(torch.zeros(1, gpt.block_size, dtype=torch.long))[0]
    assert torch.pdist(logits).min() > 1e-2


@pytest.mark.parametrize("vocab_size", [3, 10, 65, 512])
def test_the_initial_loss_is_that_of_a_guess(make_gpt: MakeGPT, vocab_size: int) -> None:
    gpt = make_gpt(vocab_size=vocab_size, block_size=64, n_embd=48, scale=1.0)
    inputs, targets = tokens_of(gpt, 32, seed=1), tokens_of(gpt, 32, seed=2)
    loss = F.cross_entropy(gpt(inputs).flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(math.log(vocab_size), abs=0.05)


def test_every_parameter_receives_a_gradient(make_gpt: MakeGPT) -> None:
    gpt = make_gpt(dropout=0.1)
    tokens = tokens_of(gpt)
    F.cross_entropy(gpt(tokens).flatten(0, 1), tokens.flip(1).flatten()).backward()
    assert [name for name, weight in gpt.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def step(gpt: GPT) -> None:
    """One large step of training."""
    tokens = tokens_of(gpt)
    optimizer = torch.optim.SGD(gpt.parameters(), lr=1.0)
    F.cross_entropy(gpt(tokens).flatten(0, 1), tokens.flip(1).flatten()).backward()
    optimizer.step()


def test_a_deep_copy_lives_its_own_life(make_gpt: MakeGPT) -> None:
    original = make_gpt()
    twin = copy.deepcopy(original)
    tokens = tokens_of(original)
    before = original(tokens)
    assert torch.equal(twin(tokens), before)
    step(twin)
    trained = twin(tokens)
    assert not torch.allclose(trained, before, atol=1e-2)
    assert torch.equal(original(tokens), before)
    with torch.no_grad():
        for weight in original.parameters():
            weight.zero_()
    assert torch.equal(twin(tokens), trained)  # no part of the copy still runs the original's weights


def copies(gpt: GPT) -> Iterator[GPT]:
    yield copy.deepcopy(gpt)
    yield pickle.loads(pickle.dumps(gpt))
    again = GPT(**gpt.config)
    again.load_state_dict(gpt.state_dict())
    yield again


def test_copies_give_equal_logits_and_stay_tied(make_gpt: MakeGPT) -> None:
    gpt = make_gpt()
    for twin in copies(gpt):
        assert torch.equal(twin(tokens_of(gpt)), gpt(tokens_of(gpt)))
        assert twin.n_parameters == gpt.n_parameters
        step(twin)
        assert torch.equal(twin.head.weight, twin.token_embedding.weight)


def test_a_sequence_longer_than_the_block_is_refused(make_gpt: MakeGPT) -> None:
    with pytest.raises(UserError, match=r"9 tokens .*block_size=8"):
        make_gpt(block_size=8)(torch.zeros(1, 9, dtype=torch.long))


@pytest.mark.parametrize("name", ["vocab_size", "block_size", "n_layer", "n_head", "n_embd"])
@pytest.mark.parametrize("value", [0, -4, 2.0, True])
def test_a_size_that_is_not_a_positive_integer_is_refused(name: str, value: object) -> None:
    sizes = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16, name: value}
    with pytest.raises(UserError, match=f"{name}={value} "):
        GPT(**sizes)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 2, math.nan])
def test_a_dropout_outside_of_0_to_1_is_refused(dropout: float) -> None:
    with pytest.raises(UserError, match=f"dropout={dropout}"):
        GPT(11, 8, n_layer=1, n_head=2, n_embd=16, dropout=dropout)


@pytest.mark.parametrize(("n_embd", "n_head", "way_out"), [(100, 3, "99 or 102"), (2, 3, "n_embd=3")])
def test_a_width_that_heads_cannot_share_is_refused_with_a_way_out(n_embd: int, n_head: int, way_out: str) -> None:
    with pytest.raises(UserError, match=f"n_embd={n_embd} .*n_head={n_head}.*{way_out}") as caught:
        GPT(11, 8, n_layer=1, n_head=n_head, n_embd=n_embd)
    assert isinstance(caught.value, ValueError)


def test_dropout_changes_outputs_in_training_only(make_gpt: MakeGPT) -> None:
    gpt, tokens = make_gpt(dropout=0.2).eval(), tokens_of(make_gpt())
    assert torch.equal(gpt(tokens), gpt(tokens))
    assert torch.equal(gpt(tokens), make_gpt(dropout=0.0)(tokens))
    gpt.train()
    assert not torch.allclose(gpt(tokens), gpt(tokens), atol=1e-2)
    without = make_gpt(dropout=0.0)
    assert torch.equal(without(tokens), without(tokens))


def test_dropout_reaches_the_embeddings_and_the_branches(make_gpt: MakeGPT) -> None:
    nearly_all = 1 - 1e-9
    gpt = make_gpt(dropout=nearly_all)
    assert not gpt(tokens_of(gpt)).any()  # nothing is left of the embeddings, and the norm's bias is 0
    x = torch.randn(2, 8, 16)
    block = Block(CausalSelfAttention(16, 2), MLP(16), partial(torch.nn.LayerNorm, 16), dropout=nearly_all)
    assert torch.equal(block(x, torch.arange(8)), x)  # only the residual stream is left


def test_dropout_reaches_the_attention_weights() -> None:
    attention, x, positions = (
        CausalSelfAttention(n_embd=16, n_head=2, dropout=0.5),
        torch.randn(2, 8, 16),
        torch.arange(8),
    )
    assert not torch.equal(attention(x, positions), attention(x, positions))
    attention.eval()
    assert torch.equal(attention(x, positions), attention(x, positions))


def test_the_state_holds_weights_only(make_gpt: MakeGPT) -> None:
    small, large = make_gpt(block_size=8), make_gpt(block_size=24)
    assert list(small.buffers()) == []
    assert small.state_dict().keys() == {name for name, _ in small.named_parameters(remove_duplicate=False)}
    assert large.n_parameters - small.n_parameters == (24 - 8) * 16  # a row per position, and no mask


def test_weights_start_as_gpt2s() -> None:
    torch.manual_seed(0)
    gpt = GPT(vocab_size=500, block_size=200, n_layer=4, n_head=4, n_embd=128)
    for name, weight in gpt.named_parameters():
        if weight.dim() >= 2:
            std = 0.02 / math.sqrt(2 * 4) if name.endswith("proj.weight") else 0.02
            assert weight.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(weight.mean().item()) < 6 * std / math.sqrt(weight.numel()), name
        else:
            assert (weight == (0 if name.endswith("bias") else 1)).all(), name
    scaled = [name for name, _ in gpt.named_parameters() if name.endswith("proj.weight")]
    assert len(scaled) == 2 * 4  # two residual branches a layer


def test_a_seed_fixes_the_initial_weights(make_gpt: MakeGPT) -> None:
    assert torch.equal(make_gpt(seed=1).head.weight, make_gpt(seed=1).head.weight)
    assert not torch.equal(make_gpt(seed=1).head.weight, make_gpt(seed=2).head.weight)


def theirs_by_our_names(reference: torch.nn.Module, value: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """A tensor for each parameter of a Hugging Face GPT-2, under our names and in our shapes."""
    names = {
        "transformer.wte.": "token_embedding.",
        "transformer.wpe.": "position_embedding.",
        "transformer.h.": "blocks.",
        "transformer.ln_f.": "norm.",
        "ln_1.": "norm_1.",
        "ln_2.": "norm_2.",
        "attn.c_attn.": "attn.qkv.",
        "c_proj.": "proj.",
        "mlp.c_fc.": "mlp.fc.",
    }
    result = {}
    for name, weight in reference.named_parameters():
        tensor = value(weight)
        if any(part in name for part in ("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            tensor = tensor.T  # its Conv1D keeps a linear layer's matrix the other way round
        for to_hf_name, our_name in names.items():
            name = name.replace(to_hf_name, our_name)
        result[name] = tensor
    return result


def pair(activation: str) -> tuple[torch.nn.Module, GPT]:
    """Hugging Face's GPT-2 with random weights, large enough that each detail shows, and ours with the same ones."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 61, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4}
    torch.manual_seed(0)
    special = {"bos_token_id": None, "eos_token_id": None}  # by default outside of so small a vocabulary
    config = GPT2Config(**sizes, **special, initializer_range=0.2, activation_function=activation)
    reference = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for weight in reference.parameters():
            if weight.dim() == 1:  # biases of 0 and gains of 1 would hide a mistake
                weight += 0.2 * torch.randn_like(weight)
    gpt = GPT(61, 16, n_layer=2, n_head=4, n_embd=32).eval()
    weights = theirs_by_our_names(reference, lambda weight: weight.data)
    gpt.load_state_dict({**weights, "head.weight": weights["token_embedding.weight"]})
    return reference, gpt


def distances(activation: str) -> tuple[float, float]:
    """The largest differences of our logits, and of our gradients, from those of Hugging Face's GPT-2."""
    reference, gpt = pair(activation)
    tokens = torch.randint(61, (3, 16), generator=torch.Generator().manual_seed(1))
    ours, theirs = gpt(tokens), reference(tokens).logits
    for logits in (ours, theirs):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    gradients = theirs_by_our_names(reference, lambda weight: weight.grad)
    assert gradients.keys() == {name for name, _ in gpt.named_parameters()}
    worst = max((weight.grad - gradients[name]).abs().max().item() for name, weight in gpt.named_parameters())
    return (ours - theirs).abs().max().item(), worst


def test_logits_and_gradients_equal_those_of_gpt2() -> None:
    logits, gradients = distances("gelu_new")
    assert logits < 1e-5
    assert gradients < 1e-5


def test_the_comparison_with_gpt2_sees_the_wrong_gelu() -> None:
    logits, gradients = distances("gelu")  # the exact one, by the error function
    assert logits > 5e-5
    assert gradients > 5e-5
