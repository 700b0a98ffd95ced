"""The named choices of GPT: each is a GPT in every respect, alone and all together."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from mingpt_lightning import GPT, UserError
from mingpt_lightning.layers import RotaryPositions
from tests.layer_choices import CHOICES, SIZES, T, V

EXPORTED = ("init=zero_residual", "tie_embeddings=False", "bias=False", "activation=relu_squared", "bias=qkv")
EXPORTED += ("activation=quick_gelu", "llama", "qwen3", "norm_order=post")
"""What an architecture in transformers computes too, or what leaves no trace."""

TOKENS = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3, 2, 1]])


@pytest.fixture(params=CHOICES, name="gpt")
def _gpt(request: pytest.FixtureRequest) -> GPT:
    """A GPT of each choice, in evaluation mode, no weight of which is zero."""
    torch.manual_seed(0)
    gpt = GPT(**SIZES, **CHOICES[request.param])
    with torch.no_grad():
        for weight in gpt.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return gpt.eval()


def test_no_position_sees_what_comes_after_it(gpt: GPT) -> None:
    changed = TOKENS.clone()
    changed[:, 5:] = 0
    before, after = gpt(TOKENS), gpt(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_the_order_of_tokens_counts(gpt: GPT) -> None:
    swapped = TOKENS[:, [1, 0, *range(2, T)]]
    assert not torch.allclose(gpt(TOKENS)[:, -1], gpt(swapped)[:, -1], atol=1e-4)


def test_the_cache_changes_nothing(gpt: GPT) -> None:
    with_cache = gpt.generate(TOKENS[:, :3], 3 * T, temperature=0)
    assert torch.equal(with_cache, gpt.generate(TOKENS[:, :3], 3 * T, temperature=0, use_cache=False))


def test_a_prompt_in_a_ragged_batch_has_its_own_answer(gpt: GPT) -> None:
    prompts = [torch.tensor([1, 2, 3, 4, 5]), torch.tensor([7])]
    together = gpt.generate(prompts, 2 * T, temperature=0)
    for prompt, answer in zip(prompts, together, strict=True):
        assert torch.equal(gpt.generate(prompt[None], 2 * T, temperature=0)[0], answer)


def test_config_and_state_make_it_again(gpt: GPT) -> None:
    assert gpt.state_dict().keys() == dict(gpt.named_parameters(remove_duplicate=False)).keys()
    again = GPT(**pickle.loads(pickle.dumps(gpt.config)))
    again.load_state_dict(gpt.state_dict())
    for twin in (again.eval(), copy.deepcopy(gpt), pickle.loads(pickle.dumps(gpt))):
        assert torch.equal(twin(TOKENS), gpt(TOKENS))


@pytest.mark.parametrize("choice", CHOICES)
def test_every_weight_learns(choice: str) -> None:
    torch.manual_seed(0)
    gpt = GPT(**SIZES, **CHOICES[choice])
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-2)
    before = {name: weight.detach().clone() for name, weight in gpt.named_parameters()}
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(gpt(TOKENS[:, :-1]).flatten(0, 1), TOKENS[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.tensor(float(gpt.head.out_features)).log().item(), abs=0.1)
    assert losses[-1] < 0.5
    assert [name for name, weight in gpt.named_parameters() if torch.equal(weight, before[name])] == []


def test_choices_change_weights_as_they_say() -> None:
    names = {choice: set(GPT(**SIZES, **options).state_dict()) for choice, options in CHOICES.items()}
    plain = set(GPT(**SIZES).state_dict())
    assert plain - names["position=rotary"] == {"position_embedding.weight"}
    assert not [name for name in names["bias=False"] if name.endswith("bias")]
    assert names["qk_norm=True"] - plain == {f"blocks.{i}.attn.qk_norm.weight" for i in range(2)}
    untied = GPT(**SIZES, tie_embeddings=False)
    assert untied.n_parameters - GPT(**SIZES).n_parameters == V * 16
    zero = GPT(**SIZES, init="zero_residual")
    assert all(not block.attn.proj.weight.any() and not block.mlp.proj.weight.any() for block in zero.blocks)


def test_logits_stay_within_the_cap() -> None:
    gpt = GPT(**SIZES, logit_softcap=2.0)
    with torch.no_grad():
        gpt.token_embedding.weight.mul_(1000)
    assert gpt(TOKENS).abs().max() <= 2.0


def test_rotary_products_depend_on_distance_alone() -> None:
    rotate = RotaryPositions(head_size=8, block_size=64)
    q, k = torch.randn(1, 8), torch.randn(1, 8)
    at = [(rotate(q, torch.tensor([i + 5])) * rotate(k, torch.tensor([i]))).sum() for i in (0, 10, 50)]
    assert torch.allclose(torch.stack(at), at[0].expand(3), atol=1e-4)
    assert torch.allclose(rotate(q, torch.tensor([7])).norm(), q.norm())


@pytest.mark.parametrize("name", ["activation", "norm", "norm_order", "mlp", "position", "init", "bias", "qk_norm"])
def test_an_unknown_name_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}=snake is not known.*Choose one of: "):
        GPT(**SIZES, **{name: "snake"})


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"n_kv_head": 3}, r"n_head=2 is not divisible by n_kv_head=3 \(n_kv_head\)\. Try 1, 2\."),
        ({"n_kv_head": 0}, "n_kv_head=0 is not a positive integer"),
        ({"head_dim": -1}, "head_dim=-1 is not a positive integer"),
        ({"rope_theta": 0}, "rope_theta=0 is not a number above 0"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling=yarn is not known.*linear, llama3"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling=None is not known"),
        ({"rope_scaling": {"rope_type": "linear"}}, r"rope_scaling has no setting .*Give factor\."),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor=0 is not a number above 0"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2, "beta": 1}}, "has factor, beta .*Give factor"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": "x"}},
            "has factor=x is not a number above 0",
        ),
        (
            {
                "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8}
                | {"low_freq_factor": 4.0, "high_freq_factor": 4.0}
            },
            "low_freq_factor=4.0, and high_freq_factor=4.0",
        ),
        ({"rope_scaling": 5}, "rope_scaling=5 is no mapping"),
        ({"bias": [1]}, r"bias=\[1\] is not known"),
        ({"bias": 1}, "bias=1 is not known"),
        ({"qk_norm": {}}, r"qk_norm=\{\} is not known"),
    ],
)
def test_a_choice_that_cannot_be_is_one_line(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        GPT(**SIZES, **{"position": "rotary"} | choices)
    assert "\n" not in str(caught.value)


def test_rotary_heads_need_pairs() -> None:
    with pytest.raises(UserError, match="heads of 3 channels cannot be rotated in pairs"):
        GPT(**SIZES | {"n_embd": 6}, position="rotary")


@pytest.mark.parametrize("choice", CHOICES)
def test_export_refuses_what_transformers_lacks(choice: str, tmp_path: Any) -> None:
    gpt = GPT(**SIZES, **CHOICES[choice])
    if choice in EXPORTED:
        gpt.save_pretrained(tmp_path)
        return
    with pytest.raises(UserError, match=r"transformers.* has no "):
        gpt.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_sizes_can_change_afterwards(gpt: GPT) -> None:
    logits = gpt(TOKENS[:, :4])
    gpt.crop_block_size(4)
    assert torch.equal(gpt(TOKENS[:, :4]), logits)
    gpt.grow_vocabulary(V + 3)
    assert torch.allclose(gpt(TOKENS[:, :4])[..., :V], logits, atol=1e-6)
    assert GPT(**gpt.config).load_state_dict(gpt.state_dict())
    with pytest.raises(UserError, match="longer than block_size=4"):
        gpt(TOKENS)
