"""`salon score` against a stack: by file size, by comparison, by a network, by a learner."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from salon.cli.app import app
from salon.cli.score import FILES_AT_ONCE, known_targets
from salon.cli.score_table import Answer, Batch, score_table
from salon.errors import InvalidRequest, ServiceUnavailable
from salon.serving import catalogue
from salon.settings import Settings
from salon.stack.local_services import salons_own
from salon.wire.outcomes import Outcome
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
    command.up = up.out
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
    assert done.out.count("needs --reference") == 2
    alone = salon("score", "--reward", "l2", str(pictures[0]))
    assert "reward l2 needs --reference, and the sample has none" in alone.out
    for path in pictures:
        assert done.out.count(f" {path} ") == len(SERVED - {"preference"})


def test_a_reward_is_found_wherever_the_stack_serves_it(salon, pictures):
    done = salon("score", "--reward", "aesthetic", str(pictures[0]))
    assert done.returncode == 0, done.err
    name, reward, score = done.out.split()
    assert (name, reward) == (str(pictures[0]), "aesthetic")
    table = rows(salon("score", "--reward", "all", str(pictures[0])))
    assert table["aesthetic"].split()[0] == score


def test_a_stand_in_is_marked_wherever_its_scores_or_its_name_are_shown(salon, pictures):
    said = r"aesthetic is served by a stand-in \(\S+\): its scores are for trying out\n"
    done = salon("score", "--reward", "all", *map(str, pictures))
    assert re.fullmatch(said, done.err)
    assert re.fullmatch(said, salon("score", "--reward", "aesthetic", *map(str, pictures)).err)
    for shown in (salon.up, salon("status").out):
        [marked] = [line for line in shown.splitlines() if "a stand-in, for trying out" in line]
        assert marked.split()[0] == "aesthetic"


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


def test_the_rows_of_an_image_are_together():
    scored = [Outcome(0.5, None, {}, name, "1") for name in "ab"]
    answers = [Answer("a", "1", [scored[0]] * 2), Answer("away", "", ServiceUnavailable("x"))]
    answers.append(Answer("b", "1", [scored[1]] * 2))
    table = score_table(answers, Batch(["1.png", "2.png"], [b"", b""]))
    image, reward = ([str(cell) for cell in column.cells] for column in table.columns[:2])
    assert image == ["1.png", "1.png", "2.png", "2.png", "all"]
    assert reward == ["a", "b", "a", "b", "away"]


def test_prompt_and_metadata_arrive_and_details_are_shown(salon, start_service, pictures, tmp_path):
    service = start_service("tests.services.faulty")
    arguments = ("score", "--reward", "all", "--target", service.target, "--prompt", "details")
    metadata = json.dumps({"folder": str(tmp_path)})
    table = rows(salon(*arguments, "--metadata", metadata, str(pictures[0])))
    assert (tmp_path / "details.began").exists()
    assert table["patient"].split() == ["1", "batch:", "1", "1"]
    assert "boxes: [[1, 2], [3, 4.5]], caption: a cat, logit" in table["faulty"]
    assert "--metadata" in rows(salon(*arguments, str(pictures[0])))["patient"]


def entries(process):
    return {(entry["image"], entry["reward"]): entry for entry in json.loads(process.out)}


def test_json_has_every_image_and_reward_with_all_digits(salon, pictures, folder):
    (folder / "broken.png").write_bytes(pictures[0].read_bytes()[:500])
    paths = [str(path) for path in (*pictures, folder / "broken.png")]
    done = salon("score", "--reward", "all", "--json", *paths)
    assert done.returncode == 1
    assert done.err == ""
    found = entries(done)
    assert found.keys() == {(path, reward) for path in paths for reward in SERVED}
    error = found[paths[2], "jpeg_compressibility"]["error"]
    assert error["code"] == "ERROR_CODE_INVALID_IMAGE"
    assert found[paths[0], "l2"]["error"]["code"] == "ERROR_CODE_MISSING_INPUT"
    assert found[paths[0], "preference"]["error"]["code"] == "UnknownInstance"
    assert {name for (_, name), entry in found.items() if entry["stand_in"]} == {"aesthetic"}
    assert found[paths[0], "jpeg_compressibility"]["unit"] == "kB"
    assert found[paths[0], "l2"]["unit"] is None
    exact = found[paths[0], "jpeg_compressibility"]["score"]
    buffer = io.BytesIO()
    Image.open(pictures[0]).save(buffer, "JPEG", quality=95)
    assert exact == -len(buffer.getvalue()) / 1000
    one = salon("score", "--reward", "jpeg_compressibility", "--json", paths[0])
    assert json.loads(one.out) == [found[paths[0], "jpeg_compressibility"]]


def test_what_cannot_be_read_is_said_and_the_rest_is_scored(salon, pictures, folder):
    good, missing = str(pictures[0]), str(folder / "missing.png")
    other = folder / "broken.png"
    other.write_bytes(b"no picture")
    done = salon("score", missing, good, str(other), str(folder))
    assert done.returncode == 1
    scored, refused = done.out.splitlines()
    assert scored.split()[0] == good
    assert refused.startswith(f"{other}  jpeg_compressibility  InvalidRequest: ")
    first, second = done.err.splitlines()
    assert missing in first
    assert "it is a folder" in second
    listed = json.loads(salon("score", "--json", missing, good, str(folder)).out)
    assert [entry["image"] for entry in listed] == [missing, good, str(folder)]
    assert [entry["error"] and entry["error"]["code"] for entry in listed] == [
        "UNREADABLE_FILE",
        None,
        "UNREADABLE_FILE",
    ]


def test_more_files_than_are_read_at_once_are_all_scored_in_order(salon, pictures):
    paths = [str(pictures[i % 2]) for i in range(FILES_AT_ONCE + 3)]
    done = salon("score", "--json", *paths)
    assert done.returncode == 0
    listed = json.loads(done.out)
    assert [entry["image"] for entry in listed] == paths
    assert len({entry["score"] for entry in listed}) == 2


def test_an_endless_file_is_refused(salon):
    assert_one_line_error(salon("score", "/dev/zero"), "/dev/zero", "SALON_MAX_MESSAGE_BYTES")


def test_one_image_may_come_on_stdin(salon, pictures):
    command = [sys.executable, "-c", "from salon.cli import main; main()", "score", "-"]
    with pictures[0].open("rb") as file:
        done = subprocess.run(
            command,
            stdin=file,
            env=salon.environment,
            cwd=salon.folder,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stdout.split()[2] == salon("score", str(pictures[0])).out.split()[2]


@pytest.mark.parametrize("metadata", ["{", "[1]", "3"])
def test_metadata_is_a_json_object(salon, pictures, metadata):
    failed = salon("score", "--metadata", metadata, str(pictures[0]))
    assert_one_line_error(failed, "--metadata", metadata)


@pytest.fixture
def score(jpeg_service, tmp_path, monkeypatch):
    """`salon score` in this process, two files at once, without a stack."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("salon.cli.score.FILES_AT_ONCE", 2)

    def run(*arguments):
        arguments = ["score", "--target", jpeg_service.target, *map(str, arguments)]
        return CliRunner().invoke(app, arguments, catch_exceptions=False)

    return run


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (2, 2, 0)])
def test_files_that_cannot_be_sent_keep_no_other_from_being_scored(score, pictures, folder, order):
    """Also where no file of those that are sent at once is an image."""
    text = folder / "notes.txt"
    text.write_text("no picture")
    paths = [str([*pictures, text][i]) for i in order]
    done = score("--json", *paths)
    assert done.exit_code == 1
    listed = json.loads(done.stdout)
    assert [entry["image"] for entry in listed] == paths
    assert {entry["reward"] for entry in listed} == {"jpeg_compressibility"}
    codes = [entry["error"] and entry["error"]["code"] for entry in listed]
    assert codes == ["InvalidRequest" if path == str(text) else None for path in paths]
    lines = score(*paths).stdout.splitlines()
    assert [line.split()[0] for line in lines] == paths


