"""text: files of every form and encoding become documents, or are refused by name."""

import bz2
import gzip
import json
import lzma
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from mingpt_lightning import UserError
from mingpt_lightning.bpe import BPETokenizer
from mingpt_lightning.text import language_reference
from projects.text.datamodule import TextDataModule
from tests.common import FOX, documents_of


def test_a_file_is_a_document(book: Path, tokenizer: str, bpe: BPETokenizer) -> None:
    data = TextDataModule(str(book), tokenizer=tokenizer, block_size=8)
    assert data.tokens.tolist() == [*bpe.encode(FOX), bpe.end_of_text]
    assert data.tokens.dtype == np.uint16
    assert (data.vocab_size, data.tokenizer.arguments) == (600, bpe.arguments)


def test_without_a_path_it_is_the_language_reference(tokenizer: str) -> None:
    assert documents_of(TextDataModule(tokenizer=tokenizer)) == language_reference()


def test_globs_and_lists(tmp_path: Path, tokenizer: str) -> None:
    for name in ("b/c/2.txt", "b/1.txt", "a/3.md", "a/[x].txt", "b/empty.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("" if "empty" in name else f"this is the file {name}, a long one" * 5)

    def names(*paths: str) -> list[str]:
        data = TextDataModule([str(tmp_path / path) for path in paths], tokenizer=tokenizer, block_size=2)
        return [re.findall(r"file (\S+),", document)[0] for document in documents_of(data)]

    assert names("**/*.txt") == ["a/[x].txt", "b/1.txt", "b/c/2.txt"]
    assert names("b/*") == ["b/1.txt"]
    assert names("b/**") == ["b/1.txt", "b/c/2.txt"]
    assert names("b/c/2.txt", "a/*") == ["b/c/2.txt", "a/3.md", "a/[x].txt"]
    assert names("b/1.txt", "b/**/*.txt") == ["b/1.txt", "b/c/2.txt"]  # each file once
    assert names("a/[x].txt") == ["a/[x].txt"]
    with pytest.raises(UserError, match=r"empty\.txt is empty .*path"):
        names("b/1.txt", "b/empty.txt")


def test_a_document_per_line(tmp_path: Path, tokenizer: str) -> None:
    texts = ["one\ntwo " * 20, "é🤗\u2028x " * 20, "", "  last"]
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"n": 1, "body": text}, ensure_ascii=bool(i)) for i, text in enumerate(texts)]
    path.write_text("\ufeff" + "\r\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:]), encoding="utf-8")
    data = TextDataModule(str(path), tokenizer=tokenizer, text_field="body", block_size=2)
    assert documents_of(data) == [text for text in texts if text]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"not JSON: .*rows\.jsonl:3\)"),
        ("[" * 100_000, r"not JSON: .*rows\.jsonl:3\)"),
        ('{"text": "x"} {"text": "y"}', r"not JSON: .*rows\.jsonl:3\)"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, tokenizer: str, line: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(UserError, match=message) as caught:
        TextDataModule(str(path), tokenizer=tokenizer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": None}, "it is null"),
        ({"text": 3.5}, "it is a number"),
        ({"text": ["a"]}, "it is a list"),
        ({"text": "a\ud800"}, "it has a lone surrogate"),
        ({"text": ""}, "it is empty"),
        ({"body": "x", "id": 3}, "it is missing; there is 'body', 'id'"),
        ({"\ufefftext": "x"}, r"it is missing; there is '\ufefftext'"),
        (3, "it is missing; the row is a number"),
    ],
)
def test_rows_without_a_text_are_left_out_and_counted(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str], row: object, reason: str
) -> None:
    rows = [{"text": "one " * 99}, row, {"text": "two " * 99}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert documents_of(TextDataModule(str(path), tokenizer=tokenizer, block_size=2)) == ["one " * 99, "two " * 99]
    said = " ".join(capsys.readouterr().err.split())
    assert f"1 of 3 rows of {path} have no text under 'text' and are left out: in line 2 {reason}" in said
    path.write_text((json.dumps(row) + "\n") * 2)
    with pytest.raises(
        UserError, match=rf"no row of .*rows\.jsonl has text under 'text': in line 1 {re.escape(reason)} "
    ):
        TextDataModule(str(path), tokenizer=tokenizer, block_size=2)


def test_a_wrong_field_is_refused_early(tmp_path: Path, tokenizer: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"body": "x"}\n' * 1000 + "no JSON, never reached")
    with pytest.raises(UserError, match=r"none of the first 1,000 rows .* has text under 'text': .*there is 'body'"):
        TextDataModule(str(path), tokenizer=tokenizer, block_size=2)


ONE, TWO = "one\ntwo " * 20, 'é🤗, "x" ' * 20
ROWS = [{"id": 1, "text": ONE}, {"id": 2, "text": TWO}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = "\r\n".join(["id,text", *('{},"{}"'.format(row["id"], row["text"].replace('"', '""')) for row in ROWS), ""])
FORMS = {
    "rows.json": json.dumps(ROWS),
    "pretty.json": json.dumps(ROWS, indent=2),
    "texts.json": json.dumps([ONE, TWO]),
    "lines.json": LINES,
    "rows.ndjson": LINES,
    "strings.jsonl": f"{json.dumps(ONE)}\n{json.dumps(TWO)}\n",
    "rows.csv": CSV,
    "mark.csv": "\ufeff" + CSV,
    "rows.tsv": "text\tid\n" + "".join('"{}"\t{}\n'.format(r["text"].replace('"', '""'), r["id"]) for r in ROWS),
    "semicolons.csv": CSV.replace("id,text", "id;text").replace('1,"', '1;"').replace('2,"', '2;"'),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".xz", ".zst"])
def test_rows_come_in_many_forms(tmp_path: Path, tokenizer: str, name: str, ending: str) -> None:
    path = tmp_path / f"{name}{ending}"
    path.write_bytes(COMPRESSIONS[ending](FORMS[name].encode()))
    assert documents_of(TextDataModule(str(path), tokenizer=tokenizer, block_size=2)) == [ONE, TWO]


def zstd(content: bytes) -> bytes:
    """Two frames, one after the other, as pzstd and `cat` make them."""
    import pyarrow

    frames = [pyarrow.compress(part, codec="zstd", asbytes=True) for part in (content[:9], content[9:])]
    return b"".join(bytes(frame) for frame in frames)


COMPRESSIONS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("ending", COMPRESSIONS)
def test_a_compressed_text_is_read_whatever_it_is_called(tmp_path: Path, tokenizer: str, ending: str) -> None:
    for name in (f"book.txt{ending}", "book", "book.md"):
        path = tmp_path / name
        path.write_bytes(COMPRESSIONS[ending](FOX.encode()))
        assert documents_of(TextDataModule(str(path), tokenizer=tokenizer, block_size=2)) == [FOX]
    if ending:
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(UserError, match=r"book\.md is damaged: .* \(path\)\. Fetch it again\."):
            TextDataModule(str(path), tokenizer=tokenizer, block_size=2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", "id,body\n1,x\n", r"no column of text 'text'; its own: 'id', 'body' \(text_field\)"),
        ("rows.csv", "id,text\n1,one, two\n", r"3 columns, and 2 in the header \(.*rows\.csv:2\)"),
        ("rows.csv", 'id,text\n1,"one\n2,two\n', r"not CSV: .*rows\.csv:3\)"),
        ("rows.json", "[1, 2", r"not JSON: .*rows\.json\)"),
        ("rows.json", "[]", r"rows\.json is empty"),
        ("rows.txt.json", '{"a": {"text": "x"}}', r"in line 1 it is missing; there is 'a' \(text_field\)"),
        ("rows.data", LINES, r"looks like JSON with a text under 'text' \(path\)\. Rename it to \.jsonl"),
        ("rows", json.dumps(ROWS, indent=1), r"looks like JSON .* Rename it to \.json, or to \.txt"),
        ("rows.dat", CSV, r"looks like CSV .* Rename it to \.csv, or to \.txt"),
        ("rows.docx", "PK\x03\x04", r"is a zip archive, as \.docx.* Unpack it"),
        ("rows.pdf", "%PDF-1.7", r"is a PDF .*pdftotext"),
        ("rows.bin", "a\0b", r"is no text: byte 1 is zero"),
        ("rows.pq", "PAR1", r"is a Parquet file .*Rename it to \.parquet"),
        ("rows.txt", "version https://git-lfs.github.com/spec/v1\noid", r"pointer of git-lfs"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, tokenizer: str, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        TextDataModule(str(tmp_path / name), tokenizer=tokenizer, block_size=2)
    assert "\n" not in str(caught.value)


def test_a_long_line_is_plain_text_whatever_it_holds(tmp_path: Path, tokenizer: str) -> None:
    text = "ACGT" * 50_000 + ", and that's all\n"
    (tmp_path / "dna").write_text(text)
    assert documents_of(TextDataModule(str(tmp_path / "dna"), tokenizer=tokenizer, block_size=2)) == [text]


def test_rows_are_read_as_they_stand_from_txt(tmp_path: Path, tokenizer: str) -> None:
    for content in (LINES, CSV):
        (tmp_path / "rows.txt").write_text(content, newline="")
        assert documents_of(TextDataModule(str(tmp_path / "rows.txt"), tokenizer=tokenizer, block_size=2)) == [content]


def test_a_nested_field(tmp_path: Path, tokenizer: str) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    rows = [{"data": {"text": ONE}}, {"data": None}, {"data": {"text": TWO}}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "flat.jsonl").write_text(json.dumps({"data.text": ONE + TWO, "data": {"text": "no"}}))
    for name, expected in (("rows.jsonl", [ONE, TWO]), ("rows.parquet", [ONE, TWO]), ("flat.jsonl", [ONE + TWO])):
        data = TextDataModule(str(tmp_path / name), tokenizer=tokenizer, text_field="data.text", block_size=2)
        assert documents_of(data) == expected


def test_parquet_has_a_document_per_row(tmp_path: Path, tokenizer: str) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    texts = [ONE, None, TWO, "", ONE]
    path = tmp_path / "rows.parquet"
    plain = arrow.array(texts)
    for column in (plain, plain.cast("large_string"), plain.cast(arrow.string_view()), plain.dictionary_encode()):
        parquet.write_table(arrow.table({"n": [1, 2, 3, 4, 5], "text": column}), path)
        data = TextDataModule(str(path), tokenizer=tokenizer, block_size=2)
        assert documents_of(data) == [ONE, TWO, ONE]
    for field in ("body", "n"):
        with pytest.raises(UserError, match=rf"no column of text '{field}'; its own: 'text' \(text_field\)"):
            TextDataModule(str(path), tokenizer=tokenizer, text_field=field)
    (tmp_path / "bad.parquet").write_text("no table")
    with pytest.raises(UserError, match=r"bad\.parquet cannot be read"):
        TextDataModule(str(tmp_path / "bad.parquet"), tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("encoding", "setting"),
    [("utf-16", None), ("utf-32", None), ("utf-8-sig", None), ("utf-16-le", "utf-16-le"), ("gb18030", "gb18030")],
)
def test_any_encoding(tmp_path: Path, tokenizer: str, encoding: str, setting: str | None) -> None:
    text = "naïve 日本語 🤗\n" * 99
    (tmp_path / "book.txt").write_bytes(text.encode(encoding))
    (tmp_path / "rows.jsonl").write_bytes(json.dumps({"text": text}, ensure_ascii=False).encode(encoding))
    for name in ("book.txt", "rows.jsonl"):
        data = TextDataModule(str(tmp_path / name), tokenizer=tokenizer, block_size=2, encoding=setting)
        assert documents_of(data) == [text]


def test_a_wrong_encoding_is_refused(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "book.txt").write_bytes("naïve. ".encode("cp1252") * 99)
    data = TextDataModule(str(tmp_path / "book.txt"), tokenizer=tokenizer, block_size=2, encoding="cp1252")
    assert documents_of(data) == ["naïve. " * 99]
    with pytest.raises(UserError, match=r"is not UTF-8: byte 2 \(encoding\)\. .*cp1252"):
        TextDataModule(str(tmp_path / "book.txt"), tokenizer=tokenizer)
    for name in ("cp1253x", "hex"):
        with pytest.raises(UserError, match=rf"there is no encoding '{name}' \(encoding\)"):
            TextDataModule(str(tmp_path / "book.txt"), tokenizer=tokenizer, encoding=name)
    for encoding in ("utf-16-le", "utf-16-be"):
        (tmp_path / "book.txt").write_bytes(FOX.encode(encoding))
        with pytest.raises(UserError, match=rf"looks like UTF-16 \(encoding\)\. Set encoding={encoding}\."):
            TextDataModule(str(tmp_path / "book.txt"), tokenizer=tokenizer)


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "rows.parquet").write_text("PAR1")
    with pytest.raises(UserError, match=r'pip install "mingpt-lightning\[parquet\]"'):
        TextDataModule(str(tmp_path / "rows.parquet"), tokenizer=tokenizer)


def test_what_cannot_be_read_is_refused(tmp_path: Path, book: Path, tokenizer: str, cache: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "empty.txt").touch()
    (tmp_path / "rows.jsonl").write_text('{"text": ""}')
    for path, message in [
        ("nowhere.txt", r"nowhere\.txt does not exist \(path\)"),
        ("*.rst", r"no file with text matches .*\*\.rst \(path\)"),
        (".", r"is a folder .*\*\*/\*\.txt"),
        ("empty.txt", r"empty\.txt is empty"),
        ("latin.txt", r"latin\.txt is not UTF-8: byte 0 \(encoding\)"),
        ("rows.jsonl", r"no row of .*rows\.jsonl has text under 'text': in line 1 it is empty"),
    ]:
        with pytest.raises(UserError, match=message):
            TextDataModule(str(tmp_path / path), tokenizer=tokenizer)
    with pytest.raises(UserError, match=r"path=\[\] names no file"):
        TextDataModule([], tokenizer=tokenizer)
    assert all(path.name == "files" for path in cache.iterdir())  # nothing half-made stays
