"""`bo` with several objectives against Optuna's samplers and random search: the hypervolume of what they find.

``python -m benchmarks.several_objectives.run`` makes the runs that are not cached yet; ``python -m
benchmarks.several_objectives.report`` makes ``docs/benchmarks/several_objectives.md`` of them. The loop, the cache and
the statistics are those of `benchmarks.optimizers`.
"""
