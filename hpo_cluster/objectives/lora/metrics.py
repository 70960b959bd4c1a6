"""The metrics of fine-tunings by name: which the job measures, and whether less of one is better."""

from __future__ import annotations

from hpo_cluster.goals import GPU_SECONDS

#: Metrics that the job measures in addition to those of the tasks, and whether less is better. All can be optimised.
MEASURES = {
    "val_loss": True,
    "train_loss": True,
    "val_perplexity": True,
    "train_s": True,
    GPU_SECONDS: True,
    "tokens_per_s": False,
    "peak_memory_gb": True,
    "energy_wh": True,
    "trainable_parameters": True,
}

#: Measures that need validation rows, and measures that do not exist before fine-tuning.
OF_VALIDATION = ("val_loss", "val_perplexity")
OF_TRAINING = ("train_loss", "train_s", "tokens_per_s", "trainable_parameters")

#: Well-known metrics of lm-eval, by direction.
LESS_IS_BETTER = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "ter", "brier_score")
MORE_IS_BETTER = ("acc", "acc_norm", "acc_mutual_info", "acc_all", "exact_match", "f1", "mcc", "bleu", "chrf", "em")


def lower_is_better(metric: str) -> bool | None:
    """Return whether less of a metric is better; None if its name is not well known."""
    if metric in MEASURES:
        return MEASURES[metric]
    name = metric.rpartition("/")[2].partition(",")[0]  # without task and filter
    return True if name in LESS_IS_BETTER else False if name in MORE_IS_BETTER else None
