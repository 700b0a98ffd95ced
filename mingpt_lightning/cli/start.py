"""What a new run starts from: another run's weights, positions and vocabulary, a pretrained model, or nothing."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from mingpt_lightning.adapter import adapter_of, merge_adapter
from mingpt_lightning.bpe import read_tokenizer
from mingpt_lightning.checkpoint import read_checkpoint
from mingpt_lightning.cli.build import build
from mingpt_lightning.cli.config import locate
from mingpt_lightning.cli.restore import gpt_maker, is_pretrained, make_datamodule, named_checkpoint, vocabulary
from mingpt_lightning.console import console
from mingpt_lightning.datamodule import SequenceDataModule
from mingpt_lightning.errors import CheckpointError, UserError
from mingpt_lightning.gpt import GPT
from mingpt_lightning.language_model import LanguageModel
from mingpt_lightning.restore import class_name, load_rest, restore_parts
from mingpt_lightning.storage import KEY


class Start(NamedTuple):
    """A checkpoint that a run starts from: its file, and its content."""

    file: Path
    content: dict[str, Any]


def read_start(cfg: DictConfig, resumed: Path | None) -> Start | None:
    """The checkpoint that a config starts from, if it names one; for a run that is resumed, the run's own.

    Nor is a pretrained model needed any more where a run is resumed.
    """
    if cfg.checkpoint is None and not (resumed and is_pretrained(cfg.model)):
        return None
    file = resumed or named_checkpoint(cfg.checkpoint)
    return Start(file, read_checkpoint(file))


def start_data(cfg: DictConfig, start: Start | None) -> SequenceDataModule:
    """The datamodule of a config, in the vocabulary that the run starts from.

    Raises CheckpointError where the config gives it another one.
    """
    if start is None:
        return make_datamodule(cfg.datamodule)
    known = start.content[KEY]["tokenizer"]
    datamodule = make_datamodule(cfg.datamodule, **vocabulary(start.content, cfg.datamodule))
    if known is None or meaning(known) != meaning(datamodule.tokenizer.state()):
        what = f"the data has another vocabulary than {start.file}"
        fix = "Leave out what gives it one: a run starts with the checkpoint's."
        raise CheckpointError(what, "datamodule", fix)
    return datamodule


def meaning(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """What says which text a token id stands for, in the state of a tokenizer: all but how other text is treated."""
    arguments = {
        name: value for name, value in tokenizer["arguments"].items() if name not in ("on_unknown", "chat_template")
    }
    return {**tokenizer, "arguments": arguments}


def start_model(cfg: DictConfig, datamodule: SequenceDataModule, start: Start | None) -> GPT:
    """The GPT of a config, with the weights that the run starts from.

    Its positions are the config's, else those that it starts with, else the data's. Raises UserError where a sequence
    of the data is longer, CheckpointError for another model than the checkpoint's.
    """
    gpt: GPT = new_model(cfg, datamodule) if start is None else loaded_model(cfg.model, *start)
    if datamodule.block_size > gpt.block_size:
        what = f"block_size={datamodule.block_size} is more than the {gpt.block_size} positions of the model"
        raise UserError(what, "datamodule.block_size", f"Use {gpt.block_size} or less.")
    return gpt


def new_model(cfg: DictConfig, datamodule: SequenceDataModule) -> Any:
    """A GPT from scratch or a pretrained one, in the vocabulary of the data."""
    if is_pretrained(cfg.model):
        gpt: GPT = build(cfg.model, "model")
        check_vocabulary(cfg, gpt, datamodule)
        return gpt
    sizes = {"vocab_size": datamodule.vocab_size}
    if cfg.model.get("block_size") is None:
        sizes["block_size"] = datamodule.block_size
    return build(cfg.model, "model", **sizes)


def check_vocabulary(cfg: DictConfig, gpt: GPT, datamodule: SequenceDataModule) -> None:
    """Give a pretrained model the new tokens of the data, for training. It may have more itself, which are padding.

    Raises UserError where the data is in the tokens of another model.
    """
    has, needs = gpt.config["vocab_size"], datamodule.vocab_size
    if has == needs:
        return
    own = None
    with contextlib.suppress(UserError):
        own = meaning(read_tokenizer(cfg.model.name, cfg.model.get("revision")).state())
    if has > needs and (own == meaning(datamodule.tokenizer.state()) if own else 0 < has - needs < has / 10):
        return
    what = f"{cfg.model.name} has {has:,} tokens and the data has {needs:,}"
    if has > needs or cfg.task in ("validate", "test"):
        fix = f"Give the data the tokenizer of the model: datamodule=text datamodule.tokenizer={cfg.model.name}"
        raise UserError(what, "datamodule", fix)
    if "_target_" in cfg.adapter:
        fix = f"Give the data the tokenizer of the model: datamodule.tokenizer={cfg.model.name}"
        raise UserError(f"{what}, and an adapter learns no new ones", "datamodule", fix)
    gpt.grow_vocabulary(needs)
    console.print(f"note: {what}; the model learns the others", markup=False)


def loaded_model(model: DictConfig, file: Path, content: dict[str, Any]) -> GPT:
    """The GPT of a checkpoint, of a section's class and with its dropout; cropped to its block_size, if it has one."""
    ours = content[KEY]
    before = {**ours["gpt"], "name": ours["config"].get("model", {}).get("name")}
    left_open = [name for name in model if is_pretrained(model) and model[name] is None]
    compared = [name for name in model if name in before and name not in ("dropout", "block_size", *left_open)]
    lines = [f"{n!s}: {before[n]} in the checkpoint, {model[n]} now" for n in compared if model[n] != before[n]]
    if lines:
        what = f"the weights of {file} are of another model: {'; '.join(lines)}"
        raise CheckpointError(what, "checkpoint", "Leave out what differs: a run starts with the checkpoint's model.")
    changed = {} if model.get("dropout") is None else {"dropout": model.dropout}
    parts, _ = restore_parts({**content, KEY: {**ours, "gpt": {**ours["gpt"], **changed}}}, gpt_maker(model))
    gpt: GPT = parts["gpt"]
    if model.get("block_size") is not None:
        try:
            gpt.crop_block_size(model.block_size)
        except UserError as error:
            raise locate(error, model, "model") from error
    return gpt


