"""Put what the jobs read on shared storage, once, from a machine with network: weights, data, lm-eval's data sets.

Afterwards jobs run with hubs switched off. Preparing is idempotent: what is there and complete is skipped, what was
interrupted goes on where it stopped. A checkpoint and a data file appear under their names whole or not at all; the
data sets live in a Hugging Face cache (``<storage>/hf``), which has the same habit for each of its files.

A token is taken from ``HF_TOKEN`` or the cached login by huggingface_hub itself; none is written or said here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hpo_cluster.errors import AttemptError, ConfigError
from hpo_cluster.objectives.base import PathResolver
from hpo_cluster.objectives.lora.convert import ConversionError, convert, convert_weights, write_tokenizer
from hpo_cluster.objectives.lora.hugging_face import (
    conversion_fault,
    converted_dir,
    is_hugging_face,
    litgpt_dir,
    missing_files,
    origin,
    write_origin,
)
from hpo_cluster.objectives.lora.settings import LoraObjective
from hpo_cluster.record.files import redact
from hpo_cluster.record.layout import PACKAGE_DIR
from hpo_cluster.record.processes import process_start

Say = Callable[[str], None]

HUB = "https://huggingface.co"
NETWORK_TIMEOUT_S = 30.0
CHUNK_BYTES = 1 << 20
#: Top-level files of a model's repository that are fetched besides its weights.
SMALL_FILES = ("config.json", "generation_config.json")
HINT = "Then type the same command again: what is there already is kept."


class PrepareError(Exception):
    """Something is missing that only the user can provide; the message says what and how."""


def prepare(objective: LoraObjective, resolve: PathResolver, say: Say) -> list[str]:
    """Fetch what `objective` needs and shared storage lacks.

    Args:
        objective: names the model, the data and the tasks.
        resolve: turns ``storage:…`` and ``bundle:…`` into paths.
        say: takes one line at a time, as things happen.

    Returns:
        The lines that were said.

    Raises:
        ConfigError: with everything that is missing in model, data and tasks, not only the first.
    """
    said: list[str] = []

    def tell(line: str) -> None:
        said.append(redact(line))
        say(said[-1])

    problems: list[str] = []
    for step in (prepare_model, prepare_data, prepare_tasks):
        try:
            step(objective, resolve, tell)
        except PrepareError as error:
            problems.append(redact(str(error)))
            tell("  not prepared; see below")
        except OSError as error:
            disk = f"{error.filename or 'storage'}: {error.strerror}; free space, or give another storage_dir="
            problems.append(disk if error.errno is not None else redact(str(error)))
            tell("  not prepared; see below")
    if problems:
        raise ConfigError(problems, HINT)
    tell("everything is there: jobs can run without network")
    return said


# The model.


def prepare_model(objective: LoraObjective, resolve: PathResolver, say: Say) -> None:
    """The weights as a LitGPT checkpoint. Raises PrepareError."""
    model = objective.model
    configured = resolve(model.checkpoint_dir)
    if is_hugging_face(configured):
        _convert_folder(configured, model.name, resolve, say)
        return
    directory = litgpt_dir(configured, resolve)
    missing = missing_files(directory)
    if not missing:
        origin = "bundled" if model.checkpoint_dir.startswith("bundle:") else "there already"
        say(f"model {model.name}: {origin}, nothing to do ({directory})")
        return
    if model.repo_id is None:
        raise PrepareError(
            f"model.checkpoint_dir: {directory} lacks {', '.join(missing)}, and model.repo_id is not given"
        )
    if directory.is_dir() and any(directory.iterdir()):
        raise PrepareError(f"model.checkpoint_dir: {directory} lacks {', '.join(missing)}; move it away or complete it")
    say(f"model {model.name}: {model.repo_id} -> {directory}")
    part = directory.with_name(f".{directory.name}.part")  # kept when interrupted: the next run goes on there
    with _hub_problems(model.repo_id, expect_gated=model.gated):
        weights = _download_model(model.repo_id, part, say)
    say("  converting for LitGPT")
    try:
        if not (part / "tokenizer.json").is_file():
            write_tokenizer(part, part)
        convert_weights(part, model.repo_id.rpartition("/")[2])
    except ConversionError as error:
        raise PrepareError(f"model.repo_id: {error}") from error
    if missing := missing_files(part):
        raise PrepareError(f"model.repo_id: {model.repo_id} gives no {', '.join(missing)}; the parts are in {part}")
    part.rename(directory)
    for name in weights:
        (directory / name).unlink()
    shutil.rmtree(directory / ".cache", ignore_errors=True)
    say(f"model {model.name}: done")


def _convert_folder(folder: Path, name: str, resolve: PathResolver, say: Say) -> None:
    """Convert a Hugging Face folder, once. The checkpoint appears under its name whole or not at all."""
    converted = converted_dir(folder, resolve)
    if converted.is_dir():
        if fault := conversion_fault(folder, resolve):
            raise PrepareError(f"model.checkpoint_dir: {fault}")
        say(f"model {name}: converted already, nothing to do ({folder} -> {converted})")
        return
    say(f"model {name}: converting for LitGPT: {folder} -> {converted}")
    converted.parent.mkdir(parents=True, exist_ok=True)
    work = _work_dir(converted)
    try:
        part = work / converted.name
        part.mkdir()
        made_of = origin(folder)  # before it is read: a change meanwhile is found later
        try:
            convert(folder, part)
        except ConversionError as error:
            raise PrepareError(f"model.checkpoint_dir: {error}") from error
        write_origin(part, made_of)
        try:
            part.rename(converted)
        except OSError:
            if not converted.is_dir():
                raise
            say("  another prepare has converted it in the meantime")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    words = ["model=local", f"model.checkpoint_dir={folder}", f"storage_dir={resolve('storage:')}"]
    say(f"model {name}: done; next, with your other settings: hpo-cluster run {shlex.join(words)}")


def _work_dir(target: Path) -> Path:
    """Make a private folder beside `target`, and remove those of processes of this host that were killed."""
    prefix = f".{target.name}.{socket.gethostname()}."
    for other in target.parent.iterdir():
        pid = other.name.removeprefix(prefix)
        if other.name.startswith(prefix) and pid.isdecimal() and process_start(int(pid)) is None:
            shutil.rmtree(other, ignore_errors=True)
    folder = target.with_name(f"{prefix}{os.getpid()}")
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier process of this number
    folder.mkdir()
    return folder


def _download_model(repo_id: str, directory: Path, say: Say) -> list[str]:
    """Fetch configuration, tokenizer and weights; returns the names of the weight files."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=_endpoint())
    info = api.model_info(repo_id, files_metadata=True, timeout=NETWORK_TIMEOUT_S)
    sizes = {file.rfilename: file.size for file in info.siblings or [] if "/" not in file.rfilename}
    small = [name for name in sizes if name in SMALL_FILES or name.startswith("tokenizer")]
    weights = [name for name in sizes if name.endswith((".safetensors", ".safetensors.index.json"))]
    if not weights:
        weights = [name for name in sizes if "model" in name and name.endswith((".bin", ".bin.index.json"))]
    if not weights:
        raise PrepareError(f"model.repo_id: {repo_id} has neither .safetensors nor .bin files")
    files = [*small, *weights]
    say(f"  {len(files)} files, {_size(sum(sizes[name] or 0 for name in files))}")
    for number, name in enumerate(files, 1):
        say(f"  {number}/{len(files)} {name} ({_size(sizes[name])})")
        api.hf_hub_download(repo_id, name, revision=info.sha, local_dir=directory)
    return weights


