"""Pipelines of diffusers, one family a file, loaded whole."""
