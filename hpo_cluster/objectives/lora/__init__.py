"""LoRA fine-tuning of a causal language model: its settings, its checks and the parts of its job."""
