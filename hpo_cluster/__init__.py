"""Hyperparameter optimization of LLM fine-tuning on Slurm and OAR clusters."""

__version__ = "0.1.0"
