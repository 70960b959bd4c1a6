"""Optimizers whose points do not depend on any value: random search, Latin hypercube, Sobol, grid."""
