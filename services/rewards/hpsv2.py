"""Which image people prefer for a prompt: Human Preference Score v2 and v2.1.

Wu et al. 2023, "Human Preference Score v2" (arXiv 2306.09341), section 4; authors' code:
github.com/tgxs002/HPSv2, hpsv2/img_score.py.
"""

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field
from transformers import CLIPConfig, CLIPModel

from salon.reward.v1 import reward_pb2
from salon.serving import Dtype, ModelConfig, Reward, Sample
from services.models.clip import PACKAGES, Clip
from services.models.device import resolve
from services.models.open_clip import to_transformers
from services.models.pretrained import build_model, load_part
from services.models.weights import is_file, load_state_dict, version_of

ARCHITECTURE = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""The CLIP that was fine-tuned: its configuration and tokenizer still hold, and how it normalises
pixels."""


class HpsV2Config(ModelConfig):
    """A CLIP that was fine-tuned on people's rankings."""

    model: str = Field(
        "xswu/HPSv2:HPS_v2.1_compressed.pt",
        description="The published checkpoint, a file or owner/name:file on the hub "
        "(v2.0: xswu/HPSv2:HPS_v2_compressed.pt), or a CLIPModel's folder or hub id.",
    )
    architecture: str = Field(
        ARCHITECTURE,
        description="For a checkpoint: folder or hub id of the CLIP that was fine-tuned, with its "
        "configuration, tokenizer and image processor.",
    )
    dtype: Dtype = Field(
        "auto",
        description="Of the network; auto: float16 on a GPU, where the authors' code computes in "
        "mixed precision, and float32 on a CPU.",
    )


class HpsV2(Reward):
    """cos(image embedding, text embedding) of the whole image, padded to a square with black."""

    Config = HpsV2Config
    name = "hpsv2"
    description = "HPS v2.1 (or v2): the cosine of image and prompt; compare within one prompt."
    inputs = (reward_pb2.INPUT_IMAGE, reward_pb2.INPUT_PROMPT)
    lower_bound = -1.0
    upper_bound = 1.0
    max_batch = 32
    local_options = ("model=models/tiny-clip-digits",)

    def __init__(self, config: HpsV2Config) -> None:
        """Load the model from open_clip's checkpoint or from transformers' layout."""
        if is_file(config.model):
            clip = _from_checkpoint(config)
            sources = [config.model, config.architecture]
        else:
            clip = Clip.load(config)
            sources = [config.model]
        self._clip = replace(clip, image_processor=clip.image_processor.padding())
        self.version = version_of("1", sources, clip.model.dtype, PACKAGES)

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score a pair of image and prompt."""
        return self._clip.cosines(
            [sample.image for sample in samples], [sample.prompt for sample in samples]
        )


def _from_checkpoint(config: HpsV2Config) -> Clip:
    state = to_transformers(load_state_dict(config.model), config.model)
    clip_config = load_part(CLIPConfig, config.architecture)
    model = build_model(CLIPModel, clip_config, state, config.model, *resolve(config))
    return Clip.assemble(model, config.architecture)
