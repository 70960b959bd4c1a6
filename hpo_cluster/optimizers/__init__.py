"""What to evaluate next: one algorithm a file, one protocol for all."""
