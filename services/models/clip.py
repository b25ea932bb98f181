"""CLIP: images and texts as unit vectors in one space.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"
(arXiv 2103.00020).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, CLIPModel

from salon.serving import ModelConfig
from salon.wire.images import Pixels
from services.models.device import resolve
from services.models.image_processor import ImageProcessor
from services.models.pretrained import load_model, load_part

PACKAGES = ("transformers",)
"""Whose releases embeddings depend on, for `version_of`."""


@dataclass(frozen=True)
class Clip:
    """A CLIPModel with the tokenizer and the image processor that it was trained with."""

    model: CLIPModel
    tokenizer: Any
    image_processor: ImageProcessor

    @classmethod
    def load(cls, config: ModelConfig, processor: str = "") -> Self:
        """Load the model that `config` names.

        Args:
            config: model, device and dtype.
            processor: the folder or hub id of tokenizer and image processor; empty: the model's.

        Raises:
            InvalidRequest: something of it cannot be loaded, or there is no such device.
        """
        model = load_model(CLIPModel, config.model, *resolve(config))
        return cls.assemble(model, processor or config.model)

    @classmethod
    def assemble(cls, model: CLIPModel, processor: str) -> Self:
        """Join a model with the tokenizer and image processor of a folder or hub id."""
        return cls(model, load_part(AutoTokenizer, processor), ImageProcessor.load(processor))

    @property
    def width(self) -> int:
        """D, the length of an embedding."""
        return int(self.model.config.projection_dim)

    @property
    def logit_scale(self) -> float:
        """exp(t), the learned factor of the cosine."""
        return float(self.model.logit_scale.float().exp())

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Pixels]) -> Tensor:
        """float32 [N, D], each of length 1.

        Args:
            images: uint8 [H, W, 3] or [H, W, 1], of any sizes.
        """
        pixels = self.image_processor(images, self.model.device).to(self.model.dtype)
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return functional.normalize(self.model.visual_projection(pooled).float(), dim=-1)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """float32 [N, D], each of length 1; a text that comes several times is encoded once.

        What exceeds the context of the text tower (77 tokens for the published models) is cut off,
        the end token kept.
        """
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        tokens = self.tokenizer(
            list(rows),
            padding=True,
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.model.device)
        pooled = self.model.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        embeddings = functional.normalize(self.model.text_projection(pooled).float(), dim=-1)
        return embeddings[[rows[text] for text in texts]]

    @torch.inference_mode()
    def cosines(self, images: Sequence[Pixels], texts: Sequence[str]) -> list[float]:
        """The cosine of each image's embedding with its own text's, N of each."""
        products = self.embed_images(images) * self.embed_texts(texts)
        # Rounding may carry the product of two unit vectors past 1.
        cosines: list[float] = products.sum(dim=-1).clamp(-1, 1).tolist()
        return cosines
