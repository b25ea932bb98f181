"""One reward model, one module; `python -m services MODULE` hosts it."""
