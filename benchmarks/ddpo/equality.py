"""Whether two trainers have the same gradient, loss and adapters aside of rounding."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from benchmarks.ddpo.processes import ContenderProcess

TOLERANCE = 2.0**-24
"""Of the gradient and of the loss in float64. TRL keeps one constant of its log-probabilities in
float32, log √(2π) = 0.919, whose neighbours are this far apart. So its ratios, and with them its
gradient, are off by one factor, 1 + 1.56e-8, which is all that the two may differ by."""


def compare_gradients(
    salon: ContenderProcess, peer: ContenderProcess, folder: Path
) -> dict[str, Any]:
    """Let both compute the gradient of one update on the same samples.

    In float64, which tells whether they compute the same; and in float32, as they train, which only
    tells how much they round: the last steps, of little noise, blow that up, since their sigma
    divides differences of latents, and how far depends on the processor and its threads.

    Args:
        salon: also makes the samples; with LoRA, its adapters are given to the peer.
        peer: must have the same parameters by the same names.
        folder: for the tensors.

    Returns:
        `gradient`: ‖g_salon − g_peer‖ / ‖g_peer‖ over all parameters together, in float64; `loss`:
        |L_salon − L_peer| over the mean |advantage|, as large as the terms that the loss sums, for
        they may cancel; `gradient_float32`: the gradients in float32; `rounding`: that of each
        trainer's gradient in float32 against its own in float64; `parameters`: how many tensors
        they are.

    Raises:
        ValueError: one has a gradient that the other lacks.
    """
    case = folder / "case.safetensors"
    salon.ask("write_case", out=str(case))
    gradients: dict[tuple[str, str], dict[str, Tensor]] = {}
    losses = {}
    for name, trainer in (("salon", salon), ("peer", peer)):
        for dtype in ("float64", "float32"):
            out = folder / "gradients.safetensors"
            answer = trainer.ask("gradients", case=str(case), out=str(out), dtype=dtype)
            losses[name, dtype] = answer["loss"]
            gradients[name, dtype] = load_file(out)
    ours, peers = losses["salon", "float64"], losses["peer", "float64"]
    return {
        "gradient": relative_difference(
            gradients["salon", "float64"], gradients["peer", "float64"]
        ),
        "loss": abs(ours - peers) / float(load_file(case)["advantages"].abs().mean()),
        "gradient_float32": relative_difference(
            gradients["salon", "float32"], gradients["peer", "float32"]
        ),
        "rounding": {
            name: relative_difference(gradients[name, "float32"], gradients[name, "float64"])
            for name in ("salon", "peer")
        },
        "parameters": len(gradients["salon", "float64"]),
        "tolerance": TOLERANCE,
    }


def relative_difference(ours: dict[str, Tensor], peers: dict[str, Tensor]) -> float:
    """‖ours − peers‖ / ‖peers‖ over all tensors, which must have the same names."""
    if ours.keys() != peers.keys():
        apart = sorted(ours.keys() ^ peers.keys())
        raise ValueError(f"{len(apart)} gradients are of one trainer alone, e.g. {apart[0]}")
    apart = sum((ours[n].double() - peers[n].double()).square().sum() for n in ours)
    norm = sum(tensor.double().square().sum() for tensor in peers.values())
    return float((apart / norm) ** 0.5)
