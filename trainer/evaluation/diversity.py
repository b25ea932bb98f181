"""How much a set of images differs among itself, as CLIP sees it."""

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub import snapshot_download
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import CLIPImageProcessorPil, CLIPModel

from salon.checkpoint_keys import damage, fault, further_layers, odd_types
from salon.errors import InvalidRequest
from trainer.runtime.hub import reason_of
from trainer.runtime.safetensors_header import read_header, weight_files


class ImageEmbedder:
    """The image half of a CLIP model (Radford et al. 2021, arXiv 2103.00020), in fp32.

    Args:
        model: gives the embeddings.
        processor: the preprocessing it was trained with.
        batch_size: images embedded at once; bounds memory alone.
    """

    def __init__(self, model: CLIPModel, processor: Any, batch_size: int) -> None:
        self._vision = model.vision_model.eval()
        self._projection = model.visual_projection
        self._device = model.device
        self._processor = processor
        self._batch_size = batch_size

    @classmethod
    def load(cls, model: str, device: str | torch.device, batch_size: int) -> Self:
        """Load a CLIPModel's folder, or hub id, from safetensors alone.

        Raises:
            InvalidRequest: there is no such model, or its weights are not those of a CLIP model.
        """
        try:
            processor = CLIPImageProcessorPil.from_pretrained(model)
            clip, found = CLIPModel.from_pretrained(
                model,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # otherwise their names are not told
            )
            if reason := _fault(model, clip.state_dict(), found):
                raise ValueError(f"it {reason}")
        except Exception as error:  # whatever a value in its configuration leads to
            raise InvalidRequest(
                f"evaluation.diversity_model {model!r} cannot be loaded as a CLIPModel: "
                f"{reason_of(error)}; give a folder or a hub id with weights in safetensors, or "
                "null"
            ) from error
        return cls(clip.to(device), processor, batch_size)

    @torch.inference_mode()
    def embed(self, images: NDArray[np.uint8]) -> Tensor:
        """Unit vectors fp32 [N, D] on the CPU, of images [N, H, W, 3]."""
        rows = []
        for start in range(0, len(images), self._batch_size):
            batch = list(images[start : start + self._batch_size])
            pixels = self._processor(batch, return_tensors="pt").pixel_values
            pooled = self._vision(pixel_values=pixels.to(self._device)).pooler_output
            rows.append(functional.normalize(self._projection(pooled), dim=-1).cpu())
        return torch.cat(rows)


def _fault(model: str, weights: dict[str, Tensor], found: dict[str, Any]) -> str:
    """What is wrong with the weights of a CLIPModel that was loaded; empty if nothing is."""
    here = Path(model).is_dir()
    folder = Path(model if here else snapshot_download(model, local_files_only=True))
    # Of what the hub made of a pickle, in a revision of its own, only the numbers are looked at.
    files = [file for file in weight_files(folder, "model") if file.is_file()]
    stored = {file.name: read_header(file) for file in files}
    types = {name: tensor["dtype"] for header in stored.values() for name, tensor in header.items()}
    odd = odd_types(types, [name for name, weight in weights.items() if weight.is_floating_point()])
    further = further_layers(found["unexpected_keys"], weights)
    reason = fault(found["missing_keys"], further, found["mismatched_keys"], odd)
    return reason or damage(weights.items(), stored)


def mean_pairwise_distance(embeddings: Tensor) -> float:
    """Mean cosine distance over all pairs of different rows.

    2 / (N (N - 1)) · Σ_{i<j} (1 - e_i·e_j), as in DIVA (https://openreview.net/forum?id=cYc6i03pL8).
    With unit vectors Σ_{i≠j} e_i·e_j = ‖Σ e_i‖² - N, which takes no N x N matrix. 0 means that all
    images are alike; pairs of different prompts count, so that it also falls when prompts lose
    their differences.

    Args:
        embeddings: [N, D] of length 1 but for rounding, N at least 2.
    """
    unit = functional.normalize(embeddings.double(), dim=-1)
    count = len(unit)
    total = float(unit.sum(0).square().sum())
    # Of images that are all alike, rounding would make a distance below 0.
    return max(0.0, 1 - (total - count) / (count * (count - 1)))
