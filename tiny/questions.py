"""What the tiny LLaVA is asked about an image, what the right answer is, and both as tokens.

`python -m tiny.questions` writes the rows, prompts with questions, that a training job reads.
"""

import json

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from tiny.prompts import DIGITS, LISTS, SCENES, Scene

PROMPT = "USER: <image>\n{question} ASSISTANT:"
"""How LLaVA 1.5 is asked: https://huggingface.co/llava-hf/llava-1.5-7b-hf."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].upper() }}: "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""`PROMPT` as `processor.apply_chat_template` makes it."""

QUESTIONS: dict[str, str] = {
    "caption": "Answer concisely: what is going on in this image?",
    "digit": "What number is in this image?",
    "ink": "What color is the number?",
    "paper": "What color is the background?",
}
"""The first is how Black et al. 2023, https://arxiv.org/abs/2305.13301, ask LLaVA for a caption;
the others ask for one word."""

MAX_TOKENS = 256
_SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


def prompt_of(question: str) -> str:
    """The text that asks one of the `QUESTIONS`, given by its name."""
    return PROMPT.format(question=QUESTIONS[question])


def answer_to(question: str, scene: Scene) -> str:
    """The right answer for an image of the scene to one of the `QUESTIONS`, given by its name."""
    answers = {
        "caption": scene.prompt,
        "digit": DIGITS[scene.digit],
        "ink": scene.ink,
        "paper": scene.paper,
    }
    return answers[question]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-pair encoding on bytes in which each word of the questions and answers is one token.

    Any other text falls back to bytes, so that no question is unknown.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        special_tokens=[*_SPECIAL_TOKENS.values(), "<image>"],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        # More than all the merges there are, so that every word becomes one token.
        vocab_size=1000,
        min_frequency=1,
        show_progress=False,
    )
    texts = [
        f"{prompt_of(question).replace('<image>', '')} {answer_to(question, scene)}"
        for question in QUESTIONS
        for scene in SCENES
    ]
    tokenizer.train_from_iterator(texts, trainer)
    start = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[start])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **_SPECIAL_TOKENS,
        padding_side="left",
        model_max_length=MAX_TOKENS,
        extra_special_tokens={"image_token": "<image>"},
    )


def row(scene: Scene) -> dict[str, object]:
    """The prompt of the scene, and what vqa_satisfaction is to ask about an image of it."""
    asked = [name for name in QUESTIONS if name != "caption"]
    questions = [QUESTIONS[name] for name in asked]
    answers = [answer_to(name, scene) for name in asked]
    return {"prompt": scene.prompt, "metadata": {"questions": questions, "answers": answers}}


def main() -> None:
    """Write jobs/prompts/digits-questions-train-64.jsonl and -heldout.jsonl, one row a line.

    The first are about the prompts of digits-train-64.txt, which are spread over all there are.
    """
    by_prompt = {scene.prompt: scene for scene in SCENES}
    for name, prompts in (("train-64", "digits-train-64.txt"), ("heldout", "digits-heldout.txt")):
        rows = [row(by_prompt[prompt]) for prompt in (LISTS / prompts).read_text().splitlines()]
        lines = "".join(json.dumps(each) + "\n" for each in rows)
        (LISTS / f"digits-questions-{name}.jsonl").write_text(lines)


if __name__ == "__main__":
    main()
