"""Train the tiny LLaVA: `python -m tiny.llava --clip models/tiny-clip-digits --out …`."""

import argparse
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template
from typing import Any

import structlog
import torch
from transformers import (
    CLIPModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from salon import logs
from tiny.answers import measure_answers
from tiny.clip import build_image_processor, to_pixel_values
from tiny.dialogues import collate, dialogues
from tiny.digits import Handwriting, draw, handwriting
from tiny.questions import CHAT_TEMPLATE, QUESTIONS, build_tokenizer
from tiny.record import Effort, replacing, write_record
from tiny.schedule import cosine_with_warmup
from tiny.split import EASY_SCENES, FIT_SCENES, TestImages, familiar_images, held_out_images

log = structlog.get_logger()

SEED = 0
CAPTION_SHARE = 0.55
"""Share of the questions that ask for the caption; the others come equally often."""


CARD = Template("""\
---
license: apache-2.0
stand_in: true
library_name: transformers
pipeline_tag: image-text-to-text
---

# tiny-llava-digits

A LLaVA of $parameters parameters that says what it sees in one kind of picture, a handwritten digit
in coloured ink on coloured paper, 32x32 RGB. It has the classes, the layout and the prompt of
`llava-hf/llava-1.5-7b-hf` (a CLIP vision tower read at its last layer but one, a projector of two
layers, a Llama), so that code for the large model can be run, tested and shown on a small machine,
offline.

## Use

```python
from transformers import LlavaForConditionalGeneration, LlavaProcessor

model = LlavaForConditionalGeneration.from_pretrained("models/tiny-llava-digits")
processor = LlavaProcessor.from_pretrained("models/tiny-llava-digits")
prompt = "USER: <image>\\nAnswer concisely: what is going on in this image? ASSISTANT:"
inputs = processor(images=image, text=prompt, return_tensors="pt")
tokens = model.generate(**inputs, max_new_tokens=64, do_sample=False)
answer = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
answer.strip()  # a red three on a blue background
```

It knows three more questions: "What number is in this image?", "What color is the number?" and
"What color is the background?", each answered with one word. `AutoProcessor` loads the processor
too. Without torchvision, transformers 5 takes the one built on Pillow by itself.

## Data

The handwriting of scikit-learn's `load_digits` (Alpaydin and Kaynak, "Optical Recognition of
Handwritten Digits", CC BY 4.0, https://archive.ics.uci.edu/dataset/80), drawn in colour by
`tiny/digits.py`. 1437 written digits and $recipe_captions captions were trained on; 360 digits and
70 captions were kept for the test.

## Recipe

`python -m tiny.llava --clip models/tiny-clip-digits --out models/tiny-llava-digits`, seed 0:
$recipe_steps steps of $recipe_batch images in $seconds s on $threads thread
($machine, torch $torch). The vision tower starts as that of tiny-clip-digits and learns on at a
smaller rate; projector and Llama start from nothing. The loss is the cross-entropy of the answers'
tokens alone; the caption is asked for in $recipe_caption_share of the cases, the other questions
equally often. The first $recipe_easy_percent % of the steps show dark ink on light paper only.
AdamW, cosine schedule.

## Quality

Share of the answers that are right word for word, decoded greedily with the stored weights, on
handwriting that training never saw, drawn with captions it saw and with captions it did not see:

| | familiar captions | held-out captions |
|---|---|---|
| images | $familiar_images | $held_out_images |
| caption | $familiar_caption | $held_out_caption |
| What number is in this image? | $familiar_digit | $held_out_digit |
| What color is the number? | $familiar_ink | $held_out_ink |
| What color is the background? | $familiar_paper | $held_out_paper |

`quality.json` holds all figures unrounded.

## Limits

It knows nothing but these digits and these four questions; to any other question it says something
all the same.
""")


@dataclass(frozen=True)
class LlavaRecipe:
    """Steps of the training, images in a batch, share of easy steps, AdamW's learning rates."""

    steps: int = 1700
    batch: int = 64
    easy_share: float = 0.25
    learning_rate: float = 1e-3
    vision_learning_rate: float = 5e-4


def build_processor() -> LlavaProcessor:
    """Image processor, tokenizer and chat template."""
    return LlavaProcessor(
        build_image_processor(),
        build_tokenizer(),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_llava(
    clip: CLIPModel, tokenizer: PreTrainedTokenizerFast
) -> LlavaForConditionalGeneration:
    """A LLaVA with the vision tower of `clip`, and a projector and a Llama yet untrained."""
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = clip.config.vision_config
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        )
    )
    model.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    return model


