"""Linear probes: how well each layer of a trained model tells the classes of pictures, which it was never told.

    python -m projects.pixels.probe RUN

prints the accuracy by layer, and draws RUN/probe.png. A layer's features are the inputs of its attention after their
norm, averaged over all pixels; those after the last layer, the inputs of the head. Logistic regression is fit on the
training pictures, its regularisation chosen on the validation pictures, and the accuracy is that on the test pictures.

Source: Chen et al. 2020, "Generative Pretraining from Pixels", sections 2.3 and 4.1.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mingpt_lightning.checkpoint import KEY, read_checkpoint
from mingpt_lightning.console import console, fail
from mingpt_lightning.datamodule import Split
from mingpt_lightning.errors import CheckpointError, UserError
from mingpt_lightning.gpt import GPT
from mingpt_lightning.language_model import LanguageModel
from projects.pixels.datamodule import PixelDataModule, PixelTokenizer
from projects.pixels.pictures import package

AT_ONCE = 2**14  # pixels that the model sees at once
STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # inverse regularisation, of which validation takes the best

SETTINGS = ("images", "path", "size", "grey", "split")
"""What a run's datamodule is made from again; its palette comes from the tokenizer."""


def features(gpt: GPT, inputs: Tensor) -> list[Tensor]:
    """The features of some sequences, (B, T), by layer: n_layer + 1 times (B, C), in evaluation mode."""
    found: list[Tensor] = []

    def keep(module: nn.Module, given: Any, output: Tensor) -> None:
        found.append(output.mean(dim=1))

    norms: list[Any] = [*(block.norm_1 for block in gpt.blocks), gpt.norm]
    hooks = [norm.register_forward_hook(keep) for norm in norms]
    try:
        with torch.no_grad():
            gpt.eval().hidden(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def split_features(gpt: GPT, data: PixelDataModule, split: Split) -> list[np.ndarray]:
    """The features of all pictures of a split, by layer."""
    dataset = data.dataset(split)
    numbers = torch.arange(dataset.epoch_size)  # the pictures as they are, which come before those that are moved
    batches = numbers.split(max(1, AT_ONCE // data.block_size))
    parts = [features(gpt, dataset[numbers][0]) for numbers in batches]
    return [torch.cat(layer).numpy() for layer in zip(*parts, strict=True)]


def accuracy(data: PixelDataModule, train: np.ndarray, val: np.ndarray, test: np.ndarray) -> float:
    """The share of test pictures that logistic regression on these features puts into the right class."""
    assert data.labels is not None
    linear, scaling = package("sklearn.linear_model"), package("sklearn.preprocessing")
    labels = {split: data.labels[part] for split, part in data.parts.items()}
    scaler = scaling.StandardScaler().fit(train)
    train, val, test = (scaler.transform(part) for part in (train, val, test))
    with package("threadpoolctl").threadpool_limits(1):  # more would wait for each other
        models = [linear.LogisticRegression(C=C, max_iter=1000).fit(train, labels["train"]) for C in STRENGTHS]
    best = max(models, key=lambda model: model.score(val, labels["val"]))
    return float(best.score(test, labels["test"]))


def probe(gpt: GPT, data: PixelDataModule) -> tuple[list[float], float]:
    """The accuracy by layer, from the first one's inputs to the last one's outputs; and that of the bare pixels."""
    if data.labels is None:
        fix = "Put the pictures of each class into a folder of its own."
        raise UserError("the pictures have no classes, so there is nothing to tell", "path", fix)
    names: tuple[Split, ...] = ("train", "val", "test")
    if not all(len(data.parts[name]) for name in names):
        raise UserError("a split is empty", "split", "The probe needs all three.")
    layers = zip(*(split_features(gpt, data, name) for name in names), strict=True)
    palette = data.tokenizer.palette
    bare = [palette[data.tokens[data.parts[name]]].reshape(len(data.parts[name]), -1) for name in names]
    return [accuracy(data, *layer) for layer in layers], accuracy(data, *bare)


def data_of(path: Path) -> tuple[GPT, PixelDataModule]:
    """The model of a run and its pictures. Raises CheckpointError for a run on anything else."""
    content = read_checkpoint(path)[KEY]
    system = LanguageModel.load_from_checkpoint(path)
    tokenizer = system.tokenizer
    if not isinstance(tokenizer, PixelTokenizer):
        raise CheckpointError(f"{path} was not trained on pictures", "checkpoint", "Name a run of datamodule=pixels.")
    settings = content["config"].get("datamodule", {})
    known = {name: settings[name] for name in SETTINGS if name in settings}
    return system.gpt, PixelDataModule(**known | tokenizer.arguments)


def draw(file: Path, accuracies: list[float], bare: float) -> None:
    """Draw the accuracy by layer."""
    figure = package("matplotlib.figure").Figure((6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([100 * value for value in accuracies], "o-", label="mean of the layer's inputs, the head's at last")
    axes.axhline(100 * bare, color="grey", linestyle="--", label="the pixels themselves")
    axes.set(xlabel="layer", ylabel="test accuracy of a linear probe, %", xticks=range(len(accuracies)))
    axes.legend()
    figure.savefig(file, dpi=100)


def main(arguments: list[str]) -> None:
    """Print the accuracies of a run, and draw them into its folder."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UserError("a run is to be named", "command line", "Usage: python -m projects.pixels.probe RUN")
    path = Path(arguments[0].removeprefix("checkpoint="))
    gpt, data = data_of(path)
    accuracies, bare = probe(gpt, data)
    for number, value in enumerate(accuracies):
        console.print(f"layer {number:3}  {value:.1%}")
    console.print(f"pixels     {bare:.1%}, of {len(data.parts['test'])} test pictures")
    file = (path if path.is_dir() else path.parent) / "probe.png"
    draw(file, accuracies, bare)
    console.print(f"written    {file}", markup=False)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as mistake:
        fail(mistake)
