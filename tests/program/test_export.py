"""task=export, and transformers reads what it writes."""

import contextlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mingpt_lightning import GPT, BPETokenizer, CharTokenizer, LanguageModel
from tests.common import CHARS, PRETRAINED, SMALL, Cli, MakeGPT, summary
from tests.gpt2_files import linear

FIT = (*SMALL, "trainer.max_steps=2", "trainer.val_check_interval=1")


@pytest.mark.usefixtures("book")
def test_a_run_is_exported_and_read_again(cli: Cli) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert cli("run_dir=run", *CHARS, "datamodule.path=book.txt", *FIT)[0] == 0
    assert cli("task=export", "checkpoint=run", "output=folder")[:2] == (0, "")
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained("folder"), AutoTokenizer.from_pretrained("folder")
    system = LanguageModel.load_from_checkpoint("run")
    assert isinstance(system.tokenizer, CharTokenizer)
    tokens = torch.tensor([tokenizer("the cat\n").input_ids])
    assert tokens.tolist() == [system.tokenizer.encode("the cat\n")]
    torch.testing.assert_close(theirs(tokens).logits, system.gpt(tokens), atol=1e-5, rtol=0)
    text = cli("task=generate", "checkpoint=run", "prompt=the cat", "max_new_tokens=9")[1]
    assert cli("task=generate", PRETRAINED[0], "model.name=folder", "prompt=the cat", "max_new_tokens=9")[1] == text
    code, _, err = cli("task=export", "checkpoint=run", "output=folder")
    assert code == 2
    assert "folder is not an empty folder" in err
    assert cli("task=export", "checkpoint=run")[0] == 2


@pytest.mark.parametrize("task", ["adder", "sort"])
def test_a_task_with_its_own_notation_is_exported_without_a_tokenizer(cli: Cli, task: str) -> None:
    assert cli(f"datamodule={task}", "run_dir=run", *FIT)[0] == 0
    code, _, err = cli("task=export", "checkpoint=run", "output=folder")
    assert code == 0
    assert "exported    folder, float32, without a tokenizer: transformers has none for this notation\n" in err
    assert "upload      hf upload USER/NAME folder, or task=push repo=USER/NAME instead\n" in err
    assert not Path("folder/tokenizer.json").exists()
    data = front_matter("folder")
    (model,) = data["model-index"]
    found = {metric["name"]: metric["value"] for result in model["results"] for metric in result["metrics"]}
    metrics = summary()["metrics"]
    assert found == {name: metrics[name] for name in metrics if name.startswith(("val/", "test/"))} != {}
    assert {result["dataset"]["name"] for result in model["results"]} == {task}
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    run_snippet("folder")


def front_matter(folder: str) -> dict[str, Any]:
    """What stands between the lines of dashes of a model card."""
    card = Path(folder, "README.md").read_text()
    assert "`hf upload USER/NAME .`" in card
    return yaml.safe_load(card.split("---\n")[1])


def run_snippet(folder: str) -> str:
    """Run the code of a model card as it stands, in its folder; returns what it prints."""
    code = Path(folder, "README.md").read_text().split("```python\n")[1].split("```")[0]
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, {})
    return out.getvalue()


@pytest.mark.parametrize("kind", ["characters", "bpe", "bpe without special tokens"])
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.usefixtures("cli")
def test_transformers_generates_from_every_export(make_gpt: MakeGPT, bpe: BPETokenizer, kind: str) -> None:
    from transformers import pipeline

    backend = json.loads(bpe.arguments["tokenizer"])
    plain = BPETokenizer(json.dumps(backend | {"added_tokens": []}))
    tokenizer = {"characters": CharTokenizer("\n aehtc"), "bpe": bpe}.get(kind, plain)
    gpt = make_gpt(tokenizer.vocab_size, block_size=16)
    gpt.save_pretrained("folder", tokenizer)
    assert len(run_snippet("folder")) > 1
    generate = pipeline("text-generation", model="folder", do_sample=False)
    (whole,) = generate("the cat")  # as far as the positions go
    tokens = tokenizer.encode("the cat")
    assert whole["generated_text"] == tokenizer.decode(gpt.generate(torch.tensor([tokens]), 16 - len(tokens),
                                                                    temperature=0)[0].tolist())  # fmt: skip
    if kind != "bpe":
        assert "generate.tokenizer.pad_token_id = 0" in Path("folder/README.md").read_text()
        generate.tokenizer.pad_token_id = 0
    prompts = ["the cat ate", "a\n", "the"]
    together = generate(prompts, batch_size=3, max_new_tokens=4)
    assert [text for (row,) in together for text in row.values()] == [
        generate(prompt, max_new_tokens=4)[0]["generated_text"] for prompt in prompts
    ]


