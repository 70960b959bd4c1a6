"""Compare the fine-tune-and-score job with LitGPT's commands."""
