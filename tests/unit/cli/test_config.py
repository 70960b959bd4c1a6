"""Composition: everything in conf/ composes, every fault is named, nothing is created."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf
from pydantic import BaseModel

from hpo_cluster.cli.config.compose import compose
from hpo_cluster.cli.config.groups import GROUPS, conf_dir, key_comments, lineage, options
from hpo_cluster.cli.config.recorded import compose_resume
from hpo_cluster.cli.config.schema import CampaignSettings, Config, to_plain, to_yaml
from hpo_cluster.cli.config.spec import campaign_spec
from hpo_cluster.cli.config.sweep import compose_all, expand
from hpo_cluster.driver.run_settings import Operation
from hpo_cluster.driver.spec import _objective_as, choose_optimizer
from hpo_cluster.errors import ConfigError
from hpo_cluster.launchers import LAUNCHERS
from hpo_cluster.objectives.lora.objective import LoraObjective
from hpo_cluster.objectives.lora.settings import LORA_MATRICES, TrainSettings
from hpo_cluster.objectives.registry import OBJECTIVES, parse_objective
from hpo_cluster.optimizers.registry import OPTIMIZERS, make_settings
from hpo_cluster.space import Categorical, Float, Integer, Prior, Space

ROOT = Path(__file__).resolve().parents[3]

#: What an option needs on the command line beside its own name.
COMPANIONS = {
    "objective=command": ["objective.command='train --lr {lr}'", "space={lr: {low: 1e-5, high: 1e-1, log: true}}"],
    "objective=elsewhere": ["space={lr: {low: 1e-5, high: 1e-1, log: true}}"],
    "space=own": ["objective=synthetic"],
    "model=local": ["model.checkpoint_dir=somewhere"],
    "data=local": ["data.path=somewhere.json"],
    "tasks=local": ["tasks.validation=piqa"],
    "optimizer=grid": ["optimizer.levels=2"],
    "fidelity=share": ["objective=synthetic"],
    **{f"optimizer={name}": ["fidelity=steps"] for name in ("asha", "bohb", "hyperband")},
}
CHOICES = [f"{group}={name}" for group in GROUPS for name in options(group, [conf_dir()])]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory that is as empty afterwards: composing creates nothing."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert {path.name for path in tmp_path.iterdir()} <= {"conf", "extra"}  # which the tests themselves write


def faults_of(*overrides: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(overrides, **options)
    return str(caught.value)


# ----------------------------------------------------------------------------------------------------- what is in conf/


def test_options_were_found() -> None:
    assert len(CHOICES) > 20
    assert all(options(group, [conf_dir()]) for group in GROUPS)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_option_composes_and_is_described(choice: str) -> None:
    group, name = choice.split("=")
    if choice == "objective=surrogate":
        assert "objective.campaign: has no value" in faults_of(choice)
        return
    config = compose([choice, *COMPANIONS.get(choice, [])], check_files=False)
    assert yaml.safe_load(to_yaml(to_plain(config))) == to_plain(config)
    option = options(group, [conf_dir()])[name]
    assert len(option.description) > 15
    assert option.path.read_text().splitlines()[0].startswith("# ")


@pytest.mark.parametrize("choice", [c for c in CHOICES if not c.startswith("experiment=")])
def test_every_key_has_a_comment(choice: str) -> None:
    group, name = choice.split("=")
    path = conf_dir() / group / f"{name}.yaml"
    keys = [line.partition(":")[0] for line in path.read_text().splitlines() if line[:1].isalpha()]
    assert set(keys) - {"defaults"} == set(key_comments(path))


def test_config_yaml_repeats_the_typed_defaults() -> None:
    written = {k: v for k, v in yaml.safe_load((conf_dir() / "config.yaml").read_text()).items() if k != "defaults"}
    assert written == {**CampaignSettings().model_dump(mode="json"), **Operation().model_dump(mode="json")}


OF_A_CLASS = [
    *(("optimizer", name, entry.settings) for name, entry in OPTIMIZERS.items()),
    *(("objective", name, cls) for name, cls in OBJECTIVES.items() if name != "function"),
    *(("launcher", name, settings) for name, (settings, _) in LAUNCHERS.items()),
    ("train", "ola2025", TrainSettings),
]


@pytest.mark.parametrize(("group", "name", "cls"), OF_A_CLASS)
def test_files_and_classes_agree_on_defaults(group: str, name: str, cls: type[BaseModel]) -> None:
    """What an option says without a word of the user is what the class says without an argument."""
    found = options(group, [conf_dir()])
    written: dict[str, Any] = {}
    for option in lineage(found[name], [conf_dir()]):
        written |= OmegaConf.to_container(OmegaConf.load(option.path))  # type: ignore[operator]
    fields = {field.alias or key: field for key, field in cls.model_fields.items() if (field.alias or key) in written}
    defaults = {key: field.get_default(call_default_factory=True) for key, field in fields.items()}
    differ = {
        key: (written[key], default)
        for key, default in defaults.items()
        if key not in ("kind", "name") and (list(default) if isinstance(default, tuple) else default) != written[key]
    }
    open_in_files = {key for key, (value, _) in differ.items() if value in ("???", None)}
    assert {key: value for key, value in differ.items() if key not in open_in_files} == {}


@pytest.mark.parametrize("choice", CHOICES)
def test_nothing_is_said_twice(choice: str) -> None:
    """A file holds what differs from the file that it builds on."""
    group, name = choice.split("=")
    *ancestors, option = lineage(options(group, [conf_dir()])[name], [conf_dir()])
    inherited: dict[str, Any] = {}
    for ancestor in ancestors:
        inherited |= yaml.safe_load(ancestor.path.read_text()) or {}
    own = yaml.safe_load(option.path.read_text()) or {}
    own.pop("defaults", None)
    assert [key for key, value in own.items() if inherited.get(key, ...) == value] == []


def test_the_default_campaign(here: Path) -> None:
    config = compose([], check_files=False)
    assert config.campaign_dir == here / "campaigns" / "lora-bo-0"
    assert (config.operation.budget, config.operation.workers, config.optimizer.name) == (16, 2, "bo")
    assert config.optimizer.identity()["initial"] == 10
    assert isinstance(config.objective, LoraObjective)
    assert config.resolve("bundle:village/data") == ROOT / "bundle" / "village" / "data"
    assert config.resolve("storage:x") == here / "storage" / "x"


@pytest.mark.parametrize("name", ["bo", "lhs"])
def test_the_study_s_configuration(name: str) -> None:
    config = compose([f"experiment=ola2025_{name}", "launcher=slurm"], check_files=False)
    objective = config.objective
    assert isinstance(objective, LoraObjective)
    assert (config.operation.budget, config.operation.workers) == (50, 1)
    assert objective.model.repo_id == "meta-llama/Llama-3.2-1B"
    assert (objective.tasks.validation, objective.tasks.test, objective.tasks.metric) == ("hellaswag", ("mmlu",), "acc")
    assert objective.tasks.num_fewshot is None
    assert (objective.data.val_split_fraction, objective.data.split_seed) == (0.03865, 42)
    train = objective.train
    assert (train.precision, train.global_batch_size, train.micro_batch_size) == ("bf16-true", 16, 1)
    assert (train.lr_warmup_steps, train.beta1, train.beta2, train.epochs) == (100, 0.9, 0.999, 1)
    matrices = [
        train.lora_query,
        train.lora_key,
        train.lora_value,
        train.lora_projection,
        train.lora_mlp,
        train.lora_head,
    ]
    assert matrices == [True, True, True, False, False, True]
    assert config.space == Space(
        {
            "lora_rank": Integer(2, 64),
            "lora_alpha": Integer(1, 64),
            "lora_dropout": Float(0.0, 0.5),
            "learning_rate": Float(1e-10, 1e-1, log=True),
            "weight_decay": Float(1e-5, 1e-1, log=True),
        }
    )
    assert config.launcher.kind == "slurm"
    if name == "bo":
        assert (config.optimizer.identity()["initial"], config.optimizer.identity()["acquisition"]) == (10, "log_ei")


def test_overrides_win_over_an_experiment() -> None:
    config = compose(["experiment=quick", "budget=3", "optimizer=lhs", "space.x1.high=0"])
    assert (config.operation.budget, config.optimizer.name) == (3, "lhs")
    assert config.space.parameters["x1"] == Float(-5.0, 0.0)


def test_the_reference_is_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "make_reference.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# --------------------------------------------------------------------------------------------------------------- spaces


def test_a_space_written_on_the_command_line() -> None:
    space = "space={learning_rate: {low: 1e-5, high: 1e-1, log: true}, lora_rank: {choices: [2, 4, 8]}}"
    config = compose([space], check_files=False)
    assert config.space.parameters["learning_rate"] == Float(1e-5, 1e-1, log=True)
    assert config.space.parameters["lora_rank"] == Categorical((2, 4, 8))


def test_parameters_are_added_and_removed() -> None:
    config = compose(["~space.lora_dropout", "+space.epochs={low: 1, high: 3}"], check_files=False)
    assert config.space.names == ("lora_rank", "lora_alpha", "learning_rate", "weight_decay", "epochs")


def test_a_space_file_of_the_working_directory_and_of_a_config_dir(here: Path) -> None:
    for folder in ("conf", "extra"):
        (here / folder / "space").mkdir(parents=True)
        (here / folder / "space" / f"mine_{folder}.yaml").write_text(
            "learning_rate: {low: 1e-4, high: 1e-2, log: true}\n"
        )
    expected = Space({"learning_rate": Float(1e-4, 1e-2, log=True)})
    assert compose(["space=mine_conf"], check_files=False).space == expected
    assert compose(["space=mine_extra"], config_dir=Path("extra"), check_files=False).space == expected
    accepted = "lora, lora_512, lora_extended, own, village, village_extended, mine_conf;"
    assert f"space=mine_extra: is not an option of space; accepted: {accepted}" in faults_of("space=mine_extra")


def test_a_file_that_hydra_would_silently_ignore_is_a_fault(here: Path) -> None:
    (here / "conf" / "space").mkdir(parents=True)
    (here / "conf" / "space" / "lora.yaml").write_text("learning_rate: {low: 1e-4, high: 1e-2, log: true}\n")
    assert "has the name of an option of the package; rename it" in faults_of("space=lora")


def test_an_objective_s_own_space() -> None:
    config = compose(["objective=synthetic", "objective.function=hartmann6"])
    assert config.space == config.objective.own_space()
    assert config.campaign == "hartmann6-bo-0"


def test_relative_paths_are_fixed_when_typed(here: Path) -> None:
    config = compose(["model=local", "model.checkpoint_dir=my/model", "storage_dir=st"], check_files=False)
    assert isinstance(config.objective, LoraObjective)
    assert config.objective.model.checkpoint_dir == str(here / "my" / "model")
    assert config.settings.storage_dir == here / "st"


# --------------------------------------------------------------------------------------------------------------- faults


def test_all_faults_are_named_at_once() -> None:
    text = faults_of(
        "wrokers=3",
        "workers=0",
        "budget=many",
        "optimizer=boo",
        "space.lerning_rate.high=1e-2",
        "space.learning_rate.low=1",
        "campaign=../elsewhere",
        "model.checkpoint_dir=nowhere",
        "tasks.test=[a",
        "train.epochs=0",
        "objective.keep_adapter=perhaps",
    )
    assert text.startswith("11 faults:")
    for expected in (
        "wrokers: is not a key; did you mean workers?",
        "workers=0: must be at least 1",
        "budget='many': must be an integer",
        "optimizer=boo: is not an option of optimizer; did you mean bo? "
        "accepted: asha, bamsoo, bo, bohb, direct, direct_l, fda, grid, hyperband, lhs, mosaic, nevergrad, nomad, "
        "optuna, random, sobol, soo, turbo",
        "space.lerning_rate.high: is not a key; did you mean space.learning_rate.high?",
        "space.learning_rate: empty range: low 1 must not be above high 0.1",
        "campaign='../elsewhere': is not a name for a folder; accepted: letters",
        "'tasks.test=[a': cannot be read",
        "model.checkpoint_dir: " + str(Path.cwd()) + "/nowhere lacks lit_model.pth, model_config.yaml",
        "train.epochs=0: must be at least 1",
        "objective.keep_adapter='perhaps': must be true or false",
    ):
        assert expected in text
    assert text.endswith("Keys and options: hpo-cluster run --help")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["budget"], "'budget': is not an override; accepted: KEY=VALUE"),
        (["=3"], "'=3': is not an override"),
        (["budget=3.5"], "budget=3.5: must be an integer"),
        (["budget=true"], "budget=True: must be an integer"),
        (["workers=-1"], "workers=-1: must be at least 1"),
        (["retries=-1"], "retries=-1: must be at least 0"),
        (["poll_s=0"], "poll_s=0: must be above 0"),
        (["max_in_flight=0"], "max_in_flight=0: must be at least 1"),
        (["code=newest"], "code='newest': accepted: 'recorded' or 'current'"),
        (["baseline=maybe"], "baseline='maybe': must be true or false"),
        (["campaign=.."], "campaign='..': is not a name"),
        (["campaign=a/b"], "campaign='a/b': is not a name"),
        (["campaign='a b'"], "campaign='a b': is not a name"),
        (["campaign=''"], "campaign='': is not a name"),
        (["model=llama"], "model=llama: is not an option of model; did you mean llama-3.2-1b?"),
        (["learning_rate=3"], "learning_rate: is not a key; did you mean train.learning_rate?"),
        (["hydra.run.dir=x"], "hydra.run.dir: is not a key"),
        (["optimizer.name=lhs"], "choose with optimizer=NAME"),
        (["optimizer.initail=3"], "optimizer.initail: is not a key; did you mean optimizer.initial?"),
        (["optimizer.initial=0"], "optimizer.initial=0: must be at least 1"),
        (
            ["optimizer.acquisition=pi"],
            "optimizer.acquisition='pi': accepted: 'qlognei', 'log_ei', 'ucb', 'thompson' or 'parego'",
        ),
        (["optimizer=lhs", "optimizer=bo"], "optimizer is chosen twice"),
        (["optimizer=grid", "optimizer.levels.lora_ranc=3"], "did you mean lora_rank?"),
        (["optimizer=grid", "optimizer.levels=100"], "lower optimizer.levels"),
        (["optimizer=lhs,bo"], "lists several values; run -m starts a campaign for each"),
        (["~optimizer"], "a group cannot be removed"),
        (["~budget"], "cannot be removed; only a parameter can"),
        (["space.lora_rank.hihg=3"], "did you mean space.lora_rank.high?"),
        (["space.warmup={low: 1, high: 2}"], "to add it: '+space.warmup={low: 1, high: 2}'"),
        (["+space.warmup_steps={low: 1, high: 2}"], "did you mean lr_warmup_steps?"),
        (
            ["space.lora_rank=[3, 4]"],
            "space.lora_rank=[3, 4]: is not a parameter; write {choices: [3, 4]}, or {choices:",
        ),
        (["space.lora_rank=null"], "space.lora_rank=None: is not a parameter; accepted: a mapping such as {low: 1e-5,"),
        (["space.lora_rank=many"], "space.lora_rank: the training setting does not accept 'many'"),
        (
            ["space=lora", "space.lora_rank.step=8"],
            "space.lora_rank: high 64 is not reached from low 2 in steps of 8",
        ),
        (["space.learning_rate.step=0.1"], "space.learning_rate: step and log do not go together"),
        (["space.warmup=16"], "space.warmup: is not a parameter of the space; to add it: '+space.warmup=16'"),
        (["space.lora_rank.low=two"], "space.lora_rank: low='two': is not a number"),
        (["space={}"], "has no space of its own"),
        (["space=own"], "space: objective=lora has no space of its own; give space=NAME"),
        (["space.learning_rate.low=0"], "a log scale needs low above 0"),
        (["space.lora_dropout.high=2"], "space.lora_dropout: the training setting does not accept 2.0"),
        (["objective=command"], "space: objective=command has no space of its own; give space=NAME"),
        (["objective=command"], "objective.command: has no value; give objective.command=..."),
        (["objective=synthetic", "space=lora"], "space.lora_rank: is not a parameter of himmelblau"),
        (["objective=synthetic", "objective.function=himmelblo"], "is not a test function"),
        (["objective=synthetic", "model=llama-3.2-1b"], "model: objective=synthetic does not use it"),
        (["objective=synthetic", "train.epochs=2"], "train: objective=synthetic does not use it"),
        (["model=local"], "model.checkpoint_dir: has no value; give model.checkpoint_dir=..."),
        (["model=llama-3.2-1b"], "run: hpo-cluster prepare model=llama-3.2-1b"),
        (["data.path=/nowhere.json"], "data.path: /nowhere.json is not Alpaca-format data"),
        (["launcher.cpus_per_trial=0"], "launcher.cpus_per_trial=0: must be at least 1"),
        (
            ["launcher=slurm", "launcher.gpus_per_trial=4", "objective.evaluation=litgpt_cli"],
            "launcher.gpus_per_trial=4: objective.evaluation=litgpt_cli scores on one GPU; give",
        ),
        (
            ["launcher=slurm", "launcher.trials_per_node=4"],
            "launcher.trials_per_node=4 needs at least as",
        ),
        (
            ["launcher=pbs"],
            "launcher=pbs: is not an option of launcher; accepted: local, oar, oar_besteffort, oar_chuc,",
        ),
        (["launcher.setup=['export HF_TOKEN=abc']"], "launcher.setup.0: holds what looks like a token or password"),
        (["tasks.test=mmlu"], "tasks.test='mmlu': must be a list"),
        (["optimizer@x=bo"], "packages (@) are not accepted"),
    ],
)
def test_a_fault_says_key_value_and_what_is_accepted(overrides: list[str], expected: str) -> None:
    assert expected in faults_of(*overrides)


def test_a_wrong_config_dir_is_a_fault() -> None:
    assert "--config-dir nowhere: is not a directory" in faults_of(config_dir=Path("nowhere"))


def test_faults_of_a_user_s_file(here: Path) -> None:
    (here / "conf" / "experiment").mkdir(parents=True)
    path = here / "conf" / "experiment" / "mine.yaml"
    path.write_text("# @package _global_\n# Mine\nbudgte: 3\noptimizer: {initail: 3}\n")
    text = faults_of("experiment=mine")
    assert "budgte: is not a key; did you mean budget?" in text
    assert "optimizer.initail: is not a key; did you mean optimizer.initial?" in text
    path.write_text("# @package _global_\ndefaults:\n  - override /model: nowhere\n")
    assert "the configuration files cannot be composed" in faults_of("experiment=mine")
    path.write_text("# @package _global_\nmodel: village\n")
    assert "model='village': is not a mapping; an option is chosen with override /model: NAME" in faults_of(
        "experiment=mine"
    )
    path.write_text("a: [")
    assert "the configuration files cannot be composed" in faults_of("experiment=mine")


def test_no_configuration_names_a_python_function(here: Path) -> None:
    (here / "conf" / "objective").mkdir(parents=True)
    (here / "conf" / "objective" / "fn.yaml").write_text("# Mine\nkind: function\nfunction: os:remove\n")
    assert "a configuration names no Python function" in faults_of("objective=fn", "space={a: {low: 0, high: 1}}")
    (here / "conf" / "objective" / "target.yaml").write_text("# Mine\n_target_: os.remove\nkind: synthetic\n")
    assert "objective._target_: is not a key; accepted: objective.direction" in faults_of("objective=target")
    assert not any("_target_" in path.read_text() for path in conf_dir().rglob("*.yaml"))


# ---------------------------------------------------------------------------------------------------- several campaigns


def test_combinations() -> None:
    assert expand(["optimizer=lhs,bo", "seed=0,1", "budget=3"]) == [
        ["optimizer=lhs", "seed=0", "budget=3"],
        ["optimizer=lhs", "seed=1", "budget=3"],
        ["optimizer=bo", "seed=0", "budget=3"],
        ["optimizer=bo", "seed=1", "budget=3"],
    ]
    assert expand(["seed=range(3)"]) == [["seed=0"], ["seed=1"], ["seed=2"]]
    assert expand(["tasks.test=[a,b]"]) == [["tasks.test=[a,b]"]]
    with pytest.raises(ConfigError, match="2 faults"):
        expand(["budget", "seed=[1"])


def test_combinations_have_folders_of_their_own() -> None:
    configs = compose_all(expand(["experiment=quick", "optimizer=lhs,random", "seed=0,1"]))
    assert [config.campaign for config in configs] == [
        "himmelblau-lhs-0",
        "himmelblau-lhs-1",
        "himmelblau-random-0",
        "himmelblau-random-1",
    ]


def test_what_the_command_never_gets_is_named_next_to_the_faults_of_the_space() -> None:
    told = faults_of(
        "objective=command",
        "objective.command='train --lr={lrr} --x={y}'",
        "space={lr: {low: 1e-5, high: 1e-1, log: tru}, b: {low: 3, hgh: 4}, constraints: ['b < 4']}",
    )
    for fault in (
        "space.lr: log='tru': must be true or false",
        "space.b: hgh: unknown",
        "{lrr} is not a parameter of the space; did you mean {lr}?",
        "{y} is not a parameter of the space",
    ):
        assert fault in told, fault
    assert "space.constraints: objective.command" not in told


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("campaign=été", """'campaign="été"'"""),
        ("notify.command=echo {message}", """'notify.command="echo {message}"'"""),
        ("tasks.test=[a", "put quotes around a value with spaces, commas or brackets"),
    ],
)
def test_a_value_that_cannot_be_read_says_how_to_type_it(word: str, says: str) -> None:
    assert says in faults_of(word)
    if "[" not in word:
        assert "cannot be read" not in faults_of(says.strip("'"), "budget=0")


def test_one_wrong_objective_hides_no_other_fault() -> None:
    told = faults_of(
        *("objective=command", "objective.command='train {lr}'", "space={lr: {low: 1e-5, high: 1e-1}}"),
        "objective.metrics=[accuracy, {name: latency_ms, direction: minimise}]",
        "objective.constraints=[{name: mem}]",
        "optimizer=soo",
    )
    for fault in (
        "objective.metrics.1.direction='minimise': accepted: 'maximize' or 'minimize'",
        "nothing says whether more or less accuracy is better",
        "objective.constraints: mem needs a number",
        "optimizer=soo: has one objective only",
    ):
        assert fault in told, fault
    assert "4 faults:" in told  # and none that follows from another


def test_a_wrong_direction_of_a_metric_is_one_fault() -> None:
    words = ("objective=command", "objective.command='train {lr}'", "space={lr: {low: 1e-5, high: 1e-1}}")
    told = faults_of(*words, "objective.metrics=[{name: acc, direction: max}, {name: s, direction: minimize}]")
    assert "1 fault:\n  - objective.metrics.0.direction='max': accepted: 'maximize' or 'minimize'" in told


def test_combinations_are_all_checked_before_the_first_starts() -> None:
    with pytest.raises(ConfigError) as caught:
        compose_all(expand(["experiment=quick", "optimizer=lhs,boo", "seed=0,-1"]))
    text = str(caught.value)
    assert "[experiment=quick optimizer=lhs seed=-1] seed=-1: must be at least 0" in text
    assert "[experiment=quick optimizer=boo seed=0] optimizer=boo: is not an option" in text
    with pytest.raises(ConfigError, match="campaign=one: 2 combinations would share"):
        compose_all(expand(["experiment=quick", "campaign=one", "seed=0,1"]))
    with pytest.raises(ConfigError, match="1 fault:\n  - workers=0: must be at least 1"):
        compose_all(expand(["experiment=quick", "workers=0", "seed=0,1"]))


# ---------------------------------------------------------------------------------------------- what Hydra's users type


def test_values_refer_to_other_keys_and_to_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    config = compose(
        [
            "experiment=quick",
            "optimizer=lhs",
            "workers=4",
            "budget=${workers}",
            "campaign=${objective.function}-${optimizer.name}-${budget}",
            "storage_dir=${oc.env:SCRATCH}/storage",
            "optimizer.points=${space.x1.high}",
            "space.x1.high=${budget}",
        ]
    )
    assert (config.campaign, config.operation.budget) == ("himmelblau-lhs-4", 4)
    assert config.settings.storage_dir == Path("/scratch/me/storage")
    assert config.optimizer.identity()["points"] == 4
    assert config.space.parameters["x1"] == Float(-5.0, 4.0)


def test_all_values_that_refer_to_nothing_are_named() -> None:
    told = faults_of(
        "budget=${wrokers}", "storage_dir=${oc.env:NOT_THERE}", "grace_s=${poll_s}", "poll_s=${grace_s}", "seed=-1"
    )
    assert told.startswith("5 faults")
    assert "budget=${wrokers}: Interpolation key 'wrokers' not found; did you mean workers?" in told
    assert "Environment variable 'NOT_THERE' not found" in told
    assert "grace_s=${poll_s}: Recursive interpolation" in told
    assert "seed=-1: must be at least 0" in told


@pytest.mark.parametrize("shell", ["${{HOME}}", r"\${{HOME}}", "$HOME"])
def test_text_of_the_shell_stays_text_when_a_campaign_goes_on(shell: str) -> None:
    words = ["objective=command", "space={lr: {low: 1e-5, high: 1e-1, log: true}}", r"launcher.setup=['A=\${B}']"]
    config = compose([*words, f"objective.command='echo {shell} {{lr}}'"])
    assert config.objective.model_dump()["command"] == f"echo {shell.removeprefix(chr(92))} {{lr}}"
    again = compose_resume(config.identity(), recorded_operation(config), [], campaign_dir=config.campaign_dir)
    assert again.identity() == config.identity()
    assert again.launcher.setup == ("A=${B}",)


def test_text_of_the_shell_that_hydra_would_resolve_is_a_fault() -> None:
    told = faults_of("launcher.setup=['A=${B}', 'C=${D:-}']", "launcher.container='x ${} y'", "seed=-1")
    assert "launcher.setup.0=A=${B}: Interpolation key 'B' not found" in told or "launcher.setup=" in told
    assert "launcher.container='x ${} y': cannot be applied" in told
    assert "seed=-1: must be at least 0" in told
    assert r"\${ is the text itself" in told


def test_nested_values_merge() -> None:
    config = compose(
        [
            "optimizer={initial: 3, acquisition: ucb}",
            "failures={code: failed}",
            "launcher=slurm",
            "+launcher.extra={nice: 100, exclude: 'node[03-05]'}",
            "++launcher.extra.reservation='a b'",
            "launcher.setup=['module load cuda', \"echo 'x,y'\"]",
            "~launcher.extra.nice",
            "space.learning_rate.prior.center=3e-3",
            "space.learning_rate.prior.spread=0.2",
        ],
        check_files=False,
    )
    assert (config.optimizer.identity()["initial"], config.optimizer.identity()["acquisition"]) == (3, "ucb")
    assert (config.operation.failures.code, config.operation.failures.node) == ("failed", "retry")
    assert config.launcher.model_dump()["extra"] == {"exclude": "node[03-05]", "reservation": "a b"}
    assert config.launcher.setup == ("module load cuda", "echo 'x,y'")
    assert config.space.parameters["learning_rate"].prior == Prior(3e-3, 0.2)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("seed=choice(3,1)", ["3", "1"]),
        ("seed=range(0,6,2)", ["0", "2", "4"]),
        ("seed=sort(3,1,2)", ["1", "2", "3"]),
        ("seed=sort(1,2,reverse=true)", ["2", "1"]),
        ("optimizer=glob(so*)", ["sobol", "soo"]),
        ("optimizer=glob([d*,l*],exclude=*_l)", ["direct", "lhs"]),
        ("tasks.test=[a,b],[c]", ["[a,b]", "[c]"]),
        ("campaign='a,b',c", ["'a,b'", "c"]),
        ("space={a: {low: 0, high: 1}},{b: {low: 0, high: 1}}", ["{a:{low:0,high:1}}", "{b:{low:0,high:1}}"]),
    ],
)
def test_sweeps(text: str, values: list[str]) -> None:
    key = text.partition("=")[0]
    assert expand([text]) == [[f"{key}={value}"] for value in values]


def test_a_shuffled_sweep_has_every_value_once() -> None:
    assert sorted(expand(["seed=shuffle(range(0,4))"])) == [[f"seed={seed}"] for seed in range(4)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "seed=interval(0,1)",
            "seed=interval(0,1): has infinitely many values, and a campaign needs one; accepted: a,b",
        ),
        ("optimizer=glob(x*)", "optimizer=glob(x*): lists nothing"),
        (
            "optimizer=glob(r*),sobol",
            "optimizer=glob(r*),sobol: glob cannot be mixed with other values; several patterns: glob([so*,d*])",
        ),
        ("seed=glob(*)", "glob(PATTERN) lists options of a group: experiment, space, optimizer"),
    ],
)
def test_sweeps_that_are_none(text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        expand([text, "seed=0"])
    assert "lists several values; run -m starts a campaign for each" in faults_of(text)


def test_combinations_that_share_a_folder_are_told_how_to_get_one_each() -> None:
    words = ["experiment=quick", "workers=1,2", "launcher=local,slurm"]
    with pytest.raises(
        ConfigError, match=re.escape("put into the name what differs: 'campaign=NAME-${workers}-${laun")
    ):
        compose_all(expand(words))
    configs = compose_all(expand([*words, "campaign=a-${workers}-${launcher.kind}"]))
    assert [config.campaign for config in configs] == ["a-1-local", "a-1-slurm", "a-2-local", "a-2-slurm"]


def test_a_configuration_of_one_s_own(here: Path) -> None:
    (here / "extra" / "launcher").mkdir(parents=True)
    (here / "extra" / "launcher" / "night.yaml").write_text("# Night\ndefaults:\n  - oar\nqueue: night\n")
    path = here / "extra" / "mine.yaml"
    path.write_text(
        "defaults:\n  - config\n  - override optimizer: lhs\n  - override launcher: night\n  - _self_\n"
        "budget: 5\ncampaign: ${optimizer.name}-${budget}\n"
    )
    for name in ("mine", "mine.yaml"):
        config = compose(["workers=3"], config_dir=Path("extra"), config_name=name, check_files=False)
        assert (config.campaign, config.operation.workers, config.operation.budget) == ("lhs-5", 3, 5)
        assert config.launcher.model_dump()["queue"] == "night"
        assert config.launcher.walltime_min == 120
    typed = compose(["optimizer=bo", "budget=6"], config_dir=Path("extra"), config_name="mine", check_files=False)
    assert typed.campaign == "bo-6"
    path.rename(here / "extra" / "config.yaml")
    assert "config.yaml: has the name of the package's own; rename it" in faults_of(config_dir=Path("extra"))


def test_every_value_that_hydra_refuses_is_named() -> None:
    told = faults_of(
        "launcher=slurm",
        "launcher.setup.x=3",
        "data.fields.a.b=1",
        "~launcher.extra.no",
        "seed=-1",
        "objective.metrics={acc: maximize}",
        "launcher.extra=[gres]",
    )
    for expected in (
        "objective.metrics={acc: maximize}: must be a list, like [A, B]",
        "launcher.extra=[gres]: must be a mapping, like {NAME: VALUE}",
        "launcher.setup.x=3: cannot be applied",
        "~launcher.extra.no: cannot be applied",
        "seed=-1: must be",
    ):
        assert expected in told


def test_the_study_with_another_optimizer() -> None:
    config = compose(["experiment=ola2025", "optimizer=turbo"], check_files=False)
    assert (config.optimizer.name, config.operation.budget) == ("turbo", 50)


# ------------------------------------------------------------------------------------------------ identity and resuming


def recorded_operation(config: Config) -> dict[str, Any]:
    """What the journal keeps of a start: the operation and the settings beside it."""
    spec = campaign_spec(config)
    return {**spec.operation.model_dump(mode="json"), **spec.settings}


def test_the_identity_is_plain_and_comes_back(here: Path) -> None:
    for overrides in ([], ["experiment=quick", "optimizer=lhs"], ["experiment=ola2025_bo"]):
        config = compose(overrides, check_files=False)
        identity = yaml.safe_load(yaml.safe_dump(config.identity(), sort_keys=False))
        assert list(identity) == ["space", "objective", "optimizer", "direction", "seed"]
        assert Space.from_json(identity["space"]) == config.space
        assert parse_objective(identity["objective"]).identity() == config.objective.identity()
        operation = recorded_operation(config)
        again = compose_resume(identity, operation, [], campaign_dir=config.campaign_dir, check_files=False)
        assert to_plain(again) == to_plain(config)


def test_resuming_changes_operational_keys_only() -> None:
    config = compose(["experiment=quick"])
    identity, operation = config.identity(), recorded_operation(config)
    again = compose_resume(
        identity, operation, ["budget=60", "workers=8", "launcher=slurm", "launcher.partition=gpu"],
        campaign_dir=Path("campaigns/first"),
    )  # fmt: skip
    assert (again.operation.budget, again.operation.workers) == (60, 8)
    assert (again.launcher.kind, again.campaign) == ("slurm", "first")
    assert again.identity() == identity
    with pytest.raises(ConfigError) as caught:
        compose_resume(
            identity, operation, ["seed=1", "optimizer=lhs", "space.x1.high=3", "campaign=b", "wrokers=2", "workers=0"],
            campaign_dir=Path("campaigns/first"),
        )  # fmt: skip
    text = str(caught.value)
    assert text.startswith("6 faults:")
    assert "seed=1: belongs to the campaign's identity and cannot change; accepted: launcher, tracking, budget" in text
    assert "for another campaign: hpo-cluster run ... seed=1 campaign=NEW_NAME\n" in text
    assert "hpo-cluster run ... optimizer=lhs campaign=NEW_NAME 'warm_start=[campaigns/first]'" in text
    assert "wrokers: is not a key; did you mean workers?" in text


def test_settings_that_change_no_result_may_change_when_resuming() -> None:
    config = compose(["train.tokens_at_once=400"])
    identity, operation = config.identity(), recorded_operation(config)
    assert "tokens_at_once" not in identity["objective"]["train"]
    changes = ["train.checkpoint_interval_s=60", "objective.keep_adapter=false"]
    again = compose_resume(identity, operation, changes, campaign_dir=config.campaign_dir)
    assert isinstance(again.objective, LoraObjective)
    train = again.objective.train
    assert (train.tokens_at_once, train.checkpoint_interval_s, again.objective.keep_adapter) == (400, 60, False)
    assert again.identity() == identity
    with pytest.raises(ConfigError, match=r"train.epochs=2: belongs to .* train.tokens_at_once"):
        compose_resume(identity, operation, ["train.epochs=2"], campaign_dir=config.campaign_dir)


@pytest.mark.parametrize("where", ["identity", "operation"])
def test_a_campaign_that_recorded_a_physical_batch_goes_on_without(where: str, tmp_path: Path) -> None:
    config = compose([])
    identity, operation = copy.deepcopy(config.identity()), copy.deepcopy(recorded_operation(config))
    if where == "identity":
        identity["objective"]["train"]["physical_batch_size"] = None
    else:
        del operation["objective"]["train.tokens_at_once"]
        operation["objective"]["train.physical_batch_size"] = 4
    assert isinstance(parse_objective(identity["objective"]), LoraObjective)
    again = compose_resume(identity, operation, [], campaign_dir=config.campaign_dir)
    assert again.objective == config.objective
    recorded = _objective_as(again.identity()["objective"], identity["objective"], again.objective, tmp_path)
    assert recorded == identity["objective"], "the same campaign"
    train = again.objective.job_settings(Path)["train"]
    added = {"physical_batch_size", "tokens_at_once", "dropout_draws", "lr_decay_share"}
    assert not added & train.keys(), "its code may be older"
    assert "lr_decay_share" not in identity["objective"]["train"]
    with pytest.raises(ConfigError, match="physical_batch_size"):
        compose(["train.physical_batch_size=4"])


def test_resuming_a_python_function() -> None:
    identity = {
        "space": {"x": {"type": "float", "low": 0.0, "high": 1.0, "log": False}},
        "objective": {"kind": "function", "function": "math:sqrt", "search_path": "/", "direction": "maximize"},
        "optimizer": {"name": "random"},
        "direction": "maximize",
        "seed": 0,
    }
    assert compose_resume(identity, {}, ["budget=3"], campaign_dir=Path("c/first")).objective.kind == "function"


def test_open_settings_are_decided_once() -> None:
    def chosen(name: str, budget: int, recorded: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
        space, typed = Space({"x": Float(0.0, 1.0)}), make_settings(name, settings)
        return choose_optimizer(name, typed, space, 0, budget=budget, recorded=recorded).identity()

    assert chosen("lhs", 24)["points"] == 24
    recorded = {"optimizer": {"name": "lhs", "points": 24}}
    assert chosen("lhs", 48, recorded)["points"] == 24
    assert chosen("lhs", 48, recorded, points=7)["points"] == 7
    assert chosen("bo", 48, recorded)["initial"] == 10


# ------------------------------------------------------------------------------ conditions, constraints, priors, starts


def test_the_extended_spaces_tune_what_the_study_did_not() -> None:
    study = compose(["experiment=ola2025_bo"], check_files=False)
    for overrides in (["space=lora_extended", "train=ola2025"], ["space=village_extended"]):
        space = compose(overrides, check_files=False).space
        assert set(study.space.names) < set(space.names)
        assert {f"lora_{matrix}" for matrix in LORA_MATRICES} < set(space.names)
        assert {"beta1", "beta2", "epsilon", "lr_schedule", "lr_warmup_share", "precision", "epochs"} < set(space.names)
        drawn = [space.decode(point) for point in np.random.default_rng(0).random((300, space.dim))]
        allowed = [configuration for configuration in drawn if space.allows(configuration)]
        assert 200 < len(allowed) < 300
        for c in allowed:
            assert any(c[f"lora_{matrix}"] for matrix in LORA_MATRICES)
            assert ("lora_alpha" in c) is (c["lora_alpha_rule"] == "free")
            assert ("lora_alpha_factor" in c) is (c["lora_alpha_rule"] != "free")


def test_a_parameter_of_a_bundled_space_is_fixed_by_its_value() -> None:
    config = compose(["space.lora_rank=8", "space.learning_rate=1e-3", "+space.lr_schedule=cosine"], check_files=False)
    space = config.space
    assert set(space.names) - set(space.axes) == {"lora_rank", "learning_rate", "lr_schedule"}
    drawn = space.decode([0.3] * space.dim)
    assert (drawn["lora_rank"], drawn["learning_rate"], drawn["lr_schedule"]) == (8, 1e-3, "cosine")
    overrides = ["space=lora_extended", "space.lora_rank.choices=[8]", "space.lora_alpha_rule=rank"]
    extended = compose([*overrides, "space.lora_dropout.step=0.05", "space.lora_query=true"], check_files=False).space
    assert {"lora_rank", "lora_alpha_rule", "lora_query", "lora_alpha"}.isdisjoint(extended.axes)
    for point in np.random.default_rng(0).random((50, extended.dim)):
        drawn = extended.decode(point)
        assert (drawn["lora_rank"], drawn["lora_query"]) == (8, True)
        assert "lora_alpha" not in drawn
        assert "lora_alpha_factor" in drawn
        assert len(str(drawn["lora_dropout"])) <= len("0.15")


def test_what_stands_beside_the_parameters_can_be_typed() -> None:
    config = compose(
        [
            "space.constraints=['lora_alpha <= 4 * lora_rank']",
            "space.start=[{lora_rank: 16, lora_alpha: 32}, {learning_rate: 1e-3}]",
            "space.learning_rate.prior={center: 3e-3, spread: 0.2}",
            "+space.lr_schedule={choices: [cosine, linear]}",
            "space.weight_decay.when={lr_schedule: cosine}",
        ],
        check_files=False,
    )
    space = config.space
    assert [constraint.text for constraint in space.constraints] == ["lora_alpha <= 4 * lora_rank"]
    assert [c["lora_rank"] for c in space.start] == [16, 7]
    assert space.parameters["learning_rate"] == Float(1e-4, 1e-1, log=True, prior=Prior(3e-3, 0.2))
    assert space.parameters["weight_decay"].when == {"lr_schedule": ("cosine",)}
    assert Space.from_json(yaml.safe_load(yaml.safe_dump(config.identity()["space"], sort_keys=False))) == space
    plain = ["space.constraints=['lora_alpha <= 4 * lora_rank']", "~space.constraints"]
    assert compose(plain, check_files=False).space == compose([], check_files=False).space


def test_all_faults_of_a_space_are_named_at_once() -> None:
    told = faults_of(
        "space.constraints=['lora_alhpa <= 4 * lora_rank', 'lora_rank + 1']",
        "space.learning_rate.prior={center: 3, spread: 0.2}",
        "space.lora_dropout.when={lora_mpl: true}",
        "space.lora_rank.low=two",
    )
    for expected in (
        "5 faults",
        "space.constraints, 'lora_alhpa <= 4 * lora_rank': 'lora_alhpa' is not a parameter; did you mean lora_alpha?",
        "space.constraints, 'lora_rank + 1': is not a comparison; write one such as a + b <= 1",
        "space.learning_rate: prior.center=3: is outside 0.0001 to 0.1",
        "space.lora_dropout.when.lora_mpl: is not a parameter of the space",
        "space.lora_rank: low='two': is not a number",
    ):
        assert expected in told


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["space.constraints=['lora_rank > 32']"], "none of 10000 random configurations satisfies lora_rank > 32"),
        (["space.start=[{lora_rnak: 3}]"], "space.start[0].lora_rnak: is not a parameter of the space; did you mean"),
        (["space.start=[{lora_rank: 99}]"], "space.start[0].lora_rank: 99 is not an integer from 2 to 32"),
        (["space.constrains=[x]"], "space.constrains: is not a key; did you mean space.constraints?"),
        (["space.constraints=3"], "space.constraints=3: must be a list of comparisons"),
        (["space=village_extended", "space.constraints=[]"], "LoRA needs at least one matrix"),
        (["space=village_extended", "train.micro_batch_size=16", "train.global_batch_size=16"], "is not a multiple of"),
        (["+space.precision={choices: [bf16-true, fp16]}"], "the training setting does not accept 'fp16'"),
        (["+space.lora_alpha_factor={low: 1, high: 4}"], "has no effect with train.lora_alpha_rule=free"),
        (["train.lora_alpha_rule=root"], "space.lora_alpha: has no effect with train.lora_alpha_rule=root"),
        (["+space.lr_decay_share={low: 0.1, high: 0.4}"], "has no effect with train.lr_schedule=cosine"),
        (
            ["+space.lr_decay_share={low: 0.1, high: 0.4}", "+space.lr_schedule={choices: [cosine, linear]}"],
            "has no effect with space.lr_schedule={choices: [cosine, linear]}",
        ),
        (["train.lr_decay_share=0"], "train.lr_decay_share"),
        (["space=village_extended", "+space.lr_warmup_steps={low: 0, high: 9}"], "with space.lr_warmup_share"),
        (["objective=synthetic", "+space.b={type: bool}", "space.x1.when={b: true}"], "always needs all its"),
    ],
)  # fmt: skip
def test_faults_of_what_stands_beside_the_parameters(overrides: list[str], expected: str) -> None:
    assert expected in faults_of(*overrides)


@pytest.mark.parametrize("how", ["train.lr_schedule=wsd", "+space.lr_schedule={choices: [cosine, wsd]}"])
def test_the_share_of_the_decay_can_be_tuned_where_it_has_an_effect(how: str) -> None:
    config = compose(["+space.lr_decay_share={low: 0.1, high: 0.4}", how, "fidelity=steps"])
    assert "lr_decay_share" in config.space.names
