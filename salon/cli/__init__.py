"""The `salon` command."""

import sys

EXIT_INTERRUPTED = 130  # as of salon.cli.terminal, which is not imported yet


def main() -> None:
    """Run the command; Ctrl-C ends it without a traceback while its modules are imported, too."""
    try:
        from salon.own_modules import come_last  # noqa: PLC0415

        come_last()  # before anything is imported that may lie in the working folder, too
        from salon.cli.app import main as run  # noqa: PLC0415 - takes a while
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    run()


__all__ = ["main"]
