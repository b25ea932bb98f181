"""`salon score` against a stack: by file size, by comparison, by a network, by a learner."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from salon.cli.score_table import Answer, Batch, score_table
from salon.errors import ServiceUnavailable
from salon.local_services import LOCAL_SERVICES
from tests.fixtures.command import Salon, assert_one_line_error

REPOSITORY = Path(__file__).parents[3]
REWARDS = "jpeg_compressibility,l2,aesthetic,preference"
SERVED = {*REWARDS.split(","), "jpeg_incompressibility"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("score")


@pytest.fixture(scope="module")
def salon(folder):
    command = Salon(REPOSITORY, services=4)  # where its models lie
    command.environment |= {"SALON_STATE_DIR": str(folder / "state"), "HF_HUB_OFFLINE": "1"}
    up = command("up", "--rewards", REWARDS)
    assert up.returncode == 0, up.err
    yield command
    assert command("down").out.strip() == "stopped"
    assert command.processes() == []


@pytest.fixture(scope="module")
def pictures(folder):
    random = np.random.default_rng(0)
    paths = [folder / "one.png", folder / "two.png"]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return paths


def rows(process):
    """The table's rows by reward: what stands between its name and its version."""
    lines = process.out.splitlines()[1:]
    assert all(line.startswith(" ") for line in lines)
    cells = [line.split(maxsplit=1) for line in lines if not line.startswith("  ")]  # wrapped
    return dict(cells)


def test_the_table_has_a_row_for_every_reward_that_is_served(salon, pictures):
    reference = ("--reference", str(pictures[1]))
    done = salon("score", "--reward", "all", str(pictures[0]), *reference)
    assert done.returncode == 0, done.err
    table = rows(done)
    assert table.keys() == SERVED
    first, second = (np.asarray(Image.open(path), dtype=float) for path in pictures)
    distance = float(table["l2"].split()[0])
    assert distance == pytest.approx(-np.mean((first - second) ** 2) / 255**2, rel=1e-5)
    for reward in SERVED - {"preference"}:
        assert np.isfinite(float(table[reward].split()[0]))
    assert "tiny-clip-digits" in table["aesthetic"]
    assert table["preference"].startswith("—")
    assert "name one in ScoreRequest.instance" in table["preference"]


def test_a_reward_that_lacks_an_input_says_so_in_its_row(salon, pictures):
    done = salon("score", "--reward", "all", *map(str, pictures))
    assert done.returncode == 0, "an input that was not given is no failure"
    assert done.out.count("needs INPUT_REFERENCE") == 2
    for path in pictures:
        assert done.out.count(f" {path} ") == len(SERVED - {"preference"})


def test_a_reward_is_found_wherever_the_stack_serves_it(salon, pictures):
    done = salon("score", "--reward", "aesthetic", str(pictures[0]))
    assert done.returncode == 0, done.err
    name, reward, score = done.out.split()
    assert (name, reward) == (str(pictures[0]), "aesthetic")
    table = rows(salon("score", "--reward", "all", str(pictures[0])))
    assert table["aesthetic"].split()[0] == score


def test_a_sample_that_fails_is_in_its_row_and_in_the_exit_code(salon, folder):
    (folder / "broken.png").write_bytes(b"no picture")
    done = salon("score", "--reward", "all", str(folder / "broken.png"))
    assert done.returncode == 1
    assert rows(done)["jpeg_compressibility"].startswith("—")


def test_a_service_that_is_away_is_a_row_and_a_failure():
    answer = Answer("mine", "", ServiceUnavailable("reward service gpu:1: UNAVAILABLE"))
    console = Console(file=io.StringIO(), width=100)
    console.print(score_table([answer], Batch(["one.png"], [b""])))
    assert answer.failed
    assert re.search(r"mine +— +reward service gpu:1: UNAVAILABLE", console.file.getvalue())


def test_prompt_and_metadata_arrive_and_details_are_shown(salon, start_service, pictures, tmp_path):
    service = start_service("tests.services.faulty")
    arguments = ("score", "--reward", "all", "--target", service.target, "--prompt", "details")
    metadata = json.dumps({"folder": str(tmp_path)})
    table = rows(salon(*arguments, "--metadata", metadata, str(pictures[0])))
    assert (tmp_path / "details.began").exists()
    assert table["patient"].split() == ["1", "batch:", "1", "1"]
    assert "boxes: [[1, 2], [3, 4.5]], caption: a cat, logit" in table["faulty"]
    assert "INPUT_METADATA" in rows(salon(*arguments, str(pictures[0])))["patient"]


@pytest.mark.parametrize("metadata", ["{", "[1]", "3"])
def test_metadata_is_a_json_object(salon, pictures, metadata):
    failed = salon("score", "--metadata", metadata, str(pictures[0]))
    assert_one_line_error(failed, "--metadata", metadata)


@pytest.mark.slow
def test_every_reward_there_is_can_be_served_at_once(tmp_path, pictures):
    command = Salon(REPOSITORY, services=len(LOCAL_SERVICES))
    command.environment |= {"SALON_STATE_DIR": str(tmp_path / "state"), "HF_HUB_OFFLINE": "1"}
    up = command("up", "--rewards", "all")
    assert up.returncode == 0, up.err
    given = ["--prompt", "a red three on a blue background", "--reference", str(pictures[1])]
    given += ["--metadata", json.dumps({"questions": ["Is it red?"], "answers": ["yes"]})]
    table = rows(command("score", "--reward", "all", str(pictures[0]), *given))
    assert command("down").returncode == 0
    assert table.keys() == {reward for service in LOCAL_SERVICES for reward in service.rewards}
    unscored = {reward for reward, row in table.items() if row.startswith("—")}
    assert unscored == {"discriminator", "preference"}, "these score by instance"
