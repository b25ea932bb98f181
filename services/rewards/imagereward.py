"""How well people would rate an image for its prompt: ImageReward.

Xu et al. 2023, "ImageReward: Learning and Evaluating Human Preferences for Text-to-Image
Generation" (arXiv 2304.05977), section 3; authors' code: github.com/THUDM/ImageReward,
ImageReward/ImageReward.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from transformers import AutoTokenizer, PreTrainedModel

from salon.reward.v1 import reward_pb2
from salon.serving import ModelConfig, Reward, Sample
from services.models.blip import BlipScorer, published_config, to_transformers
from services.models.device import resolve
from services.models.image_processor import ImageProcessor
from services.models.pretrained import build_model, load_model, load_part
from services.models.weights import is_file, load_state_dict, version_of

MEAN = 0.16717362830052426
STD = 1.0333394966054072
"""Of the network's output on the authors' data: `self.mean` and `self.std` in ImageReward.py."""

MAX_TOKENS = 35
"""Of a prompt, [CLS] and [SEP] among them; `max_length` in ImageReward.py."""


class ImageRewardConfig(ModelConfig):
    """The published checkpoint, or a folder of ours."""

    model: str = Field(
        "THUDM/ImageReward:ImageReward.pt",
        description="The published checkpoint, a file or owner/name:file on the hub, or a folder "
        "that BlipScorer.save_pretrained wrote, with a tokenizer.",
    )
    tokenizer: str = Field(
        "google-bert/bert-base-uncased",
        description="For a checkpoint: folder or hub id of its tokenizer.",
    )


class ImageReward(Reward):
    """(head(BLIP(image, prompt)) - mean) / std."""

    Config = ImageRewardConfig
    name = "imagereward"
    description = "ImageReward, standardised by its authors: most scores lie between -2 and 2."
    inputs = (reward_pb2.INPUT_IMAGE, reward_pb2.INPUT_PROMPT)
    max_batch = 32
    local_options = ("model=models/tiny-imagereward-digits",)

    def __init__(self, config: ImageRewardConfig) -> None:
        """Load the network and its tokenizer."""
        device, dtype = resolve(config)
        checkpoint = is_file(config.model)
        if checkpoint:
            state = to_transformers(load_state_dict(config.model))
            self._model: PreTrainedModel = build_model(
                BlipScorer, published_config(), state, config.model, device, dtype
            )
        else:
            self._model = load_model(BlipScorer, config.model, device, dtype)
        tokenizer = config.tokenizer if checkpoint else config.model
        self._tokenizer: Any = load_part(AutoTokenizer, tokenizer)
        size = self._model.config.vision_config.image_size
        self._image_processor = ImageProcessor(size, (size, size))
        positions = self._model.config.text_config.max_position_embeddings
        self._max_tokens = min(MAX_TOKENS, positions)
        self.version = version_of("1", (config.model, tokenizer), dtype, ("transformers",))

    @torch.inference_mode()
    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score a pair of image and prompt."""
        device = self._model.device
        pixels = self._image_processor([sample.image for sample in samples], device)
        tokens = self._tokenizer(
            [sample.prompt for sample in samples],
            padding=True,
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        ).to(device)
        raw = self._model(
            pixels.to(self._model.dtype), tokens["input_ids"], tokens["attention_mask"]
        )
        scores: list[float] = ((raw - MEAN) / STD).tolist()
        return scores
