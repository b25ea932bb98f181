"""Where `trainer.spec.file` was before: scripts that import from here go on working."""

from trainer.spec.file import load_spec

__all__ = ["load_spec"]
