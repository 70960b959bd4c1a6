"""Fine-tune the bundled model as a job does, and look at it after a ninth and a third of the steps.

The training is that of ``jobs/lora.py``, called function by function; a test compares the last values with those of a
real attempt. Between two steps a copy of the model is merged and scored, so that looking does not change the training.
With ``lr_schedule=wsd`` the training of the copy is finished before, as at a rung of a job.
The tasks, their prompts and their tokens are read once for all evaluations of a process.
"""

from __future__ import annotations

import copy
import gc
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpo_cluster.cli.config.compose import compose
from hpo_cluster.cli.config.schema import Config
from hpo_cluster.errors import AttemptError
from hpo_cluster.objectives.lora.inputs import checked_checkpoint, load_examples
from hpo_cluster.objectives.lora.objective import LoraObjective
from hpo_cluster.objectives.lora.schedule import make_plan, rung_step
from hpo_cluster.objectives.lora.settings import effective_train
from hpo_cluster.objectives.worker import Attempt
from hpo_cluster.space import Value
from hpo_cluster.trial import ErrorKind

#: What campaign the evaluations belong to: ``objective=lora`` on its defaults.
OVERRIDES = ("space=village_extended", "objective.keep_adapter=false")
#: Shares of the optimizer steps after which the model is scored.
SHARES = {"1/9": 1 / 9, "1/3": 1 / 3, "1": 1.0}
VALIDATION, TEST = "village_val", "village_test"


def configuration() -> Config:
    """Return the configuration of the campaign that the evaluations belong to."""
    return compose(list(OVERRIDES))


def rung_steps(steps: int) -> dict[str, int]:
    """Return the number of steps that each of `SHARES` is of `steps`; at least one."""
    return {name: rung_step(steps, share) for name, share in SHARES.items()}


class Silent(Attempt):
    """An attempt without a directory, whose progress nobody reads."""

    def __init__(self) -> None:
        pass

    def progress(self, *, force: bool = False, **fields: Any) -> None:
        """Report nothing."""


