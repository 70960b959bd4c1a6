"""What `import hpo_cluster` offers: seen by completion, described, and shown by an example that runs."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import hpo_cluster


def test_completion_shows_the_public_names_and_nothing_else() -> None:
    assert dir(hpo_cluster) == sorted([*hpo_cluster.__all__, "__version__"])
    assert {"Space", "Float", "load_history", "make_optimizer", "optimize"} <= set(dir(hpo_cluster))


@pytest.mark.parametrize("name", hpo_cluster.__all__)
def test_each_public_name_has_an_example_that_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    early = "def early(x, fidelity):\n    return x * x * fidelity\n"
    (tmp_path / "my_study.py").write_text(f"def loss(x):\n    return x * x\n\n\n{early}")
    monkeypatch.syspath_prepend(tmp_path)
    thing = getattr(hpo_cluster, name)
    names = {public: getattr(hpo_cluster, public) for public in hpo_cluster.__all__}
    examples = [test for test in doctest.DocTestFinder(recurse=False).find(thing, name, globs=names) if test.examples]
    assert examples, f"{name} has no example"
    for example in examples:
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
        assert result.failed == 0, capsys.readouterr().out
