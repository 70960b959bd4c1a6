"""The table of the commands and their options, which parsing, help and completion read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OVERRIDES = "[KEY=VALUE ...]"
#: Options that say where the configuration begins.
FILES = ("--config-dir", "--config-name")
#: Keys of `hpo_cluster.driver.simulate.SimulationSettings`, which the TAB key need not import.
SIMULATION_KEYS = (
    *("repeats", "duration_s", "spread", "waiting_s", "places", "failure_rate", "preemptions_per_hour", "checkpoints"),
    *("proposal_scale", "start"),
)
#: Keys that say what a campaign is, or where, and that one which exists does not accept.
SETTLED_KEYS = (
    *("campaign", "campaigns_dir", "seed", "warm_start", "warm_start_other_objective", "warm_start_columns"),
    "warm_start_skip_bad",
)
#: Groups from which a campaign that exists may choose another option.
OPEN_GROUPS = ("launcher", "tracking")
#: Options that print the configuration and do nothing.
LOOK = ("--cfg", "--package", "--resolve")


@dataclass(frozen=True)
class Command:
    """One command: its line of description, what it takes, its options and the function that carries it out."""

    summary: str
    runs: str  # module of `hpo_cluster.cli.commands` and function
    words: str
    options: tuple[str, ...] = ()
    #: What it accepts as KEY=VALUE after a folder, or besides overrides, each with its line of description.
    keys: Mapping[str, str] = field(default_factory=dict)

    @property
    def takes_overrides(self) -> bool:
        """Whether the command takes ``KEY=VALUE``."""
        return OVERRIDES in self.words

    @property
    def takes_folder(self) -> bool:
        """Whether the command's first word is a campaign's folder."""
        return self.words.startswith("DIR")

    @property
    def goes_on(self) -> bool:
        """Whether the command goes on with a campaign that exists, of which not every key may change."""
        return self.takes_folder and self.takes_overrides

    @property
    def takes_folders(self) -> bool:
        """Whether more campaigns' folders may follow the first one."""
        return self.words.startswith("DIR [DIR ...]")

    @property
    def takes_trials(self) -> bool:
        """Whether numbers of trials follow the folder."""
        return "TRIAL" in self.words


COMMANDS: Mapping[str, Command] = {
    "run": Command(
        "start a campaign, or go on with it: the same command does both",
        "drive.run",
        OVERRIDES,
        ("--multirun", *LOOK, "--info", *FILES, "--take-over", "--no-check"),
    ),
    "resume": Command(
        "go on with a campaign by its folder; budget=, workers=, launcher= may change",
        "drive.resume",
        f"DIR {OVERRIDES}",
        (*LOOK, "--config-dir", "--take-over"),
    ),
    "status": Command("where a campaign is, from any terminal", "look.status", "DIR", ("--json",)),
    "watch": Command(
        "a view of a campaign that refreshes: progress, running jobs, curves, errors, queue; q ends the view alone",
        "watch.watch",
        "DIR",
        ("--every",),
    ),
    "why": Command("the story of a trial: attempts, jobs, nodes, errors, its last output", "look.why", "DIR TRIAL"),
    "tail": Command("the log of a trial, as it grows", "look.tail", "DIR TRIAL"),
    "ls": Command(
        "all campaigns of a folder in one table: progress, best value, state", "overview.ls", "[FOLDER]", ("--json",)
    ),
    "best": Command(
        "the best trial for a preference: weights='{acc: 1, gpu_seconds: -0.01}' or at_most='{gpu_seconds: 30}'",
        "look.best",
        "DIR [weights={METRIC: NUMBER}] [at_most={METRIC: NUMBER}] [at_least={METRIC: NUMBER}]",
        ("--json",),
        {
            "weights": "by metric, what one more of it is worth; below zero if less is better",
            "at_most": "by metric, the largest value that is accepted",
            "at_least": "by metric, the smallest value that is accepted",
        },
    ),
    "compare": Command(
        "compare campaigns over seeds: table, tests, figures, what is within the noise; DIR may hold many campaigns",
        "compare.compare",
        "DIR [DIR ...] [reach=VALUE] [reference={METRIC: NUMBER}] [out=FOLDER]",
        keys={
            "reach": "a value of the metric: the table says what it took to reach it",
            "reference": "with several objectives, by metric, the worst value of interest",
            "out": "folder to write; if none is given, comparison, next to the first campaign",
        },
    ),
    "cancel": Command("end trials; they do not count for the budget", "drive.post", "DIR TRIAL [TRIAL ...]"),
    "retry": Command("try trials again that failed, diverged or were cancelled", "drive.post", "DIR TRIAL [TRIAL ...]"),
    "promote": Command("let trials that are paused at a rung climb to the top", "drive.post", "DIR TRIAL [TRIAL ...]"),
    "stop": Command("let the driver, or the ticks, submit nothing more; jobs run on", "drive.post", "DIR"),
    "tick": Command(
        "one short pass instead of a driver that stays, for cron: collect, propose, submit, exit",
        "drive.tick",
        f"DIR {OVERRIDES}",
        ("--config-dir", "--take-over"),
    ),
    "report": Command("write a campaign's page (HTML) and its figures (PNG, PDF)", "look.report", "DIR"),
    "describe": Command(
        "what a paper's appendix needs: the paragraph, the tables and the references",
        "describe.describe",
        "DIR",
        ("--latex", "--bibtex", "--json"),
    ),
    "verify": Command(
        "derive every proposal again, compare results with their files; changes nothing",
        "verify.verify",
        "DIR",
        ("--json",),
    ),
    "confirm": Command(
        "evaluate the best configurations again with new seeds; outside the budget: was the winner lucky?",
        "confirm.confirm",
        f"DIR [top=3] [replicates=3] [trials=[7,3]] {OVERRIDES}",
        ("--config-dir", "--take-over"),
        {
            "top": "how many of the best configurations are evaluated again",
            "replicates": "evaluations of each, each with a new seed",
            "trials": "the trials whose configurations are evaluated again, in place of the best ones",
        },
    ),
    "repair": Command(
        "rebuild a journal that was cut or damaged: from its whole lines and the jobs' files", "check.repair", "DIR"
    ),
    "export-adapter": Command(
        "write the model that a trial has fine-tuned: as a Hugging Face model",
        "look.export_adapter",
        "DIR TRIAL",
        ("--to",),
    ),
    "export": Command(
        "write the trials for other tools: a table, an Optuna study, MLflow, TensorBoard, W&B; again updates it",
        "exchange.export",
        "DIR to=csv|parquet|optuna|mlflow|tensorboard|wandb [path=FILE, FOLDER or URL] [name=NAME]",
        (),
        {
            "to": "the format: csv or parquet (a table), optuna (a study), mlflow, tensorboard, wandb",
            "path": "file, folder or URL; if none is given, a file in the campaign's folder, or the tool's own place",
            "name": "of the study (optuna), the experiment (mlflow) or the project (wandb)",
        },
    ),
    "import": Command(
        "make a campaign of evaluations that were made elsewhere: a table, JSON lines or an Optuna study",
        "exchange.import_evaluations",
        f"FILE {OVERRIDES}",
        ("--like", *FILES),
    ),
    "simulate": Command(
        "play campaigns through on a simulated cluster, in seconds: how long, how many GPU-hours, which optimizer",
        "simulate.simulate",
        f"{OVERRIDES} [simulate.KEY=VALUE ...]",
        ("--multirun", *FILES),
        {f"simulate.{key}": "" for key in SIMULATION_KEYS},  # the settings have their descriptions
    ),
    "doctor": Command(
        "check commands, storage, clock, queue and files; run one tiny job", "check.doctor", OVERRIDES, FILES
    ),
    "prepare": Command(
        "fetch model, data and tasks to shared storage, once", "check.prepare", OVERRIDES, (*LOOK, *FILES)
    ),
    "completion": Command(
        "print the script for the TAB key: it completes commands, keys, options and folders",
        "shell.completion",
        "bash|zsh|fish",
    ),
}

