"""Download what the jobs read to shared storage: weights, training data and lm-eval's data sets.

Run it once on a machine with network access; the jobs then run offline. It is idempotent: complete files are skipped,
and an interrupted download continues where it stopped. Checkpoints and data files are created atomically. The data
sets are in a Hugging Face cache (``<storage>/hf``), which creates each of its files atomically too.

huggingface_hub reads the token from ``HF_TOKEN`` or the cached login; this module never writes or prints a token.
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
from hpo_cluster.objectives.lora.objective import LoraObjective
from hpo_cluster.record.files import redact
from hpo_cluster.record.layout import PACKAGE_DIR
from hpo_cluster.record.processes import process_start
from hpo_cluster.text import counted, first_line, in_bytes

Say = Callable[[str], object]

HUB = "https://huggingface.co"
NETWORK_TIMEOUT_S = 30.0
CHUNK_BYTES = 1 << 20
#: Top-level files of a model repository that are downloaded in addition to its weights and tokenizer.
SMALL_FILES = ("config.json", "generation_config.json")
HINT = "Then type the same command again: files that are already there are kept."


class PrepareError(Exception):
    """Error: something is missing that only the user can provide. The message says what and how."""


def prepare(objective: LoraObjective, resolve: PathResolver, say: Say) -> list[str]:
    """Download or convert what `objective` needs and shared storage lacks.

    Args:
        objective: the model, the data and the tasks to prepare.
        resolve: turns ``storage:…`` and ``bundle:…`` into paths.
        say: called with each line of progress.

    Returns:
        All lines passed to `say`.

    Raises:
        ConfigError: if anything is missing; it lists all problems of model, data and tasks.
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
    tell("everything is ready: jobs can run without network access")
    return said


# The model.


def prepare_model(objective: LoraObjective, resolve: PathResolver, say: Say) -> None:
    """Make the LitGPT checkpoint of the model. Raises PrepareError."""
    model = objective.model
    configured = resolve(model.checkpoint_dir)
    if is_hugging_face(configured):
        _convert_folder(configured, model.name, resolve, say)
        return
    directory = litgpt_dir(configured, resolve)
    missing = missing_files(directory)
    if not missing:
        origin = "bundled" if model.checkpoint_dir.startswith("bundle:") else "already there"
        say(f"model {model.name}: {origin}, nothing to do ({directory})")
        return
    if model.repo_id is None:
        raise PrepareError(
            f"model.checkpoint_dir: {directory} lacks {', '.join(missing)}, and model.repo_id is not given"
        )
    if directory.is_dir() and any(directory.iterdir()):
        raise PrepareError(f"model.checkpoint_dir: {directory} lacks {', '.join(missing)}; move it away or complete it")
    say(f"model {model.name}: {model.repo_id} -> {directory}")
    part = directory.with_name(f".{directory.name}.part")  # kept if interrupted, so that the next run continues there
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
        raise PrepareError(
            f"model.repo_id: {model.repo_id} does not provide {', '.join(missing)}; the downloaded files are in {part}"
        )
    part.rename(directory)
    for name in weights:
        (directory / name).unlink()
    shutil.rmtree(directory / ".cache", ignore_errors=True)
    say(f"model {model.name}: done")


def _convert_folder(folder: Path, name: str, resolve: PathResolver, say: Say) -> None:
    """Convert a Hugging Face folder if this has not been done. The checkpoint is created atomically."""
    converted = converted_dir(folder, resolve)
    if converted.is_dir():
        if fault := conversion_fault(folder, resolve):
            raise PrepareError(f"model.checkpoint_dir: {fault}")
        say(f"model {name}: already converted, nothing to do ({folder} -> {converted})")
        return
    say(f"model {name}: converting for LitGPT: {folder} -> {converted}")
    converted.parent.mkdir(parents=True, exist_ok=True)
    work = _work_dir(converted)
    try:
        part = work / converted.name
        part.mkdir()
        made_of = origin(folder)  # before the folder is read, so that a later change is noticed
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
    """Create a private folder next to `target`; remove the folders of killed processes of this host."""
    prefix = f".{target.name}.{socket.gethostname()}."
    for other in target.parent.iterdir():
        pid = other.name.removeprefix(prefix)
        if other.name.startswith(prefix) and pid.isdecimal() and process_start(int(pid)) is None:
            shutil.rmtree(other, ignore_errors=True)
    folder = target.with_name(f"{prefix}{os.getpid()}")
    shutil.rmtree(folder, ignore_errors=True)  # left by an earlier process with the same pid
    folder.mkdir()
    return folder


