"""Rows of prompts, sets of them by name, and the other places that they come from."""
