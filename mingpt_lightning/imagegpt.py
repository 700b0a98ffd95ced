"""ImageGPT in Hugging Face's layout: a GPT-2 with RMSNorm and a head of its own, which can't predict the start token.

Source: transformers, `ImageGPTForCausalImageModeling`, whose names and defaults these are; Chen et al. 2020,
"Generative Pretraining from Pixels".
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mingpt_lightning.errors import CheckpointError
from mingpt_lightning.hub import Repository, read_json, write_file
from mingpt_lightning.tokenizer import Tokenizer

COLOURS = "preprocessor_config.json"
"""The file that has the palette, as numbers from -1 to 1, under `clusters`."""

OURS = {"norm": "rmsnorm", "tie_embeddings": False}
"""What it takes from the constructor of GPT, beside what its GPT-2 takes."""

DEFAULTS = {
    "vocab_size": 513,
    "n_positions": 1024,
    "n_embd": 512,
    "n_layer": 24,
    "n_head": 8,
    "activation_function": "quick_gelu",
    "tie_word_embeddings": False,
}


def as_gpt2(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings of an ImageGPT as those of a GPT-2; path: of its config.json, for errors."""
    other = {"hidden_size": "n_embd", "max_position_embeddings": "n_positions"}
    other |= {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}
    settings = DEFAULTS | {other.get(name, name): value for name, value in config.items()}
    if settings["tie_word_embeddings"]:
        what = (
            f"{path} has tie_word_embeddings={settings['tie_word_embeddings']}, and an ImageGPT has a head of its own"
        )
        raise CheckpointError(what, "name", "Choose a model in Hugging Face's layout.")
    return settings | {"model_type": "gpt2"}


def is_imagegpt(ours: Mapping[str, Any]) -> bool:
    """Whether an ImageGPT computes what a GPT of these constructor arguments does, as far as it differs from GPT-2."""
    return all(ours[name] == value for name, value in OURS.items()) and ours["n_output"] == ours["vocab_size"] - 1


def read_palette(name: str | Path, revision: str | None = None, where: str = "name") -> list[list[float]]:
    """The colours of a hub id or folder, each of 3 numbers from 0 to 255. Raises CheckpointError for anything else."""
    path = Repository(name, revision, where).require(COLOURS)
    clusters = read_json(path).get("clusters")
    good = isinstance(clusters, list) and clusters and all(is_colour(colour) for colour in clusters)
    if not isinstance(clusters, list) or not good:
        fix = "Name a folder or hub id of an ImageGPT."
        raise CheckpointError(f"{path} has no clusters of 3 numbers from -1 to 1", where, fix)
    return [[(value + 1) * 127.5 for value in colour] for colour in clusters]


def is_colour(value: Any) -> bool:
    """Whether something is three numbers from -1 to 1."""
    numbers = isinstance(value, list) and len(value) == 3 and all(type(part) in (int, float) for part in value)
    return numbers and all(-1.001 <= part <= 1.001 for part in value)


def read_tokenizer(name: str | Path, revision: str | None, block_size: int) -> Tokenizer | None:
    """The tokenizer of an ImageGPT's folder, for square pictures of as many pixels as it has positions.

    None where that is no square.
    """
    side = round(block_size**0.5)
    if side * side != block_size:
        return None
    return Tokenizer.from_state(
        {"name": "pixels", "arguments": {"palette": read_palette(name, revision), "size": [side, side]}}
    )


def write_palette(folder: Path, palette: Sequence[Sequence[float]], size: Sequence[int]) -> None:
    """Write the file that transformers' ImageGPTImageProcessor reads. Grey is written as a colour."""
    clusters = [[value / 127.5 - 1 for value in (colour if len(colour) == 3 else [*colour] * 3)] for colour in palette]
    content = {
        "image_processor_type": "ImageGPTImageProcessor",
        "clusters": clusters,
        "do_color_quantize": True,
        "do_normalize": True,
        "do_resize": True,
        "resample": 2,
        "size": {"height": size[0], "width": size[1]},
    }
    write_file(folder / COLOURS, content)
