"""What docs/commands.md says is so; and no page uses the ports of the stack."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import typer

from salon.cli.app import app
from salon.cli.records import record_as_json
from salon.cli.score_table import Answer, Batch, answers_as_json
from salon.errors import ServiceUnavailable
from salon.jobs.record import Job, JobState
from salon.settings import Settings
from salon.stack.local_services import salons_own
from trainer.evaluation.held_out import Evaluation, effects
from trainer.spec.job_spec import read_record

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
PAGE = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")
RECORD, SCORES, STATUS = map(json.loads, re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = typer.main.get_command(app).commands


def test_every_command_is_on_the_page():
    table = PAGE.partition("| command |")[2].partition("\n\n")[0]
    first = " ".join(row.split("|")[1] for row in table.splitlines())
    named = set(re.findall(r"`(\w+)", first))
    assert named == set(COMMANDS)


def test_every_option_on_the_page_exists():
    known = {name for command in COMMANDS.values() for p in command.params for name in p.opts}
    known |= {"--install-completion", "--show-completion", "--version", "--help"}
    assert set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", PAGE)) <= known


def test_the_table_of_settings_has_every_one():
    table = PAGE.partition("<!-- options settings -->")[2].partition("<!-- end -->")[0]
    names = re.findall(r"^\| `SALON_(\w+)` \|", table, re.MULTILINE)
    assert [name.lower() for name in names] == list(Settings.model_fields)


def test_the_record_on_the_page_has_the_fields_of_a_record():
    job = Job("x", "x", {}, JobState("queued"), "", 0, 0, "", "", False, 1.0, 0.0, 0.0)
    assert list(RECORD) == [*record_as_json(job), "result", "spec"]


def test_the_result_on_the_page_has_the_fields_of_a_result():
    spec = read_record(
        {
            "name": "x",
            "model": "x",
            "prompts": ["one"],
            "rewards": [{"name": "mine"}],
            "iterations": 1,
            "algorithm": {"name": "ddpo"},
            "evaluation": {"prompts": ["two"]},
        }
    )
    images = np.zeros((0, 2, 2, 3), np.uint8)
    evaluation = Evaluation(["two"], [0], images, {"mine": np.array([0.5])})
    found = effects(spec, evaluation, evaluation)
    assert list(RECORD["result"]) == list(found)
    [shown] = RECORD["result"]["rewards"].values()
    assert list(shown) == list(found["rewards"]["mine"])
    assert list(shown["before"]) == list(found["rewards"]["mine"]["before"])


def test_the_scores_on_the_page_have_the_fields_of_a_score():
    answer = Answer("mine", "1", ServiceUnavailable("away"))
    [[entry]] = answers_as_json([answer], Batch(["one.png"], [b""]))
    assert all(list(shown) == list(entry) for shown in SCORES)
    assert entry["error"] == {"code": "ServiceUnavailable", "message": "away"}


def test_with_json_is_what_the_page_says():
    said = re.search(r"With `--json`, (.*?) print", PAGE)[1]
    flags = {
        name: [opt for p in command.params for opt in p.opts] for name, command in COMMANDS.items()
    }
    assert set(re.findall(r"`(\w+)`", said)) == {n for n, opts in flags.items() if "--json" in opts}


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted((REPOSITORY / "jobs").glob("*.yaml"))], ids=lambda page: page.stem
)
def test_no_port_of_a_page_is_one_of_the_whole_stack(page):
    first = int(Settings().reward_target.rpartition(":")[2])
    taken = range(first, first + len(salons_own()))
    text = page.read_text(encoding="utf-8")
    assert not [port for port in re.findall(r"--[a-z-]*port (\d+)", text) if int(port) in taken]