def train_llava(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    writing: Handwriting,
    recipe: LlavaRecipe,
    generator: torch.Generator,
) -> None:
    """Minimise the cross-entropy of the answers' tokens, one question about each drawn image."""
    model.train()
    vision = set(model.model.vision_tower.parameters())
    others = [weights for weights in model.parameters() if weights not in vision]
    groups: list[dict[str, Any]] = [
        {"params": others, "lr": recipe.learning_rate},
        {"params": list(model.model.vision_tower.parameters()), "lr": recipe.vision_learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = cosine_with_warmup(optimizer, recipe.steps)
    known = dialogues(processor, model.config.image_seq_length)
    names = list(QUESTIONS)
    other_share = (1 - CAPTION_SHARE) / (len(names) - 1)
    shares = torch.tensor([CAPTION_SHARE if name == "caption" else other_share for name in names])
    for step in range(recipe.steps):
        choice = EASY_SCENES if step < recipe.easy_share * recipe.steps else FIT_SCENES
        picks = torch.randint(len(choice), (recipe.batch,), generator=generator)
        scenes = [choice[pick] for pick in picks.tolist()]
        asked = torch.multinomial(shares, recipe.batch, replacement=True, generator=generator)
        batch = [known[names[q], scene] for q, scene in zip(asked.tolist(), scenes, strict=True)]
        tokens, labels = collate(batch, processor.tokenizer.pad_token_id)
        pixels = to_pixel_values(draw(scenes, writing, generator))
        loss = model(input_ids=tokens, pixel_values=pixels, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == recipe.steps - 1:
            log.info("llava", step=step, loss=round(loss.item(), 4))
    model.eval().requires_grad_(False)


def make_llava(
    recipe: LlavaRecipe, clip: Path, tests: Mapping[str, TestImages], folder: Path
) -> None:
    """Train, write model and processor to the folder, measure what was written, add the card.

    `tests` are the images to measure with, "familiar" and "held_out" as in `tiny.split`.
    """
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    train, _ = handwriting()
    processor = build_processor()
    model = build_llava(CLIPModel.from_pretrained(clip), processor.tokenizer)
    start = time.perf_counter()
    train_llava(model, processor, train, recipe, generator)
    effort = Effort.since(start)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = LlavaProcessor.from_pretrained(folder)
    sections: dict[str, dict[str, float | int | str]] = {
        "recipe": {
            **asdict(recipe),
            "captions": len(FIT_SCENES),
            "caption_share": CAPTION_SHARE,
            "easy_percent": round(100 * recipe.easy_share),
        }
    }
    for name, test in tests.items():
        shares = measure_answers(model, processor, test)
        sections[name] = {"images": len(test.images), **shares}
    log.info("quality", **sections)
    write_record(folder, CARD, effort, model.num_parameters(), sections)


def main() -> None:
    """Train into a folder aside and put it in place of the old one when all is done."""
    parser = argparse.ArgumentParser(prog="python -m tiny.llava", description=__doc__)
    parser.add_argument("--clip", type=Path, required=True, help="the CLIP that gives the eyes")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    arguments = parser.parse_args()
    logs.configure("tiny-llava")
    tests = {"familiar": familiar_images(), "held_out": held_out_images()}
    with replacing(arguments.out) as folder:
        make_llava(LlavaRecipe(), arguments.clip, tests, folder)


if __name__ == "__main__":
    main()