# The training data.


def prepare_data(objective: LoraObjective, resolve: PathResolver, say: Say) -> None:
    """The training data. Raises PrepareError."""
    data = objective.data
    path = resolve(data.path)
    if path.is_dir() or path.is_file():
        origin = "bundled" if data.path.startswith("bundle:") else "there already"
        say(f"data {data.name}: {origin}, nothing to do ({path})")
        return
    if data.url is None:
        raise PrepareError(f"data.path: {path} is not there, and data.url is not given")
    if path.suffix != ".json":
        raise PrepareError(f"data.path: {path} must end in .json, since data.url gives one file")
    say(f"data {data.name}: {data.url} -> {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            _fetch(data.url, stream)
        rows = _rows(temporary, data.url)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    say(f"data {data.name}: done, {rows} rows")


def _fetch(url: str, stream: Any) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "hpo-cluster"})
    try:
        with urllib.request.urlopen(request, timeout=NETWORK_TIMEOUT_S) as answer:
            while chunk := answer.read(CHUNK_BYTES):
                stream.write(chunk)
            expected = answer.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        raise PrepareError(f"data.url: {url} answers {error.code} {error.reason}; give another data.url=") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise PrepareError(f"data.url: {url} cannot be reached ({reason}); {_network_help()}") from error
    if expected is not None and stream.tell() != int(expected):
        raise PrepareError(f"data.url: {url} broke off after {stream.tell()} of {expected} bytes")


