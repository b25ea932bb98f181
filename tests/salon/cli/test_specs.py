from pathlib import Path

import pytest
import yaml

from salon.cli.specs import check, parse_seeds
from salon.errors import InvalidRequest
from salon.settings import Settings

JOB = Path(__file__).parents[3] / "jobs" / "ddpo-compressibility-tiny.yaml"


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0-4", [0, 1, 2, 3, 4]),
        ("0,3,7", [0, 3, 7]),
        ("5", [5]),
        ("0-1, 9", [0, 1, 9]),
        ("0-99", list(range(100))),
    ],
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "4-0", "1,1", "0-2,2", "-1", "1.5", "0-", "0-100", ","])
def test_what_are_no_seeds(text):
    with pytest.raises(InvalidRequest, match="--seeds"):
        parse_seeds(text)


def test_the_outline_has_what_differs_from_the_defaults(monkeypatch):
    monkeypatch.chdir(JOB.parents[1])
    outline = check(Settings(), JOB, ["seed=7", "iterations=40"]).outline()
    file = yaml.safe_load(JOB.read_text())
    assert outline["seed"] == 7
    assert outline["iterations"] == 40
    assert outline["prompts"] == f"16 prompts, e.g. {file['prompts'][0]}"
    assert outline["algorithm"]["name"] == "ddpo"
    assert outline["evaluation"]["prompts"].startswith("70 prompts, e.g. ")
    assert outline.keys() - {"seed"} == file.keys()
    assert outline["algorithm"].keys() == file["algorithm"].keys()


def test_the_outline_says_what_prompts_carry(monkeypatch):
    monkeypatch.chdir(JOB.parents[1])
    outline = check(Settings(), JOB.with_name("ddpo-vqa-tiny.yaml"), []).outline()
    expected = "64 prompts, e.g. a red zero on a yellow background, with metadata"
    assert outline["prompts"] == expected


def test_what_is_given_as_it_is_by_default_is_left_out(monkeypatch):
    monkeypatch.chdir(JOB.parents[1])
    assert "seed" not in check(Settings(), JOB, ["seed=0"]).outline()
