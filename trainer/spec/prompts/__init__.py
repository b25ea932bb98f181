"""Prompt sets by name, and the other places that prompts come from."""
