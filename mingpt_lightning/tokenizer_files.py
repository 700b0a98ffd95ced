"""Files of a tokenizer, in Hugging Face's or OpenAI's layout: one tokenizer.json, and the ids of special tokens.

What transformers takes from other files beside it is put into that tokenizer.json: added tokens, a space or a token
before every text. A "backend" here is a tokenizer of the `tokenizers` library. Source: transformers 5,
`PreTrainedTokenizerBase.from_pretrained` and `GPT2Tokenizer`.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mingpt_lightning.errors import CheckpointError, ResourceError, UserError
from mingpt_lightning.hub import Repository, damage, read_json
from mingpt_lightning.text import unicode

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

SPECIAL = ("bos", "eos", "pad", "unk")
"""What a special token is for: a beginning, an end, filling up, and what the vocabulary lacks."""

END_OF_TEXT = "<|endoftext|>"

OTHERS = {
    "vocab.txt": "a WordPiece vocabulary",
    "spiece.model": "a SentencePiece model",
    "tokenizer.model": "a SentencePiece model",
    "sentencepiece.bpe.model": "a SentencePiece model",
}
"""Files of tokenizers that the `tokenizers` library doesn't read by itself."""

CONVERT = 'In Python: transformers.AutoTokenizer.from_pretrained("{name}").save_pretrained("FOLDER") writes one.'

PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = {byte: byte for byte in PRINTABLE} | dict(enumerate(sorted({*range(256)} - {*PRINTABLE}), 256))
"""The byte behind each character in which GPT-2 writes its vocabulary: "Ġ" (U+0120) is a space."""


class TokenizerFiles(NamedTuple):
    """The content of a tokenizer.json, ids of special tokens under config.json's names, and Jinja's chat template."""

    content: str
    special_tokens: dict[str, Any]
    chat_template: str | None = None


def read_files(name: str | Path, revision: str | None = None) -> TokenizerFiles:
    """The tokenizer of a hub id, a folder or a tokenizer.json.

    Of several files that give an id, the first of these counts: generation_config.json, config.json,
    special_tokens_map.json, tokenizer_config.json. Raises CheckpointError when a file is missing, damaged or of a kind
    that isn't read, and what `Repository` raises.
    """
    if Path(name).expanduser().is_file() and revision is None:
        return TokenizerFiles(read_content(Path(name).expanduser()), {})
    repository = Repository(name, revision, "tokenizer")
    settings = optional(repository, "tokenizer_config.json")
    names = optional(repository, "special_tokens_map.json")
    path = repository.find("tokenizer.json", "vocab.json", "encoder.json")
    if path is None:
        raise missing(repository)
    if path.name == "tokenizer.json":
        backend = load_backend(read_content(path))
    else:
        backend = from_vocabulary(path, repository.require("merges.txt", "vocab.bpe"), {**settings, **names})
    for number, token in added_tokens(repository, settings):
        add(backend, token, number, repository.name)
    ids = [optional(repository, "generation_config.json"), optional(repository, "config.json")]
    special = special_ids(backend, ids, [names, settings])
    if settings.get("add_prefix_space"):
        add_prefix_space(backend)
    if settings.get("add_bos_token") and "bos_token_id" in special:
        add_before(backend, special["bos_token_id"])
    return TokenizerFiles(backend.to_str(), special, read_chat_template(repository, settings))


def read_chat_template(repository: Repository, settings: dict[str, Any]) -> str | None:
    """The chat template of a repository: of several, the one called default."""
    with suppress(ResourceError):
        if path := repository.find("chat_template.jinja"):
            return read_content(path)
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def optional(repository: Repository, name: str) -> dict[str, Any]:
    """The object in a JSON file, empty where there is none, or none in the cache of a machine without a network."""
    with suppress(ResourceError):
        if path := repository.find(name):
            return read_json(path)
    return {}


def read_content(path: Path) -> str:
    """The content of a tokenizer.json. Raises CheckpointError when it can't be read."""
    if what := damage(path):
        raise CheckpointError(f"{path} cannot be read: it {what}", "tokenizer", "Download it again.")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", "tokenizer", "Download it again.") from error


def missing(repository: Repository) -> CheckpointError:
    """The error for a folder without a tokenizer that can be read, which names the one that it has."""
    for name, kind in OTHERS.items():
        if repository.find(name) is not None:
            what = f"{repository.name} has {kind} ({name}) and no tokenizer.json"
            return CheckpointError(what, "tokenizer", CONVERT.format(name=repository.name))
    what = f"{repository.name} holds no tokenizer.json or vocab.json or encoder.json"
    return CheckpointError(what, "tokenizer", "Name a folder in Hugging Face's layout, or a hub id.")


