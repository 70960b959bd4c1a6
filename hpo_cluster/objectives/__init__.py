"""What is optimised: each objective is its typed settings, the program in ``jobs/`` and the meaning of its result."""
