"""What every contender does in one iteration; imports no torch, and nothing of Salon."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPTS = (
    *("a red zero on a yellow background", "a white one on a blue background"),
    *("a cyan two on a purple background", "a purple three on a cyan background"),
    *("a green four on a blue background", "a blue five on a red background"),
    *("a yellow six on a green background", "a black seven on a blue background"),
    *("a blue eight on a purple background", "a yellow nine on a blue background"),
)


@dataclass(frozen=True)
class Workload:
    """Counts that change the work or the mathematics of an iteration."""

    samples: int  # of one iteration
    sample_batch: int  # samples denoised at once
    update_samples: int  # samples of one gradient update
    steps: int  # denoising steps, all of which are trained on
    guidance_scale: float = 5.0
    eta: float = 1.0
    learning_rate: float = 3e-4
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    clip_range: float = 1e-4
    advantage_clip: float = 10.0
    per_prompt_buffer: int = 32
    per_prompt_min_count: int = 16
    lora_rank: int = 4  # and alpha, on to_q, to_k, to_v and to_out.0: what TRL has built in


WORKLOADS = {
    "tiny": Workload(samples=32, sample_batch=16, update_samples=8, steps=20),
    "sd15": Workload(samples=16, sample_batch=8, update_samples=8, steps=20),
}
"""By size of the model: 32 x 32 pixels on two CPU cores, 512 x 512 on one GPU."""


@dataclass(frozen=True)
class Assignment:
    """All that one contender is told."""

    model: str  # a folder of diffusers
    workload: Workload
    mode: str  # full or lora
    device: str  # cpu or cuda
    precision: str  # fp32 or bf16
    threads: int
    seed: int
    algorithm: dict[str, Any]  # further hyperparameters of Salon's, which leave gradients as is
    settings: dict[str, Any] | None  # of the parts that score; None: rewards in-process

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Assignment":
        """What `dataclasses.asdict` and JSON made of one."""
        return cls(**{**values, "workload": Workload(**values["workload"])})


TRL_PYTHON = Path(".venv-trl/bin/python")
"""Of the environment that `make .venv-trl/installed` builds from benchmarks/trl-peer.txt."""