@pytest.mark.parametrize(
    ("card", "known"),
    [("---\nlicense: mit\nbase_model: a/b\n---\n", {"license": "mit", "base_model": "a/b"}), ("---\n[: :\n---\n", {})],
)
def test_what_a_folders_card_says_goes_on(cli: Cli, make_gpt: MakeGPT, card: str, known: dict[str, str]) -> None:
    make_gpt(60).save_pretrained("in", CharTokenizer("".join(map(chr, range(40, 100)))))
    Path("in/README.md").write_text(card)
    code, _, err = cli("task=export", PRETRAINED[0], "model.name=in", "output=out")
    assert code == 0, err
    assert front_matter("out").items() >= known.items()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["characters", "bpe"])
@pytest.mark.usefixtures("cli")
def test_lm_eval_measures_an_export(make_gpt: MakeGPT, bpe: BPETokenizer, kind: str) -> None:
    pytest.importorskip("lm_eval.models.huggingface", reason="needs lm_eval[hf]", exc_type=ImportError)
    tokenizer = {"characters": CharTokenizer("\n aehtc"), "bpe": bpe}[kind]
    gpt = make_gpt(tokenizer.vocab_size, block_size=16)
    gpt.save_pretrained("folder", tokenizer)
    text = "the cat ate the"
    Path("rows.jsonl").write_text(json.dumps({"text": text}) + "\n")
    task = {
        "task": "cats",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    Path("cats.yaml").write_text(json.dumps(task))
    start = [] if kind == "bpe" else [f",prefix_token_id={tokenizer.start_token}"]  # as docs/generation.md says
    command = ["-m", "lm_eval", "--model", "hf", "--model_args", "".join(["pretrained=folder", *start])]
    command += ["--tasks", "cats", "--include_path", ".", "--device", "cpu", "--output_path", "out.json"]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(Path("hf").absolute())}
    run = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (result,) = Path().glob("out*.json")
    tokens = torch.tensor([[tokenizer.start_token, *tokenizer.encode(text)]])
    likelihoods = gpt(tokens[:, :-1]).log_softmax(-1).gather(-1, tokens[:, 1:, None])
    bits = -likelihoods.sum().item() / math.log(2) / len(text)
    assert json.loads(result.read_text())["results"]["cats"]["bits_per_byte,none"] == pytest.approx(bits, abs=1e-4)


def save_as_mingpt(gpt: GPT, path: Path) -> None:
    """What minGPT leaves of a training: its weights, and the name of its model in a config.json."""
    gpt.save_pretrained("gpt2")
    state = linear(load_file("gpt2/model.safetensors")) | {"lm_head.weight": torch.zeros(gpt.config["vocab_size"], 48)}
    path.parent.mkdir()
    torch.save(state, path)
    path.with_name("config.json").write_text(json.dumps({"model": {"model_type": "gpt-nano", "n_head": None}}))


def test_a_checkpoint_of_another_program_becomes_a_folder(cli: Cli, make_gpt: MakeGPT) -> None:
    save_as_mingpt(make_gpt(60, block_size=16, n_layer=2, n_head=3, n_embd=48), Path("out/model.pt"))
    code, _, err = cli("task=export", "checkpoint=out/model.pt", "output=folder")
    assert code == 0, err
    assert "note: out/model.pt is read as the weights of minGPT, activation gelu_new" in err
    assert "exported    folder, float32, without a tokenizer: tokenizer= gives it one" in err
    assert json.loads(Path("folder/config.json").read_text())["tie_word_embeddings"] is False
    tokens = torch.arange(12)[None]
    assert GPT.from_pretrained("folder").hidden(tokens).equal(GPT.from_pretrained("gpt2").hidden(tokens))
    for task in ("generate", "test"):
        code, _, err = cli(f"task={task}", "checkpoint=out/model.pt")
        assert (code, len(err.splitlines())) == (3, 1), err
        assert "bare weights (a state_dict)" in err
        assert "task=export" in err
    code, _, err = cli("task=generate", "checkpoint=gpt2/model.safetensors")
    assert (code, "Use model=gpt2-pretrained model.name=gpt2." in err) == (3, True), err
    Path("gpt2/config.json").unlink()
    code, _, err = cli("task=generate", "checkpoint=gpt2/model.safetensors")
    assert (code, "is not a checkpoint of mingpt_lightning but weights alone (safetensors)" in err) == (3, True), err


def test_an_export_without_the_number_of_heads_says_what_to_type(cli: Cli, make_gpt: MakeGPT) -> None:
    save_as_mingpt(make_gpt(60, block_size=16, n_layer=2, n_head=4, n_embd=48), Path("out/model.pt"))
    Path("out/config.json").unlink()
    code, _, err = cli("task=export", "checkpoint=out/model.pt", "output=folder")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "how many heads its attention of 48 channels has (checkpoint)" in err
    typed = "model=gpt2-pretrained model.name=out/model.pt model.n_head=NUMBER"
    assert f"Use {typed}, as it was trained." in err
    options = typed.replace("NUMBER", "4").split()
    code, _, err = cli("task=export", *options, "model.activation=gelu", "output=folder")
    assert code == 0, err
    assert (GPT.from_pretrained("folder").config["n_head"], GPT.from_pretrained("folder").config["activation"]) == (
        4,
        "gelu",
    )
    code, _, err = cli("task=generate", *options)
    assert (code, "the model has no tokenizer" in err, "task=export tokenizer=NAME" in err) == (3, True, True), err