def _rows(path: Path, url: str) -> int:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PrepareError(f"data.url: {url} gives no JSON ({error})") from error
    whole = isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
    if not whole or not {"instruction", "output"} <= set(rows[0]):
        raise PrepareError(f"data.url: {url} is not in Alpaca format: a list of instruction, input and output")
    return len(rows)


# The data sets of the tasks. They are loaded by a process of their own, with the environment that a job will have,
# because the Hugging Face libraries read it once, when they are imported.


def prepare_tasks(objective: LoraObjective, resolve: PathResolver, say: Say) -> None:
    """The data sets that the tasks read. Raises PrepareError."""
    tasks = objective.tasks
    if str(tasks.include_path).startswith("bundle:") and not tasks.datasets:
        say(f"tasks {tasks.name}: bundled, nothing to do")
        return
    names = [tasks.validation, *tasks.test]
    home = resolve("storage:") / "hf"
    request = {
        "names": names,
        "include_path": None if tasks.include_path is None else str(resolve(tasks.include_path)),
        "num_fewshot": tasks.num_fewshot,
    }
    say(f"tasks {tasks.name}: looking for {', '.join(names)}")
    found = _load_elsewhere(request, home, offline=True)
    if found is None:
        say(f"tasks {tasks.name}: there already, nothing to do")
        return
    if found["kind"] in ("unknown", "local"):
        raise PrepareError(f"tasks: {found['message']}")
    say(f"  fetching {', '.join(tasks.datasets) or 'their data sets'} -> {home}")
    _reach_hub()
    home.mkdir(parents=True, exist_ok=True)
    for offline in (False, True):  # fetched, then read once more as a job will
        if problem := _load_elsewhere(request, home, offline=offline):
            when = "even after they were fetched: " if offline else ""
            raise PrepareError(f"tasks: {when}{problem['message']}")
    say(f"tasks {tasks.name}: done")


def _reach_hub() -> None:
    """Raise PrepareError where the hub does not answer; `datasets` would try again and again for half a minute."""
    try:
        with urllib.request.urlopen(urllib.request.Request(_endpoint(), method="HEAD"), timeout=NETWORK_TIMEOUT_S):
            return
    except urllib.error.HTTPError:
        return  # an answer, whatever it says
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise PrepareError(f"tasks: {_endpoint()} cannot be reached; {_network_help()}") from error


def _load_elsewhere(request: Mapping[str, Any], home: Path, *, offline: bool) -> dict[str, str] | None:
    """Load tasks in a fresh process with this Hugging Face home. None, or the kind of problem and its message."""
    from huggingface_hub import constants

    with tempfile.TemporaryDirectory() as scratch:
        environment = {
            **os.environ,
            "HF_HOME": str(home) if home.is_dir() else scratch,
            "HF_TOKEN_PATH": constants.HF_TOKEN_PATH,  # a cached login stays where it is
            "HF_HUB_OFFLINE": "1" if offline else os.environ.get("HF_HUB_OFFLINE", "0"),
            "HF_DATASETS_OFFLINE": "1" if offline else os.environ.get("HF_DATASETS_OFFLINE", "0"),
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE_DIR.parent), os.environ.get("PYTHONPATH", "")])),
        }
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
            environment.pop(name, None)  # they would lead away from the shared home
        done = subprocess.run(
            [sys.executable, "-m", "hpo_cluster.objectives.lora.prepare"],
            input=json.dumps({**request, "cache_dir": scratch}),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if offline else None,  # progress bars of the download are worth seeing
            text=True,
            check=False,
        )
    answer = done.stdout.strip().rpartition("\n")[2]
    try:
        problem: dict[str, str] | None = json.loads(answer)
    except ValueError:
        end = (done.stderr or "").strip().rpartition("\n")[2]
        return {"kind": "crash", "message": f"loading them ended with exit status {done.returncode} {end}".strip()}
    return problem


