import json
from pathlib import Path

from tiny.prompts import SCENES
from tiny.questions import row

LISTS = Path(__file__).parents[2] / "jobs" / "prompts"


def test_a_row_asks_for_each_part_of_its_scene():
    scene = next(s for s in SCENES if s.prompt == "a red three on a blue background")
    assert row(scene) == {
        "prompt": "a red three on a blue background",
        "metadata": {
            "questions": [
                "What number is in this image?",
                "What color is the number?",
                "What color is the background?",
            ],
            "answers": ["three", "red", "blue"],
        },
    }


def test_the_rows_on_disk_are_about_the_prompts_of_the_lists():
    by_prompt = {scene.prompt: scene for scene in SCENES}
    for name, prompts in (("train-64", "digits-train-64.txt"), ("heldout", "digits-heldout.txt")):
        lines = (LISTS / f"digits-questions-{name}.jsonl").read_text().splitlines()
        listed = (LISTS / prompts).read_text().splitlines()
        assert [json.loads(line) for line in lines] == [row(by_prompt[each]) for each in listed]
