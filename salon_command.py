"""What the script `salon` imports, by a name that no file or folder of a user's is likely to have.

With `PYTHONPATH=.` the working folder comes before libraries and before Salon itself. It is left
out here, before anything is imported that may lie there, too; `salon.own_modules`, which then has
it searched last, is such a thing.
"""

import os
import sys


def main() -> None:
    """Run the command."""
    # A checkout may be installed by its path alone, and then be the working folder.
    own = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120 - pathlib may lie there as well
    try:
        here = os.path.realpath(os.getcwd())  # noqa: PTH109
    except FileNotFoundError:  # it has been deleted
        here = own
    if here != own:
        sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) != here]
    from salon.cli import main as run  # noqa: PLC0415

    run()
