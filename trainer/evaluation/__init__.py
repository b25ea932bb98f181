"""Held-out samples, scored before, during and after training."""
