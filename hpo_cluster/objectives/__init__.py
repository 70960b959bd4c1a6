"""The objectives: typed settings, the program in ``jobs/`` that evaluates them, and how to read its result.

`registry` has the table of them. Nothing is imported here: each job imports a module of this folder when it starts.
"""
