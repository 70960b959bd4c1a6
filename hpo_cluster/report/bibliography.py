"""The bibliography of a campaign: BibTeX of the optimizer, of what its objective uses, and of this project."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpo_cluster.optimizers.citations import ENTRIES, citations_of

#: By key: an entry of BibTeX. A field that was not certain is left out.
OWN: Mapping[str, str] = {
    "hpo_cluster": r"""@misc{hpo_cluster,
  author = {{The hpo\_cluster developers}},
  title  = {{hpo\_cluster}: Hyperparameter Optimization of {LLM} Fine-Tuning on {Slurm} and {OAR} Clusters},
  year   = {2026},
  note   = {Version VERSION}
}""",
    "davouse2025ola": r"""@inproceedings{davouse2025ola,
  author    = {Davouse, Nathan and Talbi, El-Ghazali},
  title     = {{Bayesian} and Partition-Based Optimization for Hyperparameter Optimization of {LLM} Fine-Tuning},
  booktitle = {International Conference on Optimization and Learning (OLA)},
  year      = {2025}
}""",
    "hu2022lora": r"""@inproceedings{hu2022lora,
  author    = {Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and
               Wang, Shean and Wang, Lu and Chen, Weizhu},
  title     = {{LoRA}: Low-Rank Adaptation of Large Language Models},
  booktitle = {International Conference on Learning Representations},
  year      = {2022},
  note      = {arXiv:2106.09685, 2021}
}""",
    "litgpt2023": r"""@misc{litgpt2023,
  author       = {{Lightning AI}},
  title        = {{LitGPT}},
  year         = {2023},
  howpublished = {\url{https://github.com/Lightning-AI/litgpt}}
}""",
    "gao2024lmeval": r"""@misc{gao2024lmeval,
  author    = {Gao, Leo and Tow, Jonathan and Abbasi, Baber and Biderman, Stella and Black, Sid and DiPofi, Anthony and
               Foster, Charles and Golding, Laurence and Hsu, Jeffrey and Le Noac'h, Alain and Li, Haonan and
               McDonell, Kyle and Muennighoff, Niklas and Ociepa, Chris and Phang, Jason and Reynolds, Laria and
               Schoelkopf, Hailey and Skowron, Aviya and Sutawika, Lintang and Tang, Eric and Thite, Anish and
               Wang, Ben and Wang, Kevin and Zou, Andy},
  title     = {The Language Model Evaluation Harness},
  year      = {2024},
  publisher = {Zenodo},
  doi       = {10.5281/zenodo.12608602}
}""",
}

#: By kind of objective: keys of what to cite.
OBJECTIVES: Mapping[str, tuple[str, ...]] = {
    "lora": ("hu2022lora", "litgpt2023", "gao2024lmeval"),
}


def references(identity: Mapping[str, Any], *, has_prior: bool) -> dict[str, list[str]]:
    """Return the keys of what a campaign used, by what it is cited for: ``project``, ``optimizer``, ``objective``."""
    kind = str(identity["objective"].get("kind"))
    return {
        "project": ["hpo_cluster", *(["davouse2025ola"] if kind == "lora" else [])],  # the study that it began with
        "optimizer": citations_of(
            identity["optimizer"], has_prior=has_prior, objectives=len(identity["objective"].get("metrics") or ())
        ),
        "objective": list(OBJECTIVES.get(kind, ())),
    }


def bibtex(cited: Mapping[str, list[str]], version: str) -> str:
    """Return the entries of all keys in `cited`, each once, in alphabetical order.

    Args:
        cited: result of `references`.
        version: of this project, as the campaign recorded it.
    """
    keys = sorted({key for keys in cited.values() for key in keys})
    return "\n\n".join({**ENTRIES, **OWN}[key].replace("VERSION", version) for key in keys)
