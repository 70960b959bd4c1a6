"""What ``--info`` prints: the folders that are searched, and the files that a configuration is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hpo_cluster.cli.config.groups import GROUPS, PRIMARY, search_dirs
from hpo_cluster.cli.config.with_hydra import defaults_of, searching


def info_lines(
    what: str, overrides: Sequence[str], *, config_dir: Path | None = None, config_name: str = PRIMARY
) -> Iterator[str]:
    """Yield the lines of ``--info WHAT`` for overrides that have been checked."""
    dirs = search_dirs(Path.cwd(), config_dir)
    if what in ("all", "searchpath"):
        yield "folders that are searched, the first one first:"
        yield from (f"  {folder}" for folder in dirs)
    if what in ("all", "defaults", "defaults-tree"):
        choices = [word for text in overrides if (word := text.lstrip("+")).partition("=")[0] in GROUPS]
        chosen = [word for word in choices if "{" not in word and not word.endswith("=null")]
        with searching(dirs):
            files = defaults_of(config_name.removesuffix(".yaml"), chosen)
        yield "files, each overriding those above it, and where in the configuration it goes:"
        parents = {str(file.config_path): str(file.parent) for file in files}
        for file in files:
            path = str(file.config_path)
            if path.startswith("hydra/") or path.startswith("_dummy"):
                continue
            level, above = 0, parents.get(path, "")
            while above in parents and above != path and level < len(parents):
                level, above = level + 1, parents[above]
            found = next((folder / f"{path}.yaml" for folder in dirs if (folder / f"{path}.yaml").is_file()), None)
            indent = "  " * level if what == "defaults-tree" else ""
            yield f"  {indent}{path}  ({file.package or 'top level'}, {found})"
