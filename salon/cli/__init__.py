"""The `salon` command."""

from salon.cli.app import main

__all__ = ["main"]
