from collections import Counter
from pathlib import Path

from tiny.prompts import COLOURS, SCENES

LISTS = Path(__file__).parents[2] / "jobs" / "prompts"


def read(name: str) -> list[str]:
    return (LISTS / name).read_text().splitlines()


def test_every_digit_comes_in_every_pair_of_different_colours():
    assert len(SCENES) == 10 * 8 * 7
    assert len({scene.prompt for scene in SCENES}) == len(SCENES)
    assert all(scene.ink != scene.paper for scene in SCENES)


def test_prompt_names_ink_digit_and_paper():
    scene = next(s for s in SCENES if (s.ink, s.digit, s.paper) == ("red", 3, "blue"))
    assert scene.prompt == "a red three on a blue background"


def test_lists_on_disk_divide_all_prompts():
    train, held_out = read("digits-train.txt"), read("digits-heldout.txt")
    assert sorted(train + held_out) == sorted(scene.prompt for scene in SCENES)
    assert set(held_out) == {scene.prompt for scene in SCENES if scene.held_out}


def test_held_out_prompts_cover_every_digit_ink_and_paper_evenly():
    held_out = [scene for scene in SCENES if scene.held_out]
    assert len(held_out) == 70
    assert set(Counter(scene.digit for scene in held_out).values()) == {7}
    for part in ("ink", "paper"):
        counts = Counter(getattr(scene, part) for scene in held_out)
        assert set(counts) == set(COLOURS)
        assert max(counts.values()) - min(counts.values()) <= 1