def from_vocabulary(vocabulary: Path, merges: Path, settings: dict[str, Any]) -> "Backend":
    """The backend of vocab.json and merges.txt. Raises CheckpointError, naming the file that is damaged or cut off.

    settings: those that may name special tokens, which no merge makes.
    """
    from tokenizers import models

    known = read_json(vocabulary)
    if not all(type(token) is int for token in known.values()):
        raise CheckpointError(f"{vocabulary} is not a vocabulary", "tokenizer", "Download it again.")
    pairs = [line.split(" ") for line in read_content(merges).lstrip("\ufeff").splitlines() if line.strip()]
    pairs = pairs[pairs[:1] != [] and pairs[0][0].startswith("#version") :]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2 or not {*pair, "".join(pair)} <= known.keys():
            what = f"{merges} has a merge {number:,} of tokens that {vocabulary.name} lacks: {' '.join(pair)[:60]!r}"
            raise CheckpointError(what, "tokenizer", "Download both files again.")
    made = {"".join(pair) for pair in pairs} | {text for text in known if len(text) == 1}
    if cut := sorted(
        {*known} - made - {*special_names(settings)} - {*filter(looks_special, known)}, key=known.__getitem__
    ):
        what = f"{merges} is cut off: no merge makes {len(cut):,} tokens of {vocabulary.name}, such as {cut[0]!r}"
        raise CheckpointError(what, "tokenizer", "Download both files again.")
    return byte_level(models.BPE(known, [(left, right) for left, right in pairs]))


def looks_special(text: str) -> bool:
    """Whether a token of a vocabulary is written as special ones are: <s>, <|endoftext|>, [PAD]."""
    return re.fullmatch(r"<[^\s<>]+>|\[[A-Z_0-9]+\]", text) is not None


def special_names(settings: dict[str, Any]) -> Iterator[str]:
    """The special tokens that tokenizer_config.json or special_tokens_map.json names."""
    values = [settings.get(f"{role}_token") for role in SPECIAL]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = settings.get(name) or []
        values += more.values() if isinstance(more, dict) else more
    for value in values:
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            yield text


def added_tokens(repository: Repository, settings: dict[str, Any]) -> Iterator[tuple[int, Any]]:
    """The tokens that the files add to the vocabulary, by their ids."""
    from tokenizers import AddedToken

    given = settings.get("added_tokens_decoder") or {
        number: {"content": text} for text, number in optional(repository, "added_tokens.json").items()
    }
    try:
        for number in sorted(given, key=int):
            options = {name: value for name, value in given[number].items() if name not in ("__type", "id")}
            special = options.pop("special", True)
            yield int(number), AddedToken(**options, special=special)
    except (TypeError, ValueError, AttributeError) as error:
        what = f"the added tokens of {repository.name} cannot be read: {error}"
        raise CheckpointError(what, "tokenizer", "Download tokenizer_config.json again.") from error


def add(backend: "Backend", token: Any, number: int, name: str) -> None:
    """Add a token to a backend. Raises CheckpointError where it would get another id than the files say."""
    (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    if (found := backend.token_to_id(token.content)) != number:
        what = f"{name} gives {token.content!r} the id {number}, and its vocabulary {found}"
        raise CheckpointError(what, "tokenizer", "Correct added_tokens.json or tokenizer_config.json.")


def special_ids(backend: "Backend", ids: list[dict[str, Any]], names: list[dict[str, Any]]) -> dict[str, Any]:
    """The ids of special tokens, by config.json's names for them. What the vocabulary lacks is passed over.

    ids, names: the objects of files that give ids and of those that give texts, first comes first.
    """
    found: dict[str, Any] = {}
    for role in SPECIAL:
        key = f"{role}_token_id"
        for given in (content.get(key) for content in ids):
            numbers = given if isinstance(given, list) else [given]
            if numbers and all(type(number) is int and backend.id_to_token(number) is not None for number in numbers):
                found.setdefault(key, given if len(numbers) > 1 else numbers[0])
        for content in names:
            for text in special_names({f"{role}_token": content.get(f"{role}_token")}):
                if (number := backend.token_to_id(text)) is not None:
                    found.setdefault(key, number)
    return found


def add_before(backend: "Backend", token: int) -> None:
    """Have a backend put a token before every text that it encodes with special tokens."""
    from tokenizers import processors

    text = backend.id_to_token(token)
    backend.post_processor = processors.TemplateProcessing(single=[text, "$A"], special_tokens=[(text, token)])


def add_prefix_space(backend: "Backend") -> None:
    """Have a byte-level backend put a space before a text that begins without one."""
    parts = json.loads(backend.to_str())
    before = parts["pre_tokenizer"] or {}
    for step in before.get("pretokenizers", [before]):
        if "add_prefix_space" in step:
            step["add_prefix_space"] = True
    backend.pre_tokenizer = load_backend(json.dumps(parts)).pre_tokenizer


def load_backend(content: str) -> "Backend":
    """The backend of a tokenizer.json, without truncation and padding. Raises UserError for anything else."""
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_str(unicode(content, "tokenizer"))
    except Exception as error:  # tokenizers raises nothing more special
        raise UserError(f"not a tokenizer.json: {error}", "tokenizer", "Give one that tokenizers wrote.") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def byte_level(model: Any) -> "Backend":
    """A backend that applies a model's merges to the UTF-8 bytes of GPT-2's pre-tokens."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def is_byte_level(content: str) -> bool:
    """Whether a tokenizer.json is byte-level BPE that is deterministic and strips no spaces."""
    parts = json.loads(content)
    steps = (parts["pre_tokenizer"] or {}).get("pretokenizers", [parts["pre_tokenizer"] or {}])
    return (
        parts["model"]["type"] == "BPE"
        and not parts["model"]["dropout"]
        and any(step.get("type") == "ByteLevel" for step in steps)
        and not any(token["lstrip"] or token["rstrip"] for token in parts["added_tokens"])
    )
