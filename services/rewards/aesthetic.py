"""How beautiful people find images like this one, 1 to 10: LAION's aesthetic predictor.

Schuhmann et al. 2022, "LAION-5B" (arXiv 2210.08402), and its head, the "improved aesthetic
predictor" (github.com/christophschuhmann/improved-aesthetic-predictor), as a reward in Black et al.
2023 (arXiv 2305.13301, section 5.2).
"""

from collections.abc import Sequence

import torch
from pydantic import Field

from salon.errors import InvalidRequest
from salon.serving import ModelConfig, Reward, Sample
from services.models.clip import PACKAGES, Clip
from services.models.pretrained import freeze
from services.models.score_head import read_score_head
from services.models.weights import load_state_dict, version_of


class AestheticConfig(ModelConfig):
    """CLIP and the head on its image embedding."""

    model: str = "openai/clip-vit-large-patch14"
    head: str = Field(
        "trl-lib/ddpo-aesthetic-predictor:aesthetic-model.pth",
        description="The head's weights: .safetensors or .pth, or owner/name:file on the hub.",
    )


class Aesthetic(Reward):
    """The head's output for the L2-normalised CLIP image embedding, in float32."""

    Config = AestheticConfig
    name = "aesthetic"
    description = "LAION's aesthetic score; people's ratings from 1 to 10 were its targets."
    max_batch = 64
    local_options = (
        "model=models/tiny-clip-digits",
        "head=models/tiny-aesthetic-digits/head.safetensors",
    )

    def __init__(self, config: AestheticConfig) -> None:
        """Load CLIP and the head.

        Raises:
            InvalidRequest: either cannot be loaded, or they do not fit each other.
        """
        head = read_score_head(load_state_dict(config.head), config.head)
        self._clip = Clip.load(config)
        if head.width != self._clip.width:
            raise InvalidRequest(
                f"head {config.head!r} takes embeddings of {head.width} numbers, and "
                f"{config.model!r} gives {self._clip.width}; use the CLIP it was trained on"
            )
        self._head = freeze(head).to(self._clip.model.device)
        self.version = version_of(
            "1", (config.model, config.head), self._clip.model.dtype, PACKAGES
        )

    @torch.inference_mode()
    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score an image."""
        embeddings = self._clip.embed_images([sample.image for sample in samples])
        scores: list[float] = self._head(embeddings).tolist()
        return scores
