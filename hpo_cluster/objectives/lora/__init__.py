"""Fine-tune a causal language model with LoRA and score it: settings, checks and the parts of the job."""