def _download_model(repo_id: str, directory: Path, say: Say) -> list[str]:
    """Download configuration, tokenizer and weights. Return the names of the weight files."""
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
    say(f"  {counted(len(files), 'file')}, {_size(sum(sizes[name] or 0 for name in files))}")
    for number, name in enumerate(files, 1):
        say(f"  {number}/{len(files)} {name} ({_size(sizes[name])})")
        api.hf_hub_download(repo_id, name, revision=info.sha, local_dir=directory)
    return weights


# The training data.


def prepare_data(objective: LoraObjective, resolve: PathResolver, say: Say) -> None:
    """Download the training data. Raises PrepareError."""
    data = objective.data
    path = resolve(data.path)
    if path.is_dir() or path.is_file():
        origin = "bundled" if data.path.startswith("bundle:") else "already there"
        say(f"data {data.name}: {origin}, nothing to do ({path})")
        return
    if data.url is None:
        raise PrepareError(f"data.path: {path} does not exist, and data.url is not given")
    if path.suffix != ".json":
        raise PrepareError(f"data.path: {path} must end in .json, because data.url is one JSON file")
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
    say(f"data {data.name}: done, {counted(rows, 'row')}")


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
        raise PrepareError(f"data.url: {url} was interrupted after {stream.tell()} of {expected} bytes")


def _rows(path: Path, url: str) -> int:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PrepareError(f"data.url: {url} is not JSON ({error})") from error
    whole = isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
    if not whole or not {"instruction", "output"} <= set(rows[0]):
        raise PrepareError(f"data.url: {url} is not in Alpaca format: a list of instruction, input and output")
    return len(rows)


# The data sets of the tasks. A separate process loads them with the environment of a job, because the Hugging Face
# libraries read the environment only once, when they are imported.


def prepare_tasks(objective: LoraObjective, resolve: PathResolver, say: Say) -> None:
    """Download the data sets of the tasks. Raises PrepareError."""
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
        say(f"tasks {tasks.name}: already there, nothing to do")
        return
    if found["kind"] in ("unknown", "local"):
        raise PrepareError(f"tasks: {found['message']}")
    say(f"  downloading {', '.join(tasks.datasets) or 'their data sets'} -> {home}")
    _reach_hub()
    home.mkdir(parents=True, exist_ok=True)
    for offline in (False, True):  # download, then load again as a job does
        if problem := _load_elsewhere(request, home, offline=offline):
            when = "even after the download: " if offline else ""
            raise PrepareError(f"tasks: {when}{problem['message']}")
    say(f"tasks {tasks.name}: done")


def _reach_hub() -> None:
    """Raise PrepareError if the hub does not answer, instead of the retries of `datasets`, which take half a minute."""
    try:
        with urllib.request.urlopen(urllib.request.Request(_endpoint(), method="HEAD"), timeout=NETWORK_TIMEOUT_S):
            return
    except urllib.error.HTTPError:
        return  # the hub answers, with whatever status
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise PrepareError(f"tasks: {_endpoint()} cannot be reached; {_network_help()}") from error


