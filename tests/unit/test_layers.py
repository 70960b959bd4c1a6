"""The imports point downwards, and importing the package is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "hpo_cluster"

#: Layer of each module; 2a, 2b and 2c stand side by side and never see one another.
LAYERS = {
    **dict.fromkeys(["__init__", "errors", "validation", "parameters", "constraints", "space", "trial"], "0"),
    **dict.fromkeys(["layout", "clock", "text"], "0"),
    **dict.fromkeys(["files", "processes", "identity", "journal", "record", "history", "lock", "warm_start"], "1"),
    **dict.fromkeys(["operation", "policy", "inbox", "beside"], "1"),
    **dict.fromkeys(["features", "observations", "gaussian_process", "acquisition", "surrogate", "optimizers"], "2a"),
    **dict.fromkeys(["worker", "side_by_side", "objectives"], "2b"),
    **dict.fromkeys(["launchers"], "2c"),
    **dict.fromkeys(["spec", "campaign", "outcomes", "code", "status", "story", "preview", "doctor"], "3"),
    **dict.fromkeys(["watch", "submissions", "report", "prepare", "function_search", "replay", "repair"], "3"),
    **dict.fromkeys(
        ["conftree", "config", "compose", "build", "help", "reference", "display", "commands", "cli", "__main__"], "4"
    ),
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "_resources" not in path.parts)


def top(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [
                f"{node.module}.{alias.name}" if node.module == "hpo_cluster" else node.module for alias in node.names
            ]
    return names


def test_modules_were_found() -> None:
    assert len(MODULES) > 20


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    mine = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert mine in LAYERS, f"give {mine} a layer"
    if mine == "__init__":
        return  # its names are loaded when first used
    for name in imports(path):
        other = top(name)
        if name.startswith("hpo_cluster.") and not other.startswith("__"):
            assert LAYERS[other] == LAYERS[mine] or LAYERS[other][0] < LAYERS[mine][0], f"{mine} imports {other}"


@pytest.mark.parametrize(("library", "allowed"), [("submitit", {"2c"}), ("hydra", {"4"}), ("omegaconf", {"4"})])
def test_one_layer_knows_the_library(library: str, allowed: set[str]) -> None:
    users = {
        LAYERS[path.relative_to(PACKAGE).parts[0].removesuffix(".py")]
        for path in MODULES
        if any(name.split(".")[0] == library for name in imports(path))
    }
    assert users
    assert users <= allowed


def test_only_the_command_line_prints() -> None:
    printers = {
        path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printers <= {"commands", "cli", "display", "help"}


@pytest.mark.parametrize("module", ["hpo_cluster", "hpo_cluster.status", "hpo_cluster.worker", "hpo_cluster.cli"])
def test_importing_is_cheap(module: str) -> None:
    heavy = ("torch", "pandas", "hydra", "scipy", "submitit")
    code = f"import sys, {module}; print(*(m for m in {heavy} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def calls(name: str) -> list[tuple[Path, ast.Call]]:
    """Every call of a function or method of that name in the package and the jobs."""
    paths = [*MODULES, *sorted((PACKAGE.parent / "jobs").glob("*.py"))]
    trees = [(path, node) for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    found = [(path, node) for path, node in trees if isinstance(node, ast.Call)]
    return [(path, node) for path, node in found if getattr(node.func, "attr", getattr(node.func, "id", "")) == name]


def test_nothing_is_unpickled() -> None:
    for path in [*MODULES, *sorted((PACKAGE.parent / "jobs").glob("*.py"))]:
        assert not {name.split(".")[0] for name in imports(path)} & {"pickle", "cloudpickle", "dill", "joblib"}, path
    loads = [(path, node) for path, node in calls("load") if ast.unparse(node.func) == "torch.load"]
    assert loads
    for path, node in loads:
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert options.get("weights_only") == "True", f"{path}:{node.lineno}"
