"""The examples on the page are valid parts of a job; what a job can use is what the table says."""

import re
from pathlib import Path

import pytest
import yaml

from salon.errors import InvalidRequest
from salon.serving import catalogue
from salon.settings import Settings
from trainer.spec.job_spec import read_record

PAGE = Path(__file__).parents[2] / "docs" / "several-rewards.md"
TABLE = PAGE.parent / "rewards" / "README.md"


def spec_with(part):
    rest = {
        "name": "tiny",
        "model": "some/hub-id",
        "prompts": ["a cat"],
        "iterations": 1,
        "algorithm": {"name": "ddpo"},
        "evaluation": {"prompts": ["a dog"]},
    }
    return read_record(rest | part)


@pytest.fixture
def examples():
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [spec_with(yaml.safe_load(block)) for block in blocks]


def test_the_examples_are_valid(examples):
    weighted, compared = examples
    assert [(reward.weight, reward.normalize) for reward in weighted.rewards] == [
        (1.0, "zscore"),
        (0.5, "zscore"),
    ]
    assert weighted.eval_rewards == ["clip_score"]
    assert [(reward.name, reward.weight) for reward in compared.rewards] == [
        ("style", 1.0),
        ("l2", 0.0),
    ]
    for spec in examples:
        spec.check_inputs(Settings())


def accepts(entry, **carried):
    rows = [{"prompt": prompt, **carried} for prompt in ("a cat", "a dog")]
    prompts = {"prompts": rows[:1], "evaluation": {"prompts": rows[1:]}}
    try:
        spec_with({"rewards": [entry], **prompts}).check_inputs(Settings())
    except InvalidRequest:
        return False
    return True


def in_a_job(name):
    if accepts({"name": name}):
        return "yes"
    if accepts({"name": name, "reference": "a.png"}) and accepts({"name": name}, reference="a.png"):
        return "with `reference`"
    return "with `metadata`" if accepts({"name": name}, metadata={"a": 1}) else "no"


def test_the_table_tells_which_rewards_a_job_can_use():
    rows = [line.split(" | ") for line in TABLE.read_text(encoding="utf-8").splitlines()]
    told = {
        name: row[-1].removesuffix(" |")
        for row in rows
        if row[0].startswith("| [")
        for names in re.findall(r"\[(.*?)\]", row[0])
        for name in names.split(", ")
    }
    assert told == {name: in_a_job(name) for name in catalogue.own()}


def test_every_local_link_leads_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE.read_text(encoding="utf-8"))
    assert len(links) == 3
    for link in links:
        assert (PAGE.parent / link).exists(), link
