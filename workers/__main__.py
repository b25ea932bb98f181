"""`python -P -m workers -Q QUEUES`: a Celery worker of Salon's; the options are those of Celery's.

`celery -A workers worker` is the same, but for the working folder: that comes first there.
"""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        sys.path.append(sys.path.pop(0))  # the working folder, which `python -m` puts first
    from salon.own_modules import come_last

    come_last()  # before anything is imported that may lie there, too: PYTHONPATH may name it

import os

from celery.__main__ import main as celery

# Celery would import it with the working folder first.
import workers.celery
from salon import logs

# Celery takes its own options from these, which another project may have set.
FOREIGN = ("APP", "BROKER_URL", "CONFIG_MODULE", "LOADER", "RESULT_BACKEND")


def main() -> None:
    """Run a worker until SIGTERM."""
    logs.configure("worker")
    for name in FOREIGN:
        os.environ.pop(name, None)
    # Quiet, for Celery's banner is no line of a log.
    sys.argv[1:1] = ["--app", f"{workers.celery.__name__}:app", "--quiet", "worker"]
    celery()


if __name__ == "__main__":
    main()
