"""The optimizers of the registry and those of other libraries, in one loop on the same problems and seeds.

``python -m benchmarks.optimizers.run`` makes the runs that are not cached yet; ``python -m
benchmarks.optimizers.report`` makes the tables and figures of ``docs/benchmarks/`` of them. See
``docs/benchmarks/optimizers.md``.
"""
