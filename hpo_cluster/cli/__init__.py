"""Turn words into calls: the command line, the only place for Hydra and for printing."""
