"""Points that depend on no value: random search, Latin hypercube, Sobol, grid."""