def _load_elsewhere(request: Mapping[str, Any], home: Path, *, offline: bool) -> dict[str, str] | None:
    """Load tasks in a new process with this Hugging Face home. Return None, or the kind and message of a problem."""
    from huggingface_hub import constants

    with tempfile.TemporaryDirectory() as scratch:
        environment = {
            **os.environ,
            "HF_HOME": str(home) if home.is_dir() else scratch,
            "HF_TOKEN_PATH": constants.HF_TOKEN_PATH,  # keep using the cached login
            "HF_HUB_OFFLINE": "1" if offline else os.environ.get("HF_HUB_OFFLINE", "0"),
            "HF_DATASETS_OFFLINE": "1" if offline else os.environ.get("HF_DATASETS_OFFLINE", "0"),
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE_DIR.parent), os.environ.get("PYTHONPATH", "")])),
        }
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
            environment.pop(name, None)  # they would override the shared home
        done = subprocess.run(
            [sys.executable, "-m", "hpo_cluster.objectives.lora.prepare"],
            input=json.dumps({**request, "cache_dir": scratch}),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if offline else None,  # the user sees the progress bars of the download
            text=True,
            check=False,
        )
    answer = done.stdout.strip().rpartition("\n")[2]
    try:
        problem: dict[str, str] | None = json.loads(answer)
    except ValueError:
        end = (done.stderr or "").strip().rpartition("\n")[2]
        return {"kind": "crash", "message": f"loading the tasks ended with exit status {done.returncode} {end}".strip()}
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
        message = " ".join(str(cause).split())  # `datasets` names the data set and its page
        if isinstance(cause, ConnectionError):
            message += f"; {_network_help()}"
        elif type(cause).__name__ in ("DatasetNotFoundError", "GatedRepoError", "RepositoryNotFoundError"):
            message += "; if it is gated, accept its conditions on its page" + (
                "" if get_token() else f" and {_login()}"
            )
        kind = "local" if type(cause) is FileNotFoundError else "data"  # the hub's errors are subclasses
        return {"kind": kind, "message": f"{', '.join(request['names'])}: {message}"}
    return None


# Messages about errors of the hub.


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", HUB).rstrip("/")


def _login() -> str:
    return f"create a token at {_endpoint()}/settings/tokens, then type: export HF_TOKEN=… (or: hf auth login)"


def _network_help() -> str:
    return (
        "run prepare on a machine with network access, such as the cluster's frontend; "
        "behind a proxy: export https_proxy=http://HOST:PORT"
    )


@contextlib.contextmanager
def _hub_problems(repo_id: str, *, expect_gated: bool) -> Iterator[None]:
    """Convert errors of the hub's client to PrepareError, with what is missing and what to do."""
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
            raise PrepareError(f"{what}: is gated and no token was found; {accept}, {login}") from error
        access = "or the token may not read gated repositories"
        raise PrepareError(
            f"{what}: is gated and the account of the token has no access to it: {accept} and wait until it is granted "
            f"({access}: {_endpoint()}/settings/tokens)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        more = "" if get_token() else f", or it is private: {login}"
        raise PrepareError(f"{what}: does not exist at {_endpoint()}{more}") from error
    except errors.OfflineModeIsEnabled as error:
        raise PrepareError(f"{what}: the hub is disabled; type: unset HF_HUB_OFFLINE HF_DATASETS_OFFLINE") from error
    except errors.LocalEntryNotFoundError as error:
        raise PrepareError(_unreachable(what, accept, login, expect_gated and get_token() is None)) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "?"
        if status == 401:
            raise PrepareError(f"{what}: the hub does not accept the token; {login}") from error
        raise PrepareError(f"{what}: the hub answers {status}: {first_line(str(error))}") from error
    except (requests.ConnectionError, requests.Timeout) as error:
        raise PrepareError(_unreachable(what, accept, login, expect_gated and get_token() is None)) from error
    except requests.RequestException as error:
        raise PrepareError(f"{what}: the download was interrupted ({type(error).__name__})") from error


def _unreachable(what: str, accept: str, login: str, token_missing: bool) -> str:
    more = f". It is gated, and no token was found either: {accept}, {login}" if token_missing else ""
    return f"{what}: {_endpoint()} cannot be reached; {_network_help()}{more}"


def _size(count: int | None) -> str:
    return "size unknown" if count is None else in_bytes(count)


if __name__ == "__main__":
    outcome = _load_here(json.load(sys.stdin))
    sys.stdout.write("\n" + json.dumps(outcome) + "\n")
