"""The imports point downwards, and importing the package is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

UNIT = Path(__file__).resolve().parent
PACKAGE = Path(__file__).resolve().parents[2] / "hpo_cluster"

#: What each folder may import of the others, besides itself. The modules at the top are the words that all share.
MAY_IMPORT: dict[str, set[str]] = {
    "root": {"space"},
    "space": {"root"},
    "record": {"root", "space"},
    "optimizers": {"root", "space"},
    "objectives": {"root", "space", "record"},
    "launchers": {"root", "record"},
    "driver": {"root", "space", "record", "optimizers", "objectives", "launchers"},
    "report": {"root", "space", "record", "optimizers", "objectives"},
    "cli": {"root", "space", "record", "optimizers", "objectives", "launchers", "driver", "report"},
}
#: The same inside `optimizers/`: its own modules are what all share; `registry` alone knows every one.
OPTIMIZERS_MAY_IMPORT: dict[str, set[str]] = {
    "root": set(),
    "designs": {"root"},
    "bayesian": {"root", "designs"},
    "partition": {"root", "designs", "bayesian"},
    "external": {"root"},
    "rungs": {"root", "designs"},
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "_resources" not in path.parts)


def folder_of(path: Path) -> str:
    """Return the folder of the package that a module lies in; ``root`` for those at its top."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else "root"


def folder_named(module: str, package: str = "hpo_cluster") -> str:
    """Return the same of a module's dotted name."""
    rest = module.removeprefix(package).lstrip(".").split(".")[0]
    return rest if (PACKAGE.parent / package.replace(".", "/") / rest).is_dir() and rest else "root"


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


def ours(path: Path) -> list[str]:
    return [name for name in imports(path) if name.startswith("hpo_cluster.")]


def test_modules_were_found() -> None:
    assert len(MODULES) > 20


def test_the_folders_are_those_of_the_rule() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders == set(MAY_IMPORT) - {"root"}
    assert len(folders) <= 9
    assert len(list(PACKAGE.glob("*.py"))) <= 10
    for folder in folders:
        assert ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text())), folder


def test_the_unit_tests_mirror_the_package() -> None:
    assert {path.name for path in UNIT.iterdir() if path.is_dir() and path.name[0] not in "_."} <= set(MAY_IMPORT)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    mine = folder_of(path)
    if path.relative_to(PACKAGE).name in ("__init__.py", "__main__.py") and mine == "root":
        return  # the public names are loaded when first used, and `python -m` is the command line
    for name in imports(path):
        if name.startswith("hpo_cluster."):
            other = folder_named(name)
            assert other == mine or other in MAY_IMPORT[mine], f"{mine} imports {name}"
    if mine == "root":
        assert path.name == "trial.py" or not any(folder_named(name) == "space" for name in ours(path))


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if folder_of(path) == "optimizers"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_imports_point_downwards_among_the_optimizers(path: Path) -> None:
    parts = path.relative_to(PACKAGE / "optimizers").parts
    mine = parts[0] if len(parts) > 1 else "root"
    if path.name == "registry.py":
        return
    for name in ours(path):
        if name.startswith("hpo_cluster.optimizers."):
            other = folder_named(name, "hpo_cluster.optimizers")
            assert other == mine or other in OPTIMIZERS_MAY_IMPORT[mine], f"{mine} imports {name}"


@pytest.mark.parametrize(
    ("library", "allowed"), [("submitit", {"launchers"}), ("hydra", {"cli"}), ("omegaconf", {"cli"})]
)
def test_one_folder_knows_the_library(library: str, allowed: set[str]) -> None:
    users = {folder_of(path) for path in MODULES if any(name.split(".")[0] == library for name in imports(path))}
    assert users
    assert users <= allowed


def test_only_the_command_line_prints() -> None:
    printers = {
        folder_of(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printers <= {"cli"}


@pytest.mark.parametrize(
    "module", ["hpo_cluster", "hpo_cluster.record.status", "hpo_cluster.objectives.worker", "hpo_cluster.cli.main"]
)
def test_importing_is_cheap(module: str) -> None:
    heavy = ("torch", "pandas", "hydra", "scipy", "submitit")
    code = f"import sys, {module}; print(*(m for m in {heavy} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_job_of_a_command_starts_with_the_standard_library_alone() -> None:
    """A campaign starts thousands of them, and on a cluster each reads what it imports from shared storage."""
    program = PACKAGE.parent / "jobs" / "command.py"
    code = f"import runpy, sys; runpy.run_path({str(program)!r}); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "hpo_cluster.objectives.worker" in loaded
    assert not loaded & {"numpy", "pydantic", "yaml"}


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