def _load_here(request: Mapping[str, Any]) -> dict[str, str] | None:
    from huggingface_hub import get_token

    from hpo_cluster.objectives.lora.tasks import load_tasks

    include_path = None if request["include_path"] is None else Path(request["include_path"])
    try:
        load_tasks(request["names"], include_path, request["num_fewshot"], Path(request["cache_dir"]))
    except AttemptError as error:
        cause = error.__cause__
        if cause is None:
            return {"kind": "unknown", "message": str(error)}
        message = " ".join(str(cause).split())  # `datasets` says which data set, and where its page is
        if isinstance(cause, ConnectionError):
            message += f"; {_network_help()}"
        elif type(cause).__name__ in ("DatasetNotFoundError", "GatedRepoError", "RepositoryNotFoundError"):
            message += "; if it is gated, accept its conditions on its page" + (
                "" if get_token() else f" and {_login()}"
            )
        kind = "local" if type(cause) is FileNotFoundError else "data"  # the hub's errors are of classes of their own
        return {"kind": kind, "message": f"{', '.join(request['names'])}: {message}"}
    return None


# The hub's answers, in words.


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", HUB).rstrip("/")


def _login() -> str:
    return f"make a token at {_endpoint()}/settings/tokens, then type: export HF_TOKEN=… (or: hf auth login)"


def _network_help() -> str:
    return (
        "run prepare on a machine with network, such as the cluster's frontend; "
        "behind a proxy: export https_proxy=http://HOST:PORT"
    )


@contextlib.contextmanager
def _hub_problems(repo_id: str, *, expect_gated: bool) -> Iterator[None]:
    """Turn what the hub's client raises into what is missing and what to do about it."""
    import requests
    from huggingface_hub import errors, get_token

    what = f"model {repo_id}"
    accept = f"accept the licence at {_endpoint()}/{repo_id}"
    login = _login()
    try:
        yield
    except PrepareError:
        raise
    except errors.GatedRepoError as error:
        if get_token() is None:
            raise PrepareError(f"{what}: is gated and there is no token; {accept}, {login}") from error
        access = "or the token may not read gated repositories"
        raise PrepareError(
            f"{what}: is gated and the account of the token has no access to it: {accept} and wait until it is granted "
            f"({access}: {_endpoint()}/settings/tokens)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        more = "" if get_token() else f", or it is private: {login}"
        raise PrepareError(f"{what}: there is none of that name at {_endpoint()}{more}") from error
    except errors.OfflineModeIsEnabled as error:
        raise PrepareError(
            f"{what}: the hub is switched off; type: unset HF_HUB_OFFLINE HF_DATASETS_OFFLINE"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise PrepareError(_unreachable(what, accept, login, expect_gated and get_token() is None)) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "?"
        if status == 401:
            raise PrepareError(f"{what}: the hub does not accept the token; {login}") from error
        raise PrepareError(f"{what}: the hub answers {status}: {str(error).splitlines()[0]}") from error
    except (requests.ConnectionError, requests.Timeout) as error:
        raise PrepareError(_unreachable(what, accept, login, expect_gated and get_token() is None)) from error
    except requests.RequestException as error:
        raise PrepareError(f"{what}: the download broke off ({type(error).__name__})") from error


def _unreachable(what: str, accept: str, login: str, token_missing: bool) -> str:
    more = f". It is gated and there is no token either: {accept}, {login}" if token_missing else ""
    return f"{what}: {_endpoint()} cannot be reached; {_network_help()}{more}"


def _size(count: int | None) -> str:
    if count is None:
        return "size unknown"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


if __name__ == "__main__":
    outcome = _load_here(json.load(sys.stdin))
    sys.stdout.write("\n" + json.dumps(outcome) + "\n")
