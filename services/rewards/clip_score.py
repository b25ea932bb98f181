"""How well an image fits its prompt: CLIPScore.

Hessel et al. 2021, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning"
(arXiv 2104.08718), section 3; authors' code: github.com/jmhessel/clipscore.
"""

from collections.abc import Sequence

from pydantic import Field, field_validator

from salon.reward.v1 import reward_pb2
from salon.serving import ModelConfig, Reward, Sample
from services.models.clip import PACKAGES, Clip
from services.models.weights import version_of

WEIGHT = 2.5
"""w of the paper: it spreads the cosines of real pairs, mostly 0 to 0.4, over 0 to 1."""


class ClipScoreConfig(ModelConfig):
    """CLIP and what it is asked."""

    model: str = "openai/clip-vit-base-patch32"
    template: str = Field(
        "{prompt}",
        description="The text compared with the image; the paper's: A photo depicts {prompt}",
    )

    @field_validator("template")
    @classmethod
    def _has_prompt(cls, template: str) -> str:
        if "{prompt}" not in template:
            raise ValueError("{prompt} must stand where the prompt goes")
        return template


class ClipScore(Reward):
    """2.5 · max(cos(image embedding, text embedding), 0)."""

    Config = ClipScoreConfig
    name = "clip_score"
    description = "CLIPScore: 2.5 times the cosine of image and prompt in CLIP, at least 0."
    inputs = (reward_pb2.INPUT_IMAGE, reward_pb2.INPUT_PROMPT)
    lower_bound = 0.0
    upper_bound = WEIGHT
    max_batch = 64
    local_options = ("model=models/tiny-clip-digits",)

    def __init__(self, config: ClipScoreConfig) -> None:
        """Load CLIP."""
        self._clip = Clip.load(config)
        self._template = config.template
        weights = version_of("1", [config.model], self._clip.model.dtype, PACKAGES)
        self.version = f"{weights}+{config.template}"

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score a pair of image and prompt."""
        cosines = self._clip.cosines(
            [sample.image for sample in samples],
            [self._template.replace("{prompt}", sample.prompt) for sample in samples],
        )
        return [WEIGHT * max(cosine, 0.0) for cosine in cosines]
