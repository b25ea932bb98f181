"""Algorithms against one another at equal numbers of reward queries, on the tiny generator.

`python -m benchmarks.fidelity algorithms` runs what is missing of a study, seed by seed, and writes
its table and its figure. A run that is in the results folder is not run again.
"""
