"""task=push, to a server that speaks the hub's HTTP interface: no repository of the hub itself is touched."""

import base64
import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import constants

from mingpt_lightning import GPT, CharTokenizer
from tests.common import Cli, MakeGPT

REPO = "someone/letters"

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of huggingface_hub 2.4's own call


class Hub(ThreadingHTTPServer):
    """A hub with repositories in memory: whether each is private, and its files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.private: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.writable = True


class Answer(BaseHTTPRequestHandler):
    """What the hub answers to the requests of an upload."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""

    def reply(self, content: Any = None, status: int = 200, **headers: str) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_any(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.requests.append(f"{self.command} {path}")
        if path.startswith("/objects/"):
            hub.objects[path.removeprefix("/objects/")] = body
            self.reply()
        elif not hub.writable:
            self.reply({"error": "you may not write here"}, 403)
        elif path == "/api/repos/create":
            given = json.loads(body)
            repo = f"{given['organization']}/{given['name']}"
            known = repo in hub.private
            hub.private.setdefault(repo, given["visibility"] == "private")
            self.reply({"url": f"{hub.endpoint}/{repo}"}, 409 if known else 200)
        elif path == f"/api/models/{REPO}":
            siblings = [{"rfilename": name} for name in hub.files]
            self.reply({"id": REPO, "private": hub.private[REPO], "sha": "0" * 40, "siblings": siblings})
        elif path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            modes = [(file["path"], file["path"].endswith(".safetensors")) for file in json.loads(body)["files"]]
            files = [
                {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
                for name, large in modes
            ]
            self.reply({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            upload = {"href": f"{hub.endpoint}/objects/"}
            objects = [
                {**given, "actions": {"upload": {"href": upload["href"] + given["oid"]}}}
                for given in json.loads(body)["objects"]
            ]
            self.reply({"transfer": "basic", "objects": objects})
        elif path.endswith("/commit/main"):
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    hub.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                if entry["key"] == "lfsFile":
                    hub.files[entry["value"]["path"]] = hub.objects[entry["value"]["oid"]]
            self.reply({"commitUrl": f"{hub.endpoint}/{REPO}/commit/{'0' * 40}", "commitOid": "0" * 40})
        else:
            self.reply({"error": f"{self.command} {path} is not known here"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub for this test, to which somebody is logged in."""
    server = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_1")
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def push(cli: Cli, make_gpt: MakeGPT) -> tuple[str, ...]:
    """A command that pushes a small model of letters."""
    make_gpt(26).save_pretrained("in", CharTokenizer("abcdefghijklmnopqrstuvwxyz"))
    return "task=push", "model=gpt2-pretrained", "model.name=in", f"repo={REPO}"


def test_what_is_pushed_is_read_again(cli: Cli, hub: Hub, push: tuple[str, ...]) -> None:
    code, out, err = cli(*push, "license=mit")
    assert (code, out) == (0, ""), err
    assert f"pushed      {hub.endpoint}/{REPO}, private: float32" in err
    assert hub.private == {REPO: True}
    Path("back").mkdir()
    for name, content in hub.files.items():
        Path("back", name).write_bytes(content)
    before, after = GPT.from_pretrained("in"), GPT.from_pretrained("back")
    assert all(a.equal(b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    card = Path("back/README.md").read_text()
    assert "license: mit\n" in card
    assert f"model='{REPO}'" in card
    assert hub.objects.keys() == {hashlib.sha256(hub.files["model.safetensors"]).hexdigest()}


def test_a_dry_run_sends_nothing(cli: Cli, hub: Hub, push: tuple[str, ...]) -> None:
    code, _, err = cli(*push, "dry_run=true")
    assert (code, hub.requests) == (0, [])
    assert f"would push  these files to {REPO}, private: float32" in err
    assert all(name in err for name in ("README.md, ", "config.json, ", "model.safetensors, ", "tokenizer.json, "))


def test_a_public_repository_is_asked_for(cli: Cli, hub: Hub, push: tuple[str, ...]) -> None:
    assert cli(*push, "private=false")[0] == 0
    assert hub.private == {REPO: False}
    hub.files.clear()
    code, _, err = cli(*push)
    assert code == 2
    assert f"error: {REPO} is public (repo). Give private=false, or another repository.\n" in err
    assert hub.files == {}


def test_a_card_that_is_there_is_kept(cli: Cli, hub: Hub, push: tuple[str, ...]) -> None:
    hub.private[REPO], hub.files["README.md"] = True, b"mine"
    code, _, err = cli(*push)
    assert (code, hub.files["README.md"]) == (0, b"mine")
    assert "the card there is kept" in err
    assert "config.json" in hub.files


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("repo=null",), "task=push needs a repository (repo). Give repo=USER/NAME."),
        (("repo=letters",), "repo=letters is not a repository of the hub (repo)"),
        (("repo='a b/c'",), "is not a repository of the hub (repo)"),
        (("private=perhaps",), "private=perhaps is not true or false"),
        (("dtype=float63",), "Did you mean 'float32'"),
    ],
)
def test_a_mistake_is_one_line(cli: Cli, push: tuple[str, ...], options: tuple[str, ...], message: str) -> None:
    code, _, err = cli(*push, *options)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert message in err


def test_who_may_not_write_is_told_to_log_in(
    cli: Cli, hub: Hub, push: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.writable = False
    code, _, err = cli(*push)
    assert code == 2
    assert f"the hub answers 403 for {REPO}: " in err
    assert "Run hf auth login, or set HF_TOKEN, as a user who may write there." in err
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    code, _, err = cli(*push)
    assert (code, f"cannot upload to {REPO}: " in err, "Traceback" in err) == (4, True, False), err
