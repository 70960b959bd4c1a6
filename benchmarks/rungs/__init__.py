"""Compare optimizers with rungs, without rungs, and of other libraries: regret by what was spent."""
