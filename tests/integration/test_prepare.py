"""`prepare` against a stand-in for the Hugging Face hub: the few endpoints that its client uses, on this machine."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import logging
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lora_bench import train_sentencepiece

from hpo_cluster.errors import ConfigError
from hpo_cluster.objectives.lora.objective import LoraObjective
from hpo_cluster.objectives.lora.prepare import prepare
from hpo_cluster.record.layout import resources_dir

CHECKPOINT = resources_dir() / "bundle" / "village" / "checkpoint"
SHA = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_" + "stand" + "in" * 10
QUESTION = json.dumps({"query": "1 + 1 =", "gold": 0, "choices": ["2", "3"]}) + "\n"
ROWS = [{"instruction": "add", "input": "1 2", "output": "3"}] * 3


@dataclasses.dataclass
class Hub:
    """A hub with one model, and files by URL. `requests` are those it got, as (method, path)."""

    files: Path
    gated: bool = False
    granted: bool = True
    break_off: str = ""  # name of a file whose first download stops half way
    url: str = ""
    requests: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    ranges: list[str] = dataclasses.field(default_factory=list)

    def downloads(self) -> list[str]:
        return [path.rpartition("/")[2] for method, path in self.requests if method == "GET" and "/resolve/" in path]


def handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append((self.command, path))
            if path == "/data/alpaca.json":
                self.answer(200, json.dumps(ROWS).encode())
            elif path == "/data/page.json":
                self.answer(200, b"<html>")
            elif path == "/data/other.json":
                self.answer(200, b'[{"text": "no Alpaca"}]')
            elif path.startswith("/api/datasets/tiny/questions"):
                self.dataset(path)
            elif found := re.fullmatch(r"/datasets/tiny/questions/resolve/\w+/([\w.-]+)", path):
                if found[1] == "validation.jsonl":
                    etag = hashlib.sha256(QUESTION.encode()).hexdigest()
                    self.answer(200, QUESTION.encode(), ETag=f'"{etag}"', X_Repo_Commit=SHA)
                else:
                    self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=SHA)
            elif path.startswith("/api/models/tiny/village"):
                names = sorted(file.name for file in hub.files.iterdir())
                siblings = [{"rfilename": name, "size": (hub.files / name).stat().st_size} for name in names]
                gated = "manual" if hub.gated else False
                info = {"id": "tiny/village", "sha": SHA, "siblings": siblings, "gated": gated, "private": False}
                self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
            elif found := re.fullmatch(rf"/tiny/village/resolve/{SHA}/([\w.-]+)", path):
                self.file(hub.files / found[1])
            else:
                self.answer(401 if "Authorization" not in self.headers else 404, X_Error_Code="RepoNotFound")

        def dataset(self, path: str) -> None:
            if hub.gated:
                self.answer(401, X_Error_Code="GatedRepo", X_Error_Message="Access to dataset is restricted.")
                return
            listing: object = [{"type": "file", "path": "validation.jsonl", "size": len(QUESTION), "oid": "a" * 40}]
            if "/tree/" not in path:
                siblings = [{"rfilename": "validation.jsonl"}]
                listing = {"id": "tiny/questions", "sha": SHA, "siblings": siblings, "gated": False, "private": False}
            self.answer(200, json.dumps(listing).encode(), Content_Type="application/json")

        def file(self, path: Path) -> None:
            if hub.gated and not (hub.granted and self.headers.get("Authorization") == f"Bearer {TOKEN}"):
                message = "Access to model tiny/village is restricted."
                status = 403 if "Authorization" in self.headers else 401
                self.answer(status, X_Error_Code="GatedRepo", X_Error_Message=message)
                return
            data = path.read_bytes()
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X_Repo_Commit": SHA, "Accept_Ranges": "bytes"}
            start = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if start and self.command == "GET":
                hub.ranges.append(self.headers["Range"])
                begin = int(start[1])
                span = f"bytes {begin}-{len(data) - 1}/{len(data)}"
                self.answer(206, data[begin:], Content_Range=span, **headers)
                return
            if self.command == "GET" and hub.break_off == path.name:
                self.send_response(200)
                for name, value in {"Content_Length": str(len(data)), **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.answer(200, data, **headers)

    return Handler


@pytest.fixture(scope="session")
def hf_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model in the hub's format."""
    from litgpt.scripts.convert_lit_checkpoint import convert_lit_checkpoint
    from safetensors.torch import save_file

    directory = tmp_path_factory.mktemp("hf")
    convert_lit_checkpoint(CHECKPOINT, directory)
    weights = torch.load(directory / "model.pth", weights_only=True)
    (directory / "model.pth").unlink()
    save_file({name: value.clone() for name, value in weights.items()}, directory / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CHECKPOINT / name, directory)
    (directory / "README.md").write_text("not needed")
    (directory / "pytorch_model.bin").write_text("not needed beside safetensors")
    return directory


