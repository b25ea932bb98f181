"""A finished run, read back from its folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from safetensors import SafetensorError

from salon.errors import InvalidRequest
from trainer.evaluation.held_out import Evaluation
from trainer.report.results import Result
from trainer.runtime.metrics_file import read_metrics
from trainer.runtime.run_folder import RunFolder


@dataclass(frozen=True)
class Run:
    """One finished run, read from its folder."""

    name: str
    spec: Mapping[str, Any]
    results: list[Result]
    metrics: list[dict[str, Any]]
    before: Evaluation
    after: Evaluation

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read what a run wrote at its end.

        Raises:
            InvalidRequest: one line: the folder, what is wrong with it and the way out.
        """
        if not (folder / "spec.yaml").is_file():
            raise InvalidRequest(f"{folder} is no run folder: it has no spec.yaml")
        if not (folder / "summary.json").is_file():
            raise InvalidRequest(
                f"{folder} has no summary.json, which a run writes at its end: wait until it has "
                "succeeded, or leave it out"
            )
        try:
            spec = yaml.safe_load((folder / "spec.yaml").read_text(encoding="utf-8"))
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            last = max(entry["iteration"] for entry in summary["evaluations"])
            if not isinstance(spec, dict):
                raise TypeError("spec.yaml is no mapping")
            return cls(
                folder.absolute().name,
                spec,
                Result.all_of(summary),
                read_metrics(RunFolder(folder, fence=lambda: None)),
                *(
                    Evaluation.load(folder / "evaluation" / f"{number:06d}.safetensors")
                    for number in (0, last)
                ),
            )
        except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
        except SafetensorError as error:
            reason = f"a file in evaluation/ is damaged: {error}"
        raise InvalidRequest(f"{folder} cannot be read as a run folder ({reason})")
