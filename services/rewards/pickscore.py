"""Which image people would pick for a prompt: PickScore.

Kirstain et al. 2023, "Pick-a-Pic: An Open Dataset of User Preferences for Text-to-Image Generation"
(arXiv 2305.01569), section 3; authors' code: github.com/yuvalkirstain/PickScore, README.
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from salon.reward.v1 import reward_pb2
from salon.serving import ModelConfig, Reward, Sample
from services.models.clip import PACKAGES, Clip
from services.models.weights import version_of

PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class PickScoreConfig(ModelConfig):
    """A CLIP that was fine-tuned on people's choices."""

    model: str = "yuvalkirstain/PickScore_v1"
    processor: str = Field(
        "",
        description="Folder or hub id of tokenizer and image processor; default: the model's "
        f"folder, and for a model of the hub {PROCESSOR}, as its authors do.",
    )


class PickScore(Reward):
    """exp(logit scale) · cos(image embedding, text embedding)."""

    Config = PickScoreConfig
    name = "pickscore"
    description = (
        "PickScore: the cosine of image and prompt times the logit scale; a difference of two "
        "images' scores is the log-odds that people prefer the first."
    )
    inputs = (reward_pb2.INPUT_IMAGE, reward_pb2.INPUT_PROMPT)
    max_batch = 32
    local_options = ("model=models/tiny-clip-digits",)

    def __init__(self, config: PickScoreConfig) -> None:
        """Load the model."""
        processor = config.processor or (config.model if Path(config.model).is_dir() else PROCESSOR)
        self._clip = Clip.load(config, processor)
        self._scale = self._clip.logit_scale
        self.version = version_of("1", (config.model, processor), self._clip.model.dtype, PACKAGES)

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score a pair of image and prompt."""
        cosines = self._clip.cosines(
            [sample.image for sample in samples], [sample.prompt for sample in samples]
        )
        return [self._scale * cosine for cosine in cosines]
