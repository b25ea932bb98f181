"""Named prompt sets, against the counts of their sources, and what else prompts may name."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from salon.errors import InvalidRequest
from trainer.spec.file import load_spec
from trainer.spec.job_spec import read_record
from trainer.spec.prompts.sets import prompt_set, set_names
from trainer.spec.prompts.sources import resolve_prompts

FOLDER = Path(__file__).parents[4] / "trainer" / "spec" / "prompts"
SIZES = {
    "animal-activities": 135,
    "animals": 45,
    "everyday-objects": 50,
    "imagenet-animals": 398,
    "unseen-activities": 12,
    "unseen-animals": 38,
}
SPEC = {
    "name": "tiny",
    "model": "some/hub-id",
    "prompts": "animals",
    "rewards": [{"name": "jpeg_compressibility"}],
    "iterations": 1,
    "algorithm": {"name": "ddpo"},
    "evaluation": {"prompts": ["a robot"]},
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def submit(here):
    def load(prompts):
        Path("job.yaml").write_text(yaml.safe_dump(SPEC | {"prompts": prompts}))
        return load_spec(Path("job.yaml"), []).model_dump(mode="json")["prompts"]

    return load


def test_the_sets_have_the_sizes_of_their_sources():
    assert {name: len(prompt_set(name)) for name in set_names()} == SIZES


@pytest.mark.parametrize("name", SIZES)
def test_a_set_says_its_source_and_repeats_nothing(name):
    first, *_ = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ")
    assert "Black et al. 2023" in (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    prompts = prompt_set(name)
    assert len(set(prompts)) == len(prompts)
    assert all(prompt == " ".join(prompt.split()) for prompt in prompts)


def test_the_ends_of_the_lists_are_those_of_their_sources():
    animals, imagenet = prompt_set("animals"), prompt_set("imagenet-animals")
    assert (animals[0], animals[-1]) == ("cat", "kangaroo")
    assert imagenet[0] == "tench, Tinca tinca"
    assert imagenet[151] == "Chihuahua"  # ImageNet's class 151, the first of its dogs
    assert imagenet[-1] == "puffer, pufferfish, blowfish, globefish"


def test_every_animal_does_every_activity_under_the_right_article():
    prompts = prompt_set("animal-activities")
    assert {"a cat riding a bike", "an ant washing the dishes", "a kangaroo playing chess"} < {
        *prompts
    }
    subjects = {prompt.split()[1] for prompt in prompts}
    assert subjects == set(prompt_set("animals"))
    assert {prompt.split()[0] for prompt in prompts if prompt.split()[1] == "ant"} == {"an"}
    activities = {prompt.split(maxsplit=2)[2] for prompt in prompts}
    assert activities == {"washing the dishes", "riding a bike", "playing chess"}


@pytest.mark.parametrize(
    ("trained", "unseen"),
    [
        ("animals", "unseen-animals"),
        ("animals", "everyday-objects"),
        ("imagenet-animals", "everyday-objects"),
        ("animal-activities", "unseen-activities"),
    ],
)
def test_what_is_unseen_shares_nothing_with_training(trained, unseen):
    synonyms = {
        synonym.strip().lower() for prompt in prompt_set(trained) for synonym in prompt.split(",")
    }
    assert not synonyms & {prompt.lower() for prompt in prompt_set(unseen)}


def test_a_job_may_name_a_set(submit):
    assert submit("animals") == prompt_set("animals")


def test_a_function_gives_prompts_where_the_job_is_submitted(submit, here):
    (here / "own_prompts.py").write_text("def dogs():\n    return [f'dog {n}' for n in range(3)]\n")
    path = list(sys.path)
    assert submit("own_prompts:dogs") == ["dog 0", "dog 1", "dog 2"]
    assert sys.path == path


def test_a_file_and_a_set_of_one_name_are_not_told_apart_by_the_folder(submit, here):
    (here / "animals").write_text("a unicorn\n")
    with pytest.raises(InvalidRequest, match=r"a prompt set and a file in .*write \./animals"):
        submit("animals")
    assert submit("./animals") == ["a unicorn"]


def test_a_folder_is_not_taken_for_a_file(here):
    (here / "animals").mkdir()
    assert resolve_prompts("animals", [here]) == prompt_set("animals")


def test_a_file_may_be_of_windows(here):
    (here / "own.txt").write_bytes("# mine\r\na café\r\n".encode("utf-8-sig"))
    assert resolve_prompts("own.txt", [here]) == ["a café"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\v", "\f", "\x1c", "\r"])
def test_a_line_ends_where_the_file_says_and_nowhere_else(here, separator):
    text = f"a cat{separator}on a mat\r\n\r\na dog\n"
    (here / "own.txt").write_bytes(text.encode())
    assert resolve_prompts("own.txt", [here]) == [f"a cat{separator}on a mat", "a dog"]


def test_the_mark_of_windows_is_no_part_of_a_prompt_where_files_were_joined(here):
    (here / "own.txt").write_bytes("\ufeffa cat\n\ufeff# more\n\ufeffa dog\n".encode())
    assert resolve_prompts("own.txt", [here]) == ["a cat", "a dog"]


def test_a_module_of_the_users_takes_nobodys_place(here):
    (here / "json.py").write_text("def prompts():\n    return ['of the folder']\n")
    (here / "mine.py").write_text("import json\ndef prompts():\n    return [json.dumps('a')]\n")
    assert resolve_prompts("mine:prompts", [here]) == ['"a"']
    with pytest.raises(InvalidRequest, match=r"has no function 'prompts', .*json\.py is not it"):
        resolve_prompts("json:prompts", [here])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("animal", "no prompt file 'animal' .*no prompt set of this name; there are animal-act"),
        ("broken:prompts", r"cannot import 'broken' .*ZeroDivisionError"),
        ("nowhere:prompts", r"cannot import 'nowhere' .*ModuleNotFoundError"),
        ("odd:missing", "odd has no function 'missing'"),
        ("odd:number", r"odd:number must return a list of strings and rows; it returned 3"),
        ("odd:mixed", r"must return a list of strings and rows; it returned \['a', 1\]"),
        ("odd:failing", r"odd:failing raised KeyError: 'lost'"),
        ("latin.txt", r"latin.txt' is not UTF-8"),
        (".", r"no prompt file '\.'"),
    ],
)
def test_what_cannot_be_read_is_named(here, source, message):
    (here / "broken.py").write_text("1 / 0\n")
    (here / "odd.py").write_text(
        "def number():\n    return 3\n"
        "def mixed():\n    return ['a', 1]\n"
        "def failing():\n    return {}['lost']\n"
    )
    (here / "latin.txt").write_bytes("un café\n".encode("latin-1"))
    with pytest.raises(InvalidRequest, match=message):
        resolve_prompts(source, [here])


@pytest.mark.parametrize("prompts", ["animals", "os:getcwd", "/etc/hostname"])
def test_a_record_from_the_queue_names_nothing(prompts):
    with pytest.raises(ValueError, match=r"prompts\n.*valid list"):
        read_record(SPEC | {"prompts": prompts})


def test_prompts_are_found_without_torch():
    code = (
        "import sys; from trainer.spec.prompts.sources import resolve_prompts; "
        "print(len(resolve_prompts('animals', [])), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=FOLDER.parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["45", "False"]
