"""The model card of an exported model: README.md, whose front matter the Hugging Face hub reads.

Source: huggingface_hub, `ModelCardData`; https://huggingface.co/docs/hub/model-cards.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from mingpt_lightning.errors import UserError

if TYPE_CHECKING:
    from mingpt_lightning.tokenizer import Tokenizer

TEXT = """# {title}

A model of the architecture {kind}, written by mingpt-lightning: {n_parameters:,} parameters,
n_layer={n_layer}, n_head={n_head}, n_embd={n_embd}, vocab_size={vocab_size}, block_size={block_size}.

```python
{snippet}
```

`mingpt_lightning.GPT.from_pretrained` reads it too. To upload this folder: `hf upload USER/NAME .`
"""

WITH_TOKENIZER = """from transformers import pipeline

generate = pipeline("text-generation", model={name!r}){comment}
print(generate({prompt!r})[0]["generated_text"])"""

PADDING = """
generate.tokenizer.pad_token_id = 0  # for batches: any token, since it's masked; none is for padding alone"""

WITHOUT_TOKENIZER = """import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({name!r}){comment}
print(model.generate(torch.tensor([[0]])))  # token ids; there is no tokenizer for transformers"""

HERE = "  # this folder, or its repository on the hub"

PROMPTS = ("Once upon a time", "The", "the", "A", "a", "0")


class Facts(NamedTuple):
    """What a card says of where a model comes from, as far as it's known.

    repo: the repository on the hub. license: by the hub's name for it, such as "mit". base_model: the hub id of the
    model that training began with. dataset: what it was trained on. metrics: such as {"test/loss": 1.5}.
    """

    repo: str | None = None
    license: str | None = None
    base_model: str | None = None
    dataset: str | None = None
    metrics: Mapping[str, float] = {}


def model_card(config: Mapping[str, Any], n_parameters: int, tokenizer: "Tokenizer | None", facts: Facts) -> str:
    """The text of README.md.

    config: the sizes of the model, and its `kind`, such as gpt2. tokenizer: one that is exported with it.
    """
    from huggingface_hub import EvalResult, ModelCardData

    dataset = facts.dataset or "unknown"
    results = [
        EvalResult("text-generation", dataset, dataset, name.rpartition("/")[2], value, metric_name=name)
        for name, value in facts.metrics.items()
    ]
    title = (facts.repo or config["kind"]).rpartition("/")[2]
    data = ModelCardData(
        license=facts.license,
        base_model=facts.base_model,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[config["kind"], "mingpt-lightning", "pytorch-lightning"],
        model_name=title,
        eval_results=results or None,
    )
    names = {"name": facts.repo or ".", "comment": "" if facts.repo else HERE}
    snippet = WITHOUT_TOKENIZER.format(**names)
    if tokenizer is not None:
        snippet = WITH_TOKENIZER.format(**names, prompt=some_prompt(tokenizer))
        special = getattr(tokenizer, "special_tokens", {})
        snippet += "" if special.keys() & {"pad_token_id", "eos_token_id"} else PADDING
    text = TEXT.format(**config, title=title, n_parameters=n_parameters, snippet=snippet)
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def some_prompt(tokenizer: "Tokenizer") -> str:
    """A short text that a tokenizer can encode."""
    for prompt in PROMPTS:
        with suppress(UserError):
            if tokenizer.decode(tokenizer.encode(prompt)) == prompt:
                return prompt
    return tokenizer.decode([tokenizer.start_token or 0])