@pytest.fixture
def hub(hf_files: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    import yaml
    from huggingface_hub import constants
    from huggingface_hub.utils import reset_sessions
    from litgpt import config

    known = yaml.safe_load((CHECKPOINT / "model_config.yaml").read_text())
    monkeypatch.setitem(config.name_to_config, "village", known)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # read when the package was imported, perhaps by others
    reset_sessions()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_login"))
    hub = Hub(hf_files)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    yield hub
    server.shutdown()
    server.server_close()
    reset_sessions()


@pytest.fixture
def nowhere(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address that refuses connections."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    return f"http://127.0.0.1:{port}"


def objective(hub_url: str, **changes: object) -> LoraObjective:
    settings = {
        "model": {"name": "v", "checkpoint_dir": "storage:checkpoints/tiny/village", "repo_id": "tiny/village"},
        "data": {"name": "d", "path": "storage:data/alpaca.json", "url": f"{hub_url}/data/alpaca.json"},
        "tasks": {"name": "t", "validation": "village_val", "include_path": "bundle:village/tasks"},
        "train": {},
    }
    for key, value in changes.items():
        section, _, field = key.partition("__")
        settings[section] = {**settings[section], field: value}
    return LoraObjective.model_validate(settings)


@dataclasses.dataclass
class Storage:
    dir: Path

    def __call__(self, path: str) -> Path:
        prefix, separator, rest = path.partition(":")
        return {"storage": self.dir, "bundle": resources_dir() / "bundle"}[prefix] / rest if separator else Path(path)

    def files(self) -> set[str]:
        return {str(path.relative_to(self.dir)) for path in self.dir.rglob("*") if path.is_file()}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "storage")


def faults(wanted: LoraObjective, storage: Storage) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        prepare(wanted, storage, lambda _: None)
    assert "type the same command again" in str(caught.value)
    return caught.value.faults


def test_download_conversion_and_a_second_time(hub: Hub, storage: Storage) -> None:
    lines: list[str] = []
    assert prepare(objective(hub.url), storage, lines.append) == lines
    checkpoint = storage.dir / "checkpoints" / "tiny" / "village"
    assert storage.files() == {
        "data/alpaca.json",
        *(f"checkpoints/tiny/village/{name}" for name in ("lit_model.pth", "model_config.yaml", "config.json")),
        *(f"checkpoints/tiny/village/{name}" for name in ("tokenizer.json", "tokenizer_config.json")),
    }
    ours = torch.load(checkpoint / "lit_model.pth", weights_only=True)
    bundled = torch.load(CHECKPOINT / "lit_model.pth", weights_only=True)
    assert ours.keys() == bundled.keys()
    assert all(torch.equal(ours[name], bundled[name]) for name in ours)
    assert not [path for path in checkpoint.parent.iterdir() if path.name.startswith(".")]
    assert objective(hub.url).file_faults(storage) == []
    assert json.loads((storage.dir / "data" / "alpaca.json").read_text()) == ROWS
    assert set(hub.downloads()) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert any("model.safetensors (" in line for line in lines)
    assert "data d: done, 3 rows" in lines

    hub.requests.clear()
    again = prepare(objective(hub.url), storage, lambda _: None)
    assert hub.requests == []
    assert [line.partition(":")[0] for line in again if "nothing to do" in line] == ["model v", "data d", "tasks t"]


def test_an_interrupted_download_goes_on(hub: Hub, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, file_download

    original = file_download.http_get
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)  # what is written, and so resumed, at a time
    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", lambda *a, **k: original(*a, **{**k, "_nb_retries": 0}))
        hub.break_off = "model.safetensors"
        (fault,) = faults(objective(hub.url), storage)
    assert fault.startswith("model tiny/village: the download was interrupted")
    checkpoints = storage.dir / "checkpoints" / "tiny"
    assert [path.name for path in checkpoints.iterdir()] == [".village.part"]

    hub.break_off = ""
    hub.requests.clear()
    hub.ranges.clear()
    prepare(objective(hub.url), storage, lambda _: None)
    assert hub.downloads() == ["model.safetensors"]
    (begin,) = [int(span.removeprefix("bytes=").removesuffix("-")) for span in hub.ranges]
    half = (hub.files / "model.safetensors").stat().st_size // 2
    assert half - 4096 <= begin <= half
    assert [path.name for path in checkpoints.iterdir()] == ["village"]


def test_a_model_whose_tokenizer_is_sentencepiece_alone(hub: Hub, storage: Storage, tmp_path: Path) -> None:
    from litgpt.tokenizer import Tokenizer
    from transformers import AutoTokenizer

    hub.files = Path(shutil.copytree(hub.files, tmp_path / "files"))
    for path in hub.files.glob("tokenizer*"):
        path.unlink()
    train_sentencepiece(hub.files, "bpe")
    prepare(objective(hub.url), storage, lambda _: None)
    checkpoint = storage.dir / "checkpoints" / "tiny" / "village"
    assert objective(hub.url).file_faults(storage) == []
    wanted = AutoTokenizer.from_pretrained(hub.files).encode("a b")
    assert (
        Tokenizer(checkpoint).encode("a b").tolist()
        == AutoTokenizer.from_pretrained(checkpoint).encode("a b")
        == wanted
    )


def test_a_gated_model_without_a_token(hub: Hub, storage: Storage) -> None:
    hub.gated = True
    (fault,) = faults(objective(hub.url, model__gated=True), storage)
    assert "model tiny/village: is gated and no token was found" in fault
    assert f"accept the licence at {hub.url}/tiny/village" in fault
    assert "export HF_TOKEN=" in fault
    assert (storage.dir / "data" / "alpaca.json").exists()  # the other parts were prepared all the same


def test_a_gated_model_whose_licence_is_not_accepted(
    hub: Hub, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated, hub.granted = True, False
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (fault,) = faults(objective(hub.url, model__gated=True), storage)
    assert "the account of the token has no access to it: accept the licence at" in fault
    assert TOKEN not in fault


def test_a_gated_model_with_a_token(
    hub: Hub, storage: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.gated = True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with caplog.at_level(logging.DEBUG, "hpo_cluster"):
        said = prepare(objective(hub.url, model__gated=True), storage, lambda _: None)
    assert TOKEN not in "\n".join(said) + caplog.text
    written = [path for path in storage.dir.rglob("*") if path.is_file()]
    assert len(written) == 6
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]


def test_a_model_that_is_not_there(hub: Hub, storage: Storage) -> None:
    (fault,) = faults(objective(hub.url, model__repo_id="tiny/town"), storage)
    assert f"model tiny/town: does not exist at {hub.url}, or it is private" in fault


def test_without_network_everything_that_is_missing_is_said_at_once(hub: Hub, nowhere: str, storage: Storage) -> None:
    model, data = faults(objective(nowhere, model__gated=True), storage)
    assert f"model tiny/village: {nowhere} cannot be reached; run prepare on a machine with network" in model
    assert "no token was found either" in model
    assert f"data.url: {nowhere}/data/alpaca.json cannot be reached" in data
    assert "https_proxy" in data
    assert storage.files() == set()


@pytest.mark.parametrize(
    ("name", "says"),
    [("gone.json", "answers 40"), ("page.json", "is not JSON"), ("other.json", "not in Alpaca format")],
)
def test_data_that_is_no_data(hub: Hub, storage: Storage, name: str, says: str) -> None:
    wanted = objective(hub.url, model__checkpoint_dir="bundle:village/checkpoint", data__url=f"{hub.url}/data/{name}")
    (fault,) = faults(wanted, storage)
    assert says in fault
    assert storage.files() == set()


def test_what_cannot_be_fetched_is_named(hub: Hub, storage: Storage) -> None:
    incomplete = storage.dir / "checkpoints" / "mine"
    incomplete.mkdir(parents=True)
    (incomplete / "lit_model.pth").touch()
    wanted = objective(hub.url, model__checkpoint_dir="storage:checkpoints/mine", data__url=None)
    model, data = faults(wanted, storage)
    assert "lacks model_config.yaml, tokenizer.json, tokenizer_config.json; move it away" in model
    assert "data.url is not given" in data
    (fault,) = faults(objective(hub.url, model__repo_id=None), storage)
    assert "model.repo_id is not given" in fault


def test_litgpt_knows_the_models_of_the_configuration() -> None:
    import yaml
    from litgpt import Config

    models = [yaml.safe_load(path.read_text()) for path in (resources_dir() / "conf" / "model").glob("*.yaml")]
    repos = [model["repo_id"] for model in models if model.get("repo_id")]
    assert len(repos) >= 3
    for repo in repos:
        assert Config.from_name(repo.rpartition("/")[2]).hf_config["name"] == repo.rpartition("/")[2]


def test_preparing_what_is_bundled_does_nothing_and_says_so(nowhere: str, storage: Storage) -> None:
    wanted = objective(
        nowhere,
        model__checkpoint_dir="bundle:village/checkpoint",
        model__repo_id=None,
        data__path="bundle:village/data",
    )
    said = prepare(wanted, storage, lambda _: None)
    assert [line for line in said if "bundled" in line and "nothing to do" in line] == said[:3]
    assert not storage.dir.exists()


def make_task(directory: Path, data: Path | None) -> None:
    """A task over a local file, or over the stand-in hub's data set."""
    directory.mkdir()
    local = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"validation": str(data)}}}
    task = {
        "task": "mine",
        **(local if data else {"dataset_path": "tiny/questions"}),
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{gold}}",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}],
    }
    (directory / "mine.yaml").write_text(json.dumps(task))


