"""Algorithms that choose what to evaluate next: one file for each, one protocol for all."""