@dataclass
class Look:
    """What was measured after some steps of a training.

    Attributes:
        step: number of optimizer steps done.
        tokens: tokens trained on.
        train_s: CPU seconds of training up to here.
        score_s: CPU seconds of the validation loss and of scoring the tasks, here alone.
        decay_s: CPU seconds of finishing the copy that was looked at, here alone.
        metrics: accuracies and losses; empty if they are not finite.
        error: why they are missing.
    """

    step: int
    tokens: int
    train_s: float
    score_s: float = 0.0
    decay_s: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the measurements as one level of JSON; the error only if there is one."""
        row = {"step": self.step, "tokens": self.tokens, "train_s": round(self.train_s, 3)}
        row |= {"score_s": round(self.score_s, 3), **{name: round(v, 6) for name, v in self.metrics.items()}}
        row |= {"decay_s": round(self.decay_s, 3)} if self.decay_s else {}
        gc.collect()  # models are parts of cycles
        return row | ({"error": self.error} if self.error else {})


class Evaluator:
    """Evaluates configurations in this process; what they have in common is read once.

    Attributes:
        config: the campaign's configuration.
        objective: its objective, with absolute paths.
    """

    def __init__(self) -> None:
        self.config = configuration()
        assert isinstance(self.config.objective, LoraObjective)
        settings = self.config.objective.job_settings(self.config.resolve)
        storage_dir = Path(settings.pop("storage_dir"))
        self.objective = LoraObjective.model_validate(settings)
        from benchmarks.job.kernels import load_job

        self.job = load_job()
        self.device = self.job.prepare_process(storage_dir)
        from benchmarks.village.scoring import read_questions
        from hpo_cluster.objectives.lora.tokenizers import Tokenizers

        self.tokenizers = Tokenizers(checked_checkpoint(self.objective))
        # no parameter of the space changes the examples
        self.train_examples, self.val_examples = load_examples(self.objective, self.objective.train, self.tokenizers)
        with tempfile.TemporaryDirectory(prefix="village-") as scratch:
            self.questions = read_questions(self.objective, self.tokenizers, Path(scratch))

    def __call__(self, parameters: Mapping[str, Value], seed: int, share: str = "1") -> dict[str, Any]:
        """Fine-tune with one configuration and return what was measured, as JSON.

        Args:
            parameters: the configuration.
            seed: of the adapter's first weights and the dropout masks.
            share: the part of the steps after which the training *and its schedule* end, one of `SHARES`.

        Returns:
            ``looks``: one `Look` for each share up to the last, whose keys are those of `SHARES`; a whole training
            has three, a shorter one has only its last. ``error``: kind and message if the training diverged. And
            ``steps``, ``schedule``, ``examples``, ``tokens``, ``trainable_parameters``, CPU seconds.
        """
        from hpo_cluster.objectives.lora.base_model import load_model
        from hpo_cluster.objectives.lora.run import Run

        began = time.process_time()
        train = effective_train(self.objective.train, parameters)
        if share != "1":
            whole = make_plan(train, len(self.train_examples))
            train = effective_train(train, {"max_steps": rung_steps(whole.steps)[share]})
        plan = make_plan(train, len(self.train_examples))
        self.job.seed_everything(seed)
        model = load_model(self.tokenizers.checkpoint_dir, train, self.device, baseline=False)
        run = Run(model, train, self.device, seed)
        training = Training(self, run, plan.steps, share)
        training.state.optimizer = self.job.make_optimizer(model, train)
        load_s = time.process_time() - began
        error = training.finish()
        looks = training.looks
        last = looks.get(share)
        row = {
            "looks": {name: look.to_json() for name, look in looks.items()},
            "steps": training.state.step,
            "planned_steps": plan.steps,
            "schedule_steps": plan.schedule,
            "examples": training.state.examples,
            "tokens": training.state.tokens,
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "load_s": round(load_s, 3),
            "train_s": round(training.seconds, 3),
            "total_s": round(load_s + training.seconds + (last.score_s if last else 0.0), 3),
        }
        gc.collect()  # models are parts of cycles
        return row | ({"error": error} if error else {})

    def measure(self, run: Any) -> dict[str, float]:
        """Return validation loss and accuracies of the model as it is now. The model and its training stay as they are.

        Raises:
            AttemptError: of kind ``diverged``, if something that is not finite comes up.
        """
        from hpo_cluster.objectives.lora.language_model import LitLM

        val_loss = self.job.validate(run, self.val_examples)
        merged = copy.copy(run)
        merged.model = copy.deepcopy(run.model)
        _, precision = self.job.merge_adapter(merged, self.objective, self.tokenizers.checkpoint_dir)
        lm = LitLM(merged.model, self.tokenizers.hugging_face, precision=precision)
        return {"val_loss": val_loss, **self.questions.score(lm)}


class Training:
    """One training with looks at it.

    Attributes:
        looks: what was measured, by share.
        seconds: CPU seconds of training so far.
    """

    def __init__(self, evaluator: Evaluator, run: Any, steps: int, share: str) -> None:
        from hpo_cluster.objectives.lora.progress import State

        self.evaluator, self.run = evaluator, run
        self.state = State()
        self.share, self.attempt = share, Silent()
        steps_of = rung_steps(steps) if share == "1" else {share: steps}
        self.due = {name: step for name, step in steps_of.items() if name != share}
        self.looks = dict[str, Look]()
        self.seconds = 0.0
        self._since = 0.0

    def finish(self) -> dict[str, str] | None:
        """Train to the end, and score. Return the error's kind and message if the training diverged."""
        examples, split_seed = self.evaluator.train_examples, self.evaluator.objective.data.split_seed
        self._since = time.process_time()
        try:
            self.evaluator.job.fine_tune(self.run, self.state, examples, split_seed, self.attempt, self.after_step)
            self._count()
            self.look(self.share, catch=False)
        except AttemptError as error:
            if error.kind != ErrorKind.DIVERGED:
                raise
            if self.share not in self.looks:
                self._count()
            return {"kind": str(error.kind), "message": str(error)}
        return None

    def after_step(self) -> None:
        """Look at the model if a look is due; called by the training after each step."""
        for name, step in self.due.items():
            if step == self.state.step and name not in self.looks:
                self._count()
                self.state.read(self.attempt)
                if self.run.train.lr_schedule == "wsd":
                    self.look_at_end(name)
                else:
                    self.look(name, catch=True)
                self.run.model.train()
                self._since = time.process_time()

    def look_at_end(self, name: str) -> None:
        """Finish a copy of the training, and measure it; afterwards the training is where it was."""
        from hpo_cluster.objectives.lora.rungs import branched

        examples, split_seed = self.evaluator.train_examples, self.evaluator.objective.data.split_seed
        began = time.process_time()
        with branched(self.run, self.state) as end:
            self.evaluator.job.decay(self.run, end, examples, split_seed, self.attempt)
            decay_s = time.process_time() - began
            self.look(name, catch=True)
            self.looks[name].decay_s = decay_s

    def _count(self) -> None:
        """Add the CPU seconds since the last count, or since the end of the last look."""
        now = time.process_time()
        self.seconds += now - self._since
        self._since = now

    def look(self, name: str, *, catch: bool) -> None:
        """Measure the model. With `catch` a look at a model that is not finite is a look with an error."""
        look = self.looks[name] = Look(self.state.step, self.state.tokens, self.seconds)
        began = time.process_time()
        try:
            look.metrics = self.evaluator.measure(self.run)
            look.metrics["train_loss"] = self.state.losses[-1]
        except AttemptError as error:
            look.error = str(error)
            if not catch or error.kind != ErrorKind.DIVERGED:
                raise
        finally:
            look.score_s = time.process_time() - began


def quiet() -> None:
    """Set the environment of a process that evaluates: one thread, no GPU, no progress bars."""
    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", TQDM_DISABLE="1")
