"""Optimizers that fit a Gaussian process to the history."""
