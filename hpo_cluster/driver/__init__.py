"""The loop: reconcile, collect, ask, journal, submit, wait."""
