"""Optimizers that divide the space: SOO, BaMSOO, DIRECT, fractal decomposition."""