def start_adapter(cfg: DictConfig, gpt: GPT, start: Start | None) -> GPT:
    """The GPT with the config's adapter; one that a checkpoint has and the config hasn't is merged.

    Raises UserError where there is nothing to adapt, CheckpointError where the checkpoint has another adapter.
    """
    node, known = cfg.adapter, adapter_of(gpt)
    if "_target_" not in node:
        return merge_adapter(gpt)
    if known is not None:
        settings = known["settings"].items()
        lines = [f"{n}: {v} in the checkpoint, {node[n]} now" for n, v in settings if n in node and v != node[n]]
        if lines:
            fix = "Leave out what differs, or merge it first: task=export checkpoint=RUN output=FOLDER."
            raise CheckpointError(f"the checkpoint has another adapter: {'; '.join(lines)}", "adapter", fix)
        return gpt
    base: dict[str, Any] = {}
    if start is not None:
        base["checkpoint"] = str(start.file.absolute())
    elif is_pretrained(cfg.model):
        there = Path(cfg.model.name).expanduser()
        base = {"name": str(there.absolute()) if there.exists() else cfg.model.name, "revision": cfg.model.revision}
    else:
        fix = "Choose a pretrained model, such as model=gpt2-pretrained, or give checkpoint=RUN."
        raise UserError("an adapter needs weights that it adapts", "adapter", fix)
    adapted: GPT = build(node, "adapter", gpt=gpt, base=base)
    return adapted


def start_system(system: LanguageModel, start: Start) -> None:
    """Load what a LightningModule has beside its GPT, unless the checkpoint's is of another class."""
    if start.content[KEY].get("system", class_name(LanguageModel)) == class_name(type(system)):
        load_rest(system, start.content["state_dict"], system.strict_loading)