def test_an_export_may_be_given_a_tokenizer(cli: Cli, make_gpt: MakeGPT) -> None:
    save_as_mingpt(make_gpt(60, block_size=16, n_layer=2, n_head=3, n_embd=48), Path("out/model.pt"))
    CharTokenizer("".join(map(chr, range(40, 100)))).save("sixty")
    CharTokenizer("".join(map(chr, range(40, 101)))).save("more")
    code, _, err = cli("task=export", "checkpoint=out/model.pt", "tokenizer=more", "output=folder")
    assert (code, "the tokenizer has 61 tokens, and the model 60 (tokenizer)" in err) == (2, True), err
    assert not Path("folder").exists()
    assert cli("task=export", "checkpoint=out/model.pt", "tokenizer=sixty", "output=folder")[0] == 0
    code, text, err = cli("task=generate", PRETRAINED[0], "model.name=folder", "prompt=ABC", "max_new_tokens=3")
    assert (code, text[:3]) == (0, "ABC"), err
    code, _, err = cli("task=export", "checkpoint=out/model.pt", "tokenizer=./none", "output=other")
    assert (code, "./none does not exist (tokenizer)" in err) == (3, True), err


def test_damaged_files_are_called_what_they_are(cli: Cli) -> None:
    Path("ckpt.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    for task in (("task=export", "output=folder"), ("task=generate",), ("task=test",), ()):
        code, _, err = cli(*task, "checkpoint=ckpt.pt")
        assert (code, len(err.splitlines())) == (3, 1), err
        assert "is a pointer of git-lfs" in err
        assert "(checkpoint)" in err


def test_a_model_that_does_not_fit_into_float16_is_refused(cli: Cli, make_gpt: MakeGPT) -> None:
    gpt = make_gpt(60)
    with torch.no_grad():
        gpt.norm.weight[0] = 1e6
    gpt.save_pretrained("in", CharTokenizer("".join(map(chr, range(40, 100)))))
    code, _, err = cli("task=export", *PRETRAINED[:1], "model.name=in", "dtype=float16", "output=out")
    assert (code, "norm.weight holds NaN or infinity in float16 (dtype)" in err) == (2, True), err
    assert not Path("out").exists()


@pytest.mark.usefixtures("book")
def test_training_goes_on_from_a_run_that_began_with_a_pretrained_model(cli: Cli, saved_model: tuple) -> None:
    shutil.copytree(saved_model[0], "gpt")
    data = ("datamodule=text", "datamodule.tokenizer=gpt", "datamodule.path=book.txt", "datamodule.block_size=16")
    steps = ("trainer.max_steps=2", "trainer.val_check_interval=1", "trainer.limit_test_batches=1")
    assert cli(*PRETRAINED, *data, *steps, "run_dir=one")[0] == 0
    code, _, err = cli(*PRETRAINED, *data, *steps, "run_dir=two", "checkpoint=one")
    assert code == 0, err


@pytest.mark.parametrize(
    ("before", "option", "after"),
    [("float16", "auto", "float16"), ("float32", "auto", "float32"), ("float16", "float32", "float32"),
     ("float32", "bfloat16", "bfloat16")],
)  # fmt: skip
def test_the_dtype_of_an_export(cli: Cli, make_gpt: MakeGPT, before: str, option: str, after: str) -> None:
    make_gpt(60).to(getattr(torch, before)).save_pretrained("in", CharTokenizer("".join(map(chr, range(40, 100)))))
    code, _, err = cli("task=export", "model=gpt2-pretrained", "model.name=in", f"dtype={option}", "output=out")
    assert code == 0, err
    assert {str(weight.dtype) for weight in load_file("out/model.safetensors").values()} == {f"torch.{after}"}
    assert json.loads(Path("out/config.json").read_text())["dtype"] == after
    code, _, err = cli("task=export", "model=gpt2-pretrained", "model.name=in", "dtype=float63", "output=more")
    assert (code, "Did you mean 'float32'" in err) == (2, True)


def test_an_imagegpt_goes_out_with_its_colours(cli: Cli) -> None:
    from projects.pixels.datamodule import PixelTokenizer

    tokenizer = PixelTokenizer(palette=[[0, 0, 0], [255, 255, 255]], size=[3, 3])
    own = {"n_output": 2, "tie_embeddings": False, "norm": "rmsnorm"}
    GPT(3, 9, n_layer=1, n_head=2, n_embd=8, **own).save_pretrained("in", tokenizer)  # type: ignore[arg-type]
    code, _, err = cli("task=export", PRETRAINED[0], "model.name=in", "output=out")
    assert code == 0, err
    assert "exported    out, float32, with its colours\n" in err
    assert Path("out/preprocessor_config.json").read_bytes() == Path("in/preprocessor_config.json").read_bytes()
