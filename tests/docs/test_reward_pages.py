"""What the pages of the rewards show works as shown, and their tables are complete."""

import pkgutil
import re
import subprocess
import sys

import pytest
import typer

from salon.serving import LearnedReward
from services import rewards
from services.__main__ import main
from services.server.reward_modules import choose_rewards
from tests.fixtures.service import REPOSITORY

PAGES = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted((REPOSITORY / "docs" / "rewards").glob("*.md"))
}
MODULES = [module.name for module in pkgutil.iter_modules(rewards.__path__)]

# Bash itself reads comments, variables and continued lines; only the service is not started.
PRINT_COMMANDS = r"""
python() {
    if [ "$1 $2 ${3:-}" = "-P -m services" ]; then shift 3; printf '%s\n' "$@" ''
    else "$PYTHON" "$@"; fi
}
"""


def shown(page):
    """The arguments of every `python -P -m services` in the shell blocks of a page."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)
    script = "\n".join(block for language, block in blocks if language in ("", "sh"))
    done = subprocess.run(
        ["bash", "-euc", PRINT_COMMANDS + script],
        env={"PYTHON": sys.executable},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return [command.splitlines() for command in done.stdout.split("\n\n") if command]


COMMANDS = [command for page in PAGES for command in shown(page)]
TINY = [command for command in COMMANDS if any("models/tiny-" in word for word in command)]


def choose(command):
    """The rewards that `python -m services` would load for these arguments, with their options."""
    app = typer.Typer()
    app.command()(main)
    given = typer.main.get_command(app).make_context("services", list(command)).params
    options = dict(setting.split("=", 1) for setting in given["settings"] or [])
    flags = {name: given[name] for name in ("model", "device", "dtype") if given[name]}
    return choose_rewards(given["module"], options | flags)


def test_every_page_of_a_reward_shows_how_it_is_served():
    assert {command[0].partition(":")[0] for command in COMMANDS} == set(MODULES)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_is_understood(command):
    assert choose(command)


@pytest.mark.parametrize("command", TINY, ids=" ".join)
def test_every_command_with_a_tiny_model_can_score(command, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    for choice in choose(command):
        reward = choice.load()
        [result] = reward.score([reward.example()])
        assert isinstance(getattr(result, "value", result), float)


def test_there_is_such_a_command_for_every_reward_with_a_model():
    with_models = {
        choice.reward.__module__.rpartition(".")[2]
        for module in MODULES
        for choice in choose_rewards(module)
        if choice.config is not None and hasattr(choice.config, "model")
    }
    assert {command[0] for command in TINY} == with_models


@pytest.mark.parametrize("module", MODULES)
def test_the_table_of_options_is_that_of_the_config(module):
    for choice in choose_rewards(module):
        # Learned rewards share the options that discriminator.md lists.
        if choice.config is None or issubclass(choice.reward, LearnedReward):
            continue
        options = PAGES[choice.reward.name].split("## Options")[1].split("\n## ")[0]
        rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", options, re.MULTILINE))
        assert rows.keys() == type(choice.config).model_fields.keys()
        for name, default in choice.config:
            # Where there is none, the table says in words what is taken.
            assert default in (None, "") or rows[name] == str(default), name


def test_every_reward_has_a_page_and_every_page_is_in_the_index():
    index = set(re.findall(r"\]\((\w+)\.md\)", PAGES["README"]))
    assert index == PAGES.keys() - {"README"}
    named = re.findall(r"\[([\w, ]+)\]\(\w+\.md\)", PAGES["README"])
    names = {name for link in named for name in link.split(", ")}
    assert names == {choice.reward.name for module in MODULES for choice in choose_rewards(module)}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_page_leads_to_its_heading(page):
    folder = REPOSITORY / "docs" / "rewards"
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[page]):
        file, _, heading = link.partition("#")
        target = folder / file if file else folder / f"{page}.md"
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"\W+", "-", name.lower()) for name in headings], link