def own_tasks(url: str, directory: Path, name: str = "mine") -> LoraObjective:
    bundled = {"model__checkpoint_dir": "bundle:village/checkpoint", "data__path": "bundle:village/data"}
    return objective(url, **bundled, tasks__validation=name, tasks__include_path=str(directory))


def test_tasks_of_your_own_are_loaded_as_a_job_will(nowhere: str, storage: Storage, tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    make_task(tmp_path / "tasks", data)
    wanted = own_tasks(nowhere, tmp_path / "tasks")
    (fault,) = faults(wanted, storage)
    assert fault.startswith("tasks: mine: ")
    assert "mine.jsonl" in fault
    data.write_text(QUESTION)
    assert "tasks t: already there, nothing to do" in prepare(wanted, storage, lambda _: None)


def test_a_data_set_of_the_hub_is_on_shared_storage_afterwards(
    hub: Hub, nowhere: str, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_task(tmp_path / "tasks", None)
    wanted = own_tasks(hub.url, tmp_path / "tasks")
    (fault,) = faults(wanted, storage)
    assert fault.startswith(f"tasks: {nowhere} cannot be reached; run prepare on a machine with network")

    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    assert "tasks t: done" in prepare(wanted, storage, lambda _: None)
    assert any(name.startswith("hf/datasets/tiny___questions/") for name in storage.files())

    hub.requests.clear()
    assert "tasks t: already there, nothing to do" in prepare(wanted, storage, lambda _: None)
    assert hub.requests == []


def test_a_gated_data_set(hub: Hub, storage: Storage, tmp_path: Path) -> None:
    hub.gated = True
    make_task(tmp_path / "tasks", None)
    (fault,) = faults(own_tasks(hub.url, tmp_path / "tasks"), storage)
    assert "tiny/questions" in fault
    assert "gated" in fault
    assert "export HF_TOKEN=" in fault


def test_a_task_that_is_nowhere(nowhere: str, storage: Storage, tmp_path: Path) -> None:
    make_task(tmp_path / "tasks", tmp_path / "mine.jsonl")
    (fault,) = faults(own_tasks(nowhere, tmp_path / "tasks", "minee"), storage)
    assert "no lm-eval task minee" in fault
    assert "did you mean mine?" in fault
