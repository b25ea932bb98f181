"""LLaVA: the answer of a vision-language model to a question about an image.

Liu et al. 2023, "Visual Instruction Tuning" (arXiv 2304.08485), and "Improved Baselines with Visual
Instruction Tuning" (arXiv 2310.03744) for version 1.5, in the layout of
huggingface.co/llava-hf/llava-1.5-7b-hf.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from pydantic import Field
from transformers import (
    AutoProcessor,
    BatchFeature,
    GenerationConfig,
    LlavaForConditionalGeneration,
)

from salon.errors import SampleError
from salon.reward.v1 import reward_pb2
from salon.serving import Dtype, ModelConfig
from salon.wire.images import Pixels
from services.models.device import resolve
from services.models.pixels import rgb
from services.models.pretrained import load_model, load_part

LONGEST_ASPECT_RATIO = 16
"""The processor scales the shorter side to 336 pixels before it crops: of 1 x 8192 pixels it would
make 2.7 gigabytes."""

PACKAGES = ("transformers", "pillow")
"""Whose releases answers depend on, for `version_of`: Pillow resizes the images."""


class LlavaConfig(ModelConfig):
    """Which LLaVA, and how it answers."""

    model: str = Field(
        "llava-hf/llava-1.5-7b-hf", description="A local folder, or an id on the Hugging Face hub."
    )
    dtype: Dtype = Field(
        "auto",
        description="Of the network; auto: float16 on a GPU, which is how its weights were "
        "published, and float32 on a CPU.",
    )
    max_new_tokens: int = Field(64, ge=1, le=1024, description="Longest answer, in tokens.")
    answers_per_pass: int = Field(
        16, ge=1, description="Most (image, question) pairs that go through the model together."
    )


class Llava:
    """Answers questions about images, greedily: the same question has the same answer."""

    def __init__(self, config: LlavaConfig) -> None:
        """Load model and processor.

        Raises:
            InvalidRequest: one of them cannot be loaded, or there is no such device.
        """
        device, dtype = resolve(config)
        # Pillow's resize is what the published scores were made with; it needs no torchvision.
        self._processor = load_part(AutoProcessor, config.model, backend="pil")
        self._model = load_model(LlavaForConditionalGeneration, config.model, device, dtype)
        tokenizer = self._processor.tokenizer
        end = self._model.generation_config.eos_token_id
        # In place of the checkpoint's own, which may ask for sampling or penalties.
        self._model.generation_config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=config.max_new_tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id if end is None else end,
            pad_token_id=tokenizer.pad_token_id,
        )
        self._answers_per_pass = config.answers_per_pass

    @property
    def dtype(self) -> torch.dtype:
        """Of the network."""
        dtype: torch.dtype = self._model.dtype
        return dtype

    def check(self, image: Pixels, question: str) -> None:
        """See that this can be answered.

        Raises:
            SampleError: INVALID_SAMPLE: a long thin image, or a question that holds the mark of
                another image.
        """
        height, width = image.shape[:2]
        if max(height, width) > LONGEST_ASPECT_RATIO * min(height, width):
            raise SampleError(
                reward_pb2.ERROR_CODE_INVALID_SAMPLE,
                f"the image is {height}x{width}: one side may be at most "
                f"{LONGEST_ASPECT_RATIO} times the other",
            )
        if self._processor.image_token in question:
            raise SampleError(
                reward_pb2.ERROR_CODE_INVALID_SAMPLE,
                f"question {question!r} holds {self._processor.image_token!r}, "
                "which stands for an image: leave it out",
            )

    def answer(self, images: Sequence[Pixels], questions: Sequence[str]) -> list[str]:
        """One answer to each question about its image, without spaces around it; may be empty.

        Args:
            images: uint8 [H, W, 3] or [H, W, 1], of any sizes; gray is repeated to RGB.
            questions: one for each image.
        """
        answers: list[str] = []
        for start in range(0, len(images), self._answers_per_pass):
            part = slice(start, start + self._answers_per_pass)
            inputs = self.inputs(images[part], questions[part])
            with torch.inference_mode():
                tokens = self._model.generate(**inputs)
            new = tokens[:, inputs["input_ids"].shape[1] :]
            texts = self._processor.batch_decode(new, skip_special_tokens=True)
            answers.extend(text.strip() for text in texts)
        return answers

    def inputs(self, images: Sequence[Pixels], questions: Sequence[str]) -> BatchFeature:
        """What the model reads: input_ids, attention_mask and pixel_values.

        Questions of different lengths are padded on the left, so that every answer starts at the
        end of its own question.
        """
        inputs: BatchFeature = self._processor(
            images=[Image.fromarray(rgb(image)) for image in images],
            text=[self._prompt(question) for question in questions],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        return inputs.to(self._model.device, self._model.dtype)

    def _prompt(self, question: str) -> str:
        if self._processor.chat_template is None:
            # The conversation format of LLaVA-1.5, as huggingface.co/llava-hf/llava-1.5-7b-hf
            # gives it.
            return f"USER: {self._processor.image_token}\n{question} ASSISTANT:"
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt: str = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return prompt