#: By option: its short forms, and argparse's arguments.
OPTIONS: Mapping[str, tuple[tuple[str, ...], Mapping[str, Any]]] = {
    "--multirun": (
        ("-m",),
        {"action": "store_true", "help": "several campaigns one after another: -m optimizer=lhs,bo 'seed=range(3)'"},
    ),
    "--cfg": (("-c",), {"metavar": "job", "help": "print the composed configuration as YAML and do nothing"}),
    "--package": (("-p",), {"metavar": "KEY", "help": "of --cfg job: print this section or key alone"}),
    "--resolve": (
        (),
        {"action": "store_true", "help": "of --cfg job: not needed, as interpolations are always resolved"},
    ),
    "--info": (
        ("-i",),
        {
            "metavar": "WHAT",
            "nargs": "?",
            "const": "all",
            "help": "print what the configuration is made of and do nothing: searchpath, defaults, defaults-tree, "
            "config, or all",
        },
    ),
    "--config-dir": (
        ("-cd",),
        {"metavar": "DIR", "help": "a folder of configuration files and of groups (space/NAME.yaml), next to ./conf"},
    ),
    "--config-name": (
        ("-cn",),
        {"metavar": "NAME", "help": "the file to begin with, in ./conf or --config-dir; begin it with  defaults: "
         "[config, _self_]"},
    ),
    "--take-over": ((), {"action": "store_true", "help": "take over a campaign whose driver died on another host"}),
    "--no-check": (
        (),
        {
            "action": "store_true",
            "help": "do not read model, data and tasks before a new campaign starts; its jobs will",
        },
    ),
    "--every": ((), {"metavar": "SECONDS", "help": "seconds between two looks at the campaign; 3 if not given"}),
    "--like": ((), {"metavar": "DIR", "help": "take space, objective, optimizer and seed of this campaign"}),
    "--to": ((), {"metavar": "NEW_DIR", "help": "the folder to write"}),
    "--latex": ((), {"action": "store_true", "help": "print it as LaTeX"}),
    "--bibtex": ((), {"action": "store_true", "help": "print the BibTeX entries alone"}),
    "--json": ((), {"action": "store_true", "help": "print it as JSON"}),
    "--help": (("-h",), {"action": "store_true", "help": "this text"}),
}  # fmt: skip

#: Hydra's options that have no meaning here, and what to type.
NOT_OURS = {
    ("--shell-completion", "-sc"): 'type: eval "$(hpo-cluster completion bash)"  (or zsh, fish)',
    ("--hydra-help",): "type: hpo-cluster run --help",
    ("--run", "-r"): "leave it out: run is the command",
    ("--experimental-rerun",): "type: hpo-cluster resume DIR",
    ("--config-path", "-cp"): "type: --config-dir DIR, and --config-name NAME for a file to begin with",
}

#: What `--info` prints.
INFO = ("all", "config", "defaults", "defaults-tree", "searchpath")
