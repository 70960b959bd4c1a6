"""Optimizers of other libraries behind the same protocol."""
