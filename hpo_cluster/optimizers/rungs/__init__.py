"""Rungs: which trials go on, and optimizers that count on it."""