def test_what_concerns_the_whole_service_ends_the_command_with_its_document(score, pictures):
    paths = [str(pictures[i % 2]) for i in range(5)]
    done = score("--reward", "beauty", "--json", *paths)
    assert done.exit_code == 1
    assert done.stderr.count("error: ") == 1
    listed = json.loads(done.stdout)
    assert [entry["image"] for entry in listed] == paths
    assert {entry["error"]["code"] for entry in listed} == {"UnknownReward"}
    plain = score("--reward", "beauty", *paths)
    assert (plain.exit_code, plain.stdout, plain.stderr.count("error: ")) == (1, "", 1)


def test_a_damaged_record_of_a_stack_does_not_concern_who_names_the_service(
    score, pictures, tmp_path, monkeypatch
):
    monkeypatch.delenv("SALON_STATE_DIR", raising=False)
    (tmp_path / ".salon").mkdir(mode=0o700)
    (tmp_path / ".salon" / "stack.json").write_text("{")
    assert score(str(pictures[0])).exit_code == 0


def test_metadata_that_are_nested_too_deeply_are_said(score, pictures):
    with pytest.raises(InvalidRequest, match=r"--metadata is not JSON .*recursion"):
        score("--metadata", "[" * 5000, str(pictures[0]))


def test_the_default_address_is_asked_only_where_no_other_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("SALON_REWARD_TARGET", raising=False)
    state = tmp_path / "state"
    default, named = "127.0.0.1:50051", {"mine": "gpu:1"}
    assert known_targets(Settings(state_dir=state)) == {"": default}
    assert known_targets(Settings(state_dir=state, reward_targets=named)) == named
    both = Settings(state_dir=state, reward_targets=named, reward_target=default)
    assert known_targets(both) == {"": default, **named}


def test_a_reward_that_the_stack_does_not_serve_is_not_asked_of_another_service(salon, pictures):
    failed = salon("score", "--reward", "aesthetc", pictures[0])
    words = ("did you mean aesthetic?", "--target", "SALON_REWARD_TARGETS")
    assert_one_line_error(failed, "'aesthetc'", *words)
    salon.environment["SALON_REWARD_TARGETS"] = '{"mine": "127.0.0.1:1"}'
    try:
        assert "127.0.0.1:1:" in salon("score", "--reward", "mine", pictures[0]).err
    finally:
        del salon.environment["SALON_REWARD_TARGETS"]


@pytest.mark.slow
def test_every_reward_there_is_can_be_served_at_once(tmp_path, pictures):
    command = Salon(REPOSITORY, services=len(salons_own()))
    command.environment |= {"SALON_STATE_DIR": str(tmp_path / "state"), "HF_HUB_OFFLINE": "1"}
    up = command("up", "--rewards", "all")
    assert up.returncode == 0, up.err
    given = ["--prompt", "a red three on a blue background", "--reference", str(pictures[1])]
    given += ["--metadata", json.dumps({"questions": ["Is it red?"], "answers": ["yes"]})]
    table = rows(command("score", "--reward", "all", str(pictures[0]), *given))
    assert command("down").returncode == 0
    assert table.keys() == catalogue.own().keys()
    unscored = {reward for reward, row in table.items() if row.startswith("—")}
    assert unscored == {"discriminator", "preference"}, "these score by instance"
