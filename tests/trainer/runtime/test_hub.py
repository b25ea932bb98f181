"""Upload by the real client, in a process of its own, to a hub that lives on this machine."""

import base64
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from salon.errors import InvalidRequest
from trainer.denoising.pipelines.loading import load_pipeline
from trainer.runtime.hub import by_hand, reason_of

PUSH = """
import sys
from pathlib import Path
from trainer.runtime.hub import push
print(push(Path(sys.argv[1]), "me/it"))
"""


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as an upload of small files asks for."""

    def do_HEAD(self):
        owner = self.path.split("/")[1]
        code, status = {"gated": ("GatedRepo", 403), "none": ("RepoNotFound", 404)}.get(
            owner, ("EntryNotFound", 404)
        )
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers["Authorization"])
        if self.headers["Authorization"] != "Bearer hf_right":
            self.answer(401, {"error": "Invalid credentials in Authorization header"})
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer(200, {"url": f"{self.server.url}/me/it"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif self.path == "/api/models/me/it/preupload/main":
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self.answer(200, {"files": modes})
        elif self.path == "/api/models/me/it/commit/main":
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.files[entry["value"]["path"]] = content
            commit = {"commitUrl": f"{self.server.url}/me/it/commit/1", "commitOid": "1"}
            self.answer(200, {"success": True, "hookOutput": "", **commit})
        else:
            self.answer(404, {"error": self.path})

    def answer(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.created, server.files, server.tokens = [], {}, set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlibrary_name: diffusers\n---\n# it\n")
    (folder / "unet" / "weights.safetensors").write_bytes(bytes(range(256)))
    return folder


def push(folder, monkeypatch, endpoint, token):
    settings = {"HF_ENDPOINT": endpoint, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
    for name, value in {**settings, "HF_HUB_DISABLE_TELEMETRY": "1"}.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-c", PUSH, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_model_goes_to_the_hub_whole_under_the_token_of_the_environment(hub, model, monkeypatch):
    done = push(model, monkeypatch, hub.url, "hf_right")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.url}/me/it/commit/1"
    assert [(repo["organization"], repo["name"]) for repo in hub.created] == [("me", "it")]
    assert hub.tokens == {"Bearer hf_right"}
    assert set(hub.files) == {"README.md", "unet/weights.safetensors"}
    assert hub.files["unet/weights.safetensors"] == bytes(range(256))


def test_a_refused_upload_raises_and_leaves_the_model(hub, model, monkeypatch):
    done = push(model, monkeypatch, hub.url, "hf_wrong")
    assert done.returncode != 0
    assert "401" in done.stderr
    assert hub.files == {}
    assert sorted(path.name for path in model.iterdir()) == ["README.md", "unet"]


def test_the_command_to_do_it_by_hand():
    assert by_hand(Path("/runs/a/model"), "me/it") == "hf upload me/it /runs/a/model"
    assert by_hand(Path("/my runs/model"), "me/it") == "hf upload me/it '/my runs/model'"


@pytest.fixture
def asked(hub, tmp_path, monkeypatch):
    """Has this process load models from the hub of this machine, into an empty cache."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize(
    ("owner", "words"),
    [
        ("gated", "those alone who accepted its terms: .*set HF_TOKEN where the trainer runs"),
        ("none", "has no such model, or only for others"),
        ("other", r"of the hub has no model_index\.json, so that it is no pipeline of diffusers"),
    ],
)
def test_what_the_hub_refuses_is_told_in_words(asked, owner, words):
    with pytest.raises(InvalidRequest, match=f"model '{owner}/it' .*{words}"):
        load_pipeline(f"{owner}/it")


@pytest.mark.parametrize(
    ("offline", "why"), [(True, "HF_HUB_OFFLINE is set"), (False, "/huggingface.co cannot be")]
)
def test_a_hub_that_was_not_asked_is_told_as_that(monkeypatch, offline, why):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    try:
        try:
            raise LocalEntryNotFoundError("cannot find the requested files")
        except LocalEntryNotFoundError as error:
            raise OSError("it does not appear to have a file named model_index.json") from error
    except OSError as error:
        told = reason_of(error)
    assert f"not in the hub's cache ({constants.HF_HUB_CACHE}), and" in told
    assert why in told and "model_index.json" not in told
