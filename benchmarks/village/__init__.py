"""A table of real fine-tunings of the bundled model, and what optimizers can be measured on with it.

``python -m benchmarks.village.make`` makes the evaluations and the table, `benchmarks.village.table` reads it. See
``docs/benchmarks/village.md``.
"""
