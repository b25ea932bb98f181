"""Where curves and pictures are looked at: TensorBoard, Weights & Biases, trackio."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from salon.errors import InvalidRequest

log = structlog.get_logger()


@dataclass(frozen=True)
class Pictures:
    """Images with what to say of each."""

    images: NDArray[np.uint8]  # [N, H, W, 3]
    captions: Sequence[str]  # N


class Board(Protocol):
    """One place that shows a run; resumed, it goes on with the same run."""

    def scalars(self, iteration: int, metrics: dict[str, float]) -> None:
        """Add a point to each curve."""
        ...

    def pictures(self, iteration: int, name: str, pictures: Pictures) -> None:
        """Add a grid of pictures."""
        ...

    def close(self, failed: bool) -> None:
        """Send what is left."""
        ...


class WandB:
    """A run of Weights & Biases, with the job's id; WANDB_* of the environment are its settings.

    An attempt that goes on from a checkpoint logs the iterations after it again. W&B refuses steps
    that go back, hence curves are over a metric `iteration`; the points that come twice are equal.

    Raises:
        InvalidRequest: wandb is not installed, or does not know who is logging.
    """

    def __init__(self, job: str, project: str, config: dict[str, Any], folder: Path) -> None:
        self._wandb = _package("wandb")
        try:
            self._run = self._wandb.init(
                project=project,
                id=job,
                name=job,
                resume="allow",
                config=config,
                dir=str(folder),
                settings=self._wandb.Settings(console="off", silent=True),
            )
        except self._wandb.errors.UsageError as error:
            raise InvalidRequest(
                f"trackers: wandb cannot start: {error}; set WANDB_API_KEY where the trainer runs, "
                "or WANDB_MODE=offline to keep the run in its folder"
            ) from error
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")

    def scalars(self, iteration: int, metrics: dict[str, float]) -> None:
        """Add a point to each curve."""
        self._run.log({"iteration": iteration, **metrics})

    def pictures(self, iteration: int, name: str, pictures: Pictures) -> None:
        """Add a grid of pictures."""
        shown = [
            self._wandb.Image(image, caption=caption)
            for image, caption in zip(pictures.images, pictures.captions, strict=True)
        ]
        self._run.log({"iteration": iteration, name: shown})

    def close(self, failed: bool) -> None:
        """Send what is left."""
        self._run.finish(exit_code=int(failed))


class Trackio:
    """A run of trackio, local unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say otherwise.

    Raises:
        InvalidRequest: trackio is not installed.
    """

    def __init__(self, job: str, project: str, config: dict[str, Any]) -> None:
        self._trackio = _package("trackio")
        self._run = self._trackio.init(
            project=project, name=job, resume="allow", config=config, embed=False
        )

    def scalars(self, iteration: int, metrics: dict[str, float]) -> None:
        """Add a point to each curve."""
        self._run.log(metrics, step=iteration)

    def pictures(self, iteration: int, name: str, pictures: Pictures) -> None:
        """Add a grid of pictures, as one table: a log entry has one picture a name."""
        for i, (image, caption) in enumerate(zip(pictures.images, pictures.captions, strict=True)):
            self._run.log(
                {f"{name}/{i}": self._trackio.Image(image, caption=caption)}, step=iteration
            )

    def close(self, failed: bool) -> None:
        """Send what is left."""
        self._run.finish()


class Forgiving:
    """A board whose failures are told and end nothing: a network is no reason to stop training.

    Args:
        name: of the board, for people.
        board: that may fail.
        warn: told of the first failure; all are in the log.
    """

    def __init__(self, name: str, board: Board, warn: Callable[[str], None]) -> None:
        self._name = name
        self._board = board
        self._warn = warn
        self._told = False

    def scalars(self, iteration: int, metrics: dict[str, float]) -> None:
        """Add a point to each curve."""
        self._try(lambda: self._board.scalars(iteration, metrics))

    def pictures(self, iteration: int, name: str, pictures: Pictures) -> None:
        """Add a grid of pictures."""
        self._try(lambda: self._board.pictures(iteration, name, pictures))

    def close(self, failed: bool) -> None:
        """Send what is left."""
        self._try(lambda: self._board.close(failed))

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            log.exception("tracker failed", tracker=self._name)
            if not self._told:
                self._told = True
                self._warn(failure(self._name, error))


def failure(name: str, error: Exception) -> str:
    """What to tell of a board that failed."""
    reason = " ".join(str(error).split())
    return (
        f"{name} failed: {type(error).__name__}: {reason}; training goes on, and metrics.jsonl and "
        "tensorboard/ have everything"
    )


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InvalidRequest(
            f"trackers: {name} is not installed where the trainer runs ({error}): "
            f"pip install {name}, or take it out of the spec"
        ) from error
