"""Where jobs run: the only part of the package that knows submitit and schedulers."""
