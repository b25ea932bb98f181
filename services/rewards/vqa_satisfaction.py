"""How many questions about the image a vision-language model answers as it should.

Black et al. 2023, "Training Diffusion Models with Reinforcement Learning" (arXiv 2305.13301):
llava_strict_satisfaction in ddpo_pytorch/rewards.py at github.com/kvablack/ddpo-pytorch. An answer
counts as given when the response holds it as a substring, upper and lower case as written. The
questions' framing and the responses' cleaning differ from that code's, images come losslessly, and
LLaVA is 1.5: docs/rewards/vqa_satisfaction.md.
"""

import reprlib
from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from salon.errors import SampleError
from salon.reward.v1 import reward_pb2
from salon.serving import Reward, Sample, Score
from services.models.llava import PACKAGES, Llava, LlavaConfig
from services.models.weights import version_of


class VqaSatisfactionConfig(LlavaConfig):
    """Which LLaVA, and how much one sample may ask."""

    max_questions: int = Field(16, ge=1, description="Most questions of one sample.")
    max_question_characters: int = Field(500, ge=1, description="Longest question.")


class VqaSatisfaction(Reward):
    """Images about which every question is answered as expected score 1."""

    Config = VqaSatisfactionConfig
    name = "vqa_satisfaction"
    description = (
        'The share of metadata["questions"] to which LLaVA\'s response holds the text in the same '
        'place of metadata["answers"].'
    )
    inputs = (reward_pb2.INPUT_IMAGE, reward_pb2.INPUT_METADATA)
    lower_bound = 0.0
    upper_bound = 1.0
    max_batch = 16
    local_options = ("model=models/tiny-llava-digits",)

    def __init__(self, config: VqaSatisfactionConfig) -> None:
        """Load the model."""
        self._config = config
        self._llava = Llava(config)
        weights = version_of("1", [config.model], self._llava.dtype, PACKAGES)
        self.version = f"{weights}+{config.max_new_tokens}-tokens"

    def example(self) -> Sample:
        """The usual example with one question."""
        metadata = {"questions": ["What is in this image?"], "answers": ["three"]}
        return replace(super().example(), metadata=metadata)

    def cost(self, sample: Sample) -> float:
        """The number of its questions, each of which is one pass through the model."""
        questions = sample.metadata.get("questions")
        return float(max(1, len(questions))) if isinstance(questions, list) else 1.0

    def score(self, samples: Sequence[Sample]) -> list[Score | SampleError]:
        """The share of expected answers, with the responses in the details."""
        asked = [self._asked(sample) for sample in samples]
        images, questions = [], []
        for sample, pairs in zip(samples, asked, strict=True):
            if not isinstance(pairs, SampleError):
                images += [sample.image] * len(pairs)
                questions += [question for question, _ in pairs]
        responses = iter(self._llava.answer(images, questions))
        return [
            pairs
            if isinstance(pairs, SampleError)
            else _satisfaction([answer for _, answer in pairs], [next(responses) for _ in pairs])
            for pairs in asked
        ]

    def _asked(self, sample: Sample) -> list[tuple[str, str]] | SampleError:
        """The sample's questions with their answers, or what is wrong with them."""
        try:
            questions, answers = (_texts(sample, key) for key in ("questions", "answers"))
            if len(questions) != len(answers):
                raise _invalid(
                    f"metadata has {len(questions)} questions and {len(answers)} answers: "
                    "give one answer to each question"
                )
            self._check_size(questions)
            for question in questions:
                self._llava.check(sample.image, question)
        except SampleError as error:
            return error
        return list(zip(questions, answers, strict=True))

    def _check_size(self, questions: list[str]) -> None:
        if not 1 <= len(questions) <= self._config.max_questions:
            raise _invalid(
                f"metadata has {len(questions)} questions: give 1 to "
                f"{self._config.max_questions}, the service's max_questions"
            )
        longest = max(len(question) for question in questions)
        if longest > self._config.max_question_characters:
            raise _invalid(
                f"a question in metadata has {longest} characters, more than "
                f"{self._config.max_question_characters}, the service's max_question_characters"
            )


def _texts(sample: Sample, key: str) -> list[str]:
    texts = sample.metadata.get(key)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise _invalid(f'metadata["{key}"] must be a list of texts, got {reprlib.repr(texts)}')
    if not all(text.strip() for text in texts):
        # Every response holds the empty text.
        raise _invalid(f'metadata["{key}"] holds an empty text: {reprlib.repr(texts)}')
    return texts


def _satisfaction(answers: Sequence[str], responses: Sequence[str]) -> Score:
    given = [answer in response for answer, response in zip(answers, responses, strict=True)]
    return Score(sum(given) / len(given), {"responses": list(responses)})


def _invalid(message: str) -> SampleError:
    return SampleError(reward_pb2.ERROR_CODE_INVALID_SAMPLE, message)
