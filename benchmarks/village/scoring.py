"""The questions of the village's tasks as tokens, made once by lm-eval and asked of many models.

lm-eval builds prompts, tokens and answers of a task again for each model, which costs as much as the model's own
arithmetic here. So it is run once with a model that keeps what it is asked. The answers are then scored by the job's
own `LitLM`; the two accuracies are lm-eval's, and a test compares them with its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.objectives.lora import checks
from hpo_cluster.objectives.lora.language_model import LitLM, TokenRequest
from hpo_cluster.objectives.lora.objective import LoraObjective
from hpo_cluster.objectives.lora.tasks import score
from hpo_cluster.objectives.lora.tokenizers import Tokenizers


@dataclass(frozen=True)
class Questions:
    """All questions of some tasks with the same number of choices.

    Attributes:
        requests: tokens of each question with each choice, in lm-eval's order.
        tasks: the name of each question's task.
        lengths: characters of the choices (questions x choices).
        gold: number of the right choice.
    """

    requests: Sequence[TokenRequest]
    tasks: NDArray[np.str_]
    lengths: NDArray[np.int64]
    gold: NDArray[np.int64]

    def score(self, lm: LitLM) -> dict[str, float]:
        """Return ``<task>/acc`` and ``<task>/acc_norm`` of a model: by the likelihood, and by that of a character."""
        answers = lm._loglikelihood_tokens(self.requests)
        likelihood = np.array([value for value, _ in answers]).reshape(self.lengths.shape)
        right = {
            "acc": likelihood.argmax(1) == self.gold,
            "acc_norm": (likelihood / self.lengths).argmax(1) == self.gold,
        }
        return {
            f"{task}/{name}": float(is_right[self.tasks == task].mean())
            for task in dict.fromkeys(self.tasks.tolist())
            for name, is_right in right.items()
        }


class Listening(LitLM):
    """A model that keeps what it is asked.

    Attributes:
        asked: lm-eval's requests.
        tokens: the same as tokens.
    """

    asked: Sequence[Any]
    tokens: Sequence[TokenRequest]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Answer all requests with zero."""
        self.asked = list(requests)
        return super().loglikelihood(requests, disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        self.tokens = list(requests)
        return [(0.0, False)] * len(requests)


def read_questions(objective: LoraObjective, tokenizers: Tokenizers, scratch: Path) -> Questions:
    """Return the questions of an objective's tasks; `scratch` is for lm-eval's files."""
    from litgpt import GPT, Config

    config = Config.from_file(tokenizers.checkpoint_dir / "model_config.yaml")
    lm = Listening(GPT(config), tokenizers.hugging_face)
    tasks = checks.load_tasks_of(objective, scratch)
    score(lm, tasks, objective.tasks.limit)
    questions: dict[tuple[str, int], list[int]] = {}
    for number, request in enumerate(lm.asked):
        questions.setdefault((request.task_name, request.doc_id), []).append(number)
    docs = [lm.asked[numbers[0]].doc for numbers in questions.values()]
    order = [number for numbers in questions.values() for number in numbers]
    assert all([lm.asked[n].idx for n in numbers] == list(range(len(numbers))) for numbers in questions.values())
    return Questions(
        requests=[lm.tokens[number] for number in order],
        tasks=np.array([task for task, _ in questions]),
        lengths=np.array([[len(choice) for choice in doc["choices"]] for doc in docs]),
        gold=np.array([doc["gold"] for doc in docs]),
    )
