"""A user's folder with files named like Salon's modules and like libraries."""

import os
import subprocess
import sys
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
import yaml

from salon import RewardClient
from salon.errors import SalonError
from salon.own_modules import python
from tests.fixtures.service import REPOSITORY, free_port
from tests.fixtures.stack import wait_until

SALONS = ("salon", "services", "trainer", "workers", "tiny")
LIBRARIES = ("celery", "grpc", "kombu", "logging", "numpy", "redis", "structlog", "types", "yaml")
LATER_FOUND = "wave"  # of Python's own library, which nothing here has imported yet
RAISES = "raise SystemExit('the user’s ' + __name__ + ' ran')"
REWARD = """
from salon.serving import Reward

class Mine(Reward):
    name, description, version = "mine", "of the user's own", "1"

    def score(self, samples):
        return [0.0 for _ in samples]

def prompts():
    return ["one", "two"]
"""


@pytest.fixture
def folder(tmp_path):
    for name in (*SALONS, *LIBRARIES, LATER_FOUND):
        (tmp_path / f"{name}.py").write_text(RAISES)
    (tmp_path / "mine.py").write_text(REWARD)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "mine.py").write_text(REWARD)
    return tmp_path


def run(command, folder, **environment):
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command,
        cwd=folder,
        env=variables | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "command",
    [
        *(["services", "mine:None"], ["services", "package.mine:None"]),
        *(
            ["trainer", "--help"],
            ["workers", "--help"],
            ["salon.stack.lifecycle", "foreign", "0", "no-reward"],
        ),
    ],
    ids=" ".join,
)
def test_a_process_of_salons_finds_its_own_modules_first(folder, command):
    found = run(python(*command), folder, SALON_STATE_DIR=str(folder / "state"))
    assert "ran" not in found.stdout + found.stderr
    if command[0] == "services":
        assert f"module {command[1].partition(':')[0]} defines no complete None" in found.stderr
    elif command[0] == "salon.stack.lifecycle":
        assert "no reward no-reward" in (folder / "state" / "logs" / "stack.log").read_text()
    else:
        assert "Usage: python -m" in found.stdout


@pytest.mark.parametrize("module", ["services", "trainer", "workers"])
def test_so_does_one_that_is_typed_by_hand(folder, module):
    for name in (*SALONS, "types"):  # found before any of our code runs
        (folder / f"{name}.py").unlink()
    for name in ("socket", "signal", "typing"):
        (folder / f"{name}.py").write_text("raise SystemExit('the user’s ' + __name__ + ' ran')")
    found = run([sys.executable, "-m", module, "--help"], folder)
    assert f"Usage: python -m {module}" in found.stdout, found.stderr


# In a process that was begun otherwise, and for those that it starts.
LATER = """
import subprocess, sys
from salon.queue.broker import Settings, create_app
from salon.own_modules import come_last
come_last()
come_last()
import mine, trainer.spec.file, workers.attempt, tiny
create_app(Settings()).loader.import_from_cwd("wave")
command = [sys.executable, "-P", "-c", "import trainer.spec.file, salon.serving.reward, wave"]
subprocess.run(command, check=True)
"""


def test_the_working_folder_is_searched_last_also_by_celery(folder):
    done = run([sys.executable, "-P", "-c", LATER], folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", [".", ":", ":.", "{folder}", "{folder}/../{name}:/nowhere"])
def test_the_folder_in_pythonpath_is_not_handed_on(folder, path):
    for name in ("salon", *LIBRARIES):  # what this very interpreter needs before Salon's code runs
        (folder / f"{name}.py").unlink()
    path = path.format(folder=folder, name=folder.name)
    done = run([sys.executable, "-P", "-c", LATER], folder, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr


def nothing_of_the_users_ran(done):
    assert "the user’s" not in done.stdout + done.stderr, done.stdout + done.stderr


@pytest.fixture
def shadowed(folder):
    """A folder with a file for whatever Python and Salon may import; a function makes them."""

    def make(names):
        for name in names:
            # What is not installed here, or private to Python, may be looked for as an option.
            if PathFinder.find_spec(name) and not name.startswith("_"):
                (folder / f"{name}.py").write_text(RAISES)
        code = "import sys; print(*sys.modules)"
        for name in run([sys.executable, "-P", "-c", code], "/").stdout.split():
            (folder / f"{name}.py").unlink(missing_ok=True)  # Python itself begins with it
        (folder / "job.yaml").write_text("name: tiny\nsead: 1\nalgorithm: {name: ddpo}\n")
        return folder

    return make


@pytest.mark.parametrize(
    ("path", "command", "words"),
    [
        (".", ["submit", "job.yaml"], "sead: unknown key"),
        (".", ["status"], "no local stack runs"),
        (".", ["score", "no.png"], "cannot read 'no.png'"),
        ("{folder}:", ["--help"], "salon [OPTIONS] COMMAND"),
    ],
)
def test_the_command_finds_libraries_first_where_pythonpath_names_the_folder(
    shadowed, path, command, words
):
    folder = shadowed({*packages_distributions(), *sys.stdlib_module_names})
    # The one module that would be found there has a name that is chosen so that nobody uses it.
    (folder / "salon_command.py").unlink(missing_ok=True)
    script = str(Path(sys.executable).with_name("salon"))
    redis = "redis://127.0.0.1:1/0"
    path = path.format(folder=folder)
    done = run([script, *command], folder, PYTHONPATH=path, SALON_REDIS_URL=redis)
    nothing_of_the_users_ran(done)
    assert words in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["services", "trainer", "workers"])
def test_a_process_typed_by_hand_finds_libraries_first_there_too(shadowed, command):
    folder = shadowed(packages_distributions())
    for name in (*SALONS, "logging", "types", LATER_FOUND):  # Python itself looks for these there
        (folder / f"{name}.py").unlink(missing_ok=True)
    done = run([sys.executable, "-m", command, "--help"], folder, PYTHONPATH=".")
    nothing_of_the_users_ran(done)
    assert "Usage: python -m" in done.stdout


def test_the_package_imports_nothing_until_it_is_asked():
    code = """
import sys, salon
assert not {"grpc", "numpy", "redis"} & set(sys.modules)
assert set(salon.__all__) <= set(dir(salon))
from salon import *
import salon.client.reward_client
assert RewardClient is salon.RewardClient is salon.client.reward_client.RewardClient
assert issubclass(UnknownReward, salon.errors.SalonError)
assert not hasattr(salon, "nonsense")
"""
    done = run([sys.executable, "-P", "-c", code], "/")
    assert done.returncode == 0, done.stderr


def test_a_checkout_that_is_not_installed_is_handed_on():
    packages = [entry for entry in sys.path if entry.endswith("site-packages")]
    code = f"import os, sys; sys.path[:0] = ['']; sys.path += {packages!r}; "
    code += (
        "from salon import own_modules; own_modules.come_last(); print(os.environ['PYTHONPATH'])"
    )
    # Without `site`, which would know the installed one.
    done = run([sys.executable, "-I", "-S", "-c", code], REPOSITORY)
    assert done.stdout.strip() == str(REPOSITORY), done.stderr


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("redis", "{folder}/redis.py is not it: Salon's modules and those of libraries come first"),
        ("jpeg", "{folder}/jpeg.py is not it"),
        ("mine", "no complete Mineral, a subclass of salon.serving.Reward; it has Mine\n"),
    ],
)
def test_an_own_module_with_the_name_of_another_is_named(folder, module, words):
    (folder / "jpeg.py").write_text(REWARD)
    found = run(python("services", f"{module}:Mineral"), folder)
    assert found.returncode == 1
    assert words.format(folder=folder) in found.stderr


BRIGHTNESS = """
from salon.serving import Reward

class Brightness(Reward):
    name, description, version = "brightness", "mean gray level", "1"

    def score(self, samples):
        return [sample.image.mean() for sample in samples]
"""
JOB = {
    "name": "tiny",
    "model": str(REPOSITORY / "models" / "tiny-sd-digits"),
    "prompts": ["a red three on a blue background"],
    "rewards": [{"name": "brightness"}, {"name": "jpeg_compressibility"}],
    "iterations": 1,
    "algorithm": {
        "name": "ddpo",
        "sampling_steps": 2,
        "sample_batch_size": 8,
        "samples_per_iteration": 8,
    },
    "evaluation": {"prompts": ["a white six on a red background"], "samples": 2},
}


def test_a_stack_a_service_and_a_job_run_beside_packages_of_those_names(salon, installed):
    for name in SALONS[1:]:
        (salon.folder / name).mkdir()
        (salon.folder / name / "__init__.py").write_text(f"raise SystemExit('own {name} ran')")
    (salon.folder / "mine.py").write_text(REWARD)
    (salon.folder / "job.yaml").write_text(yaml.safe_dump(JOB))
    site = installed({"lights/judge.py": BRIGHTNESS}, brightness="lights.judge:Brightness")
    salon.environment["PYTHONPATH"] = str(site)

    up = salon("up", "--rewards", "jpeg_compressibility,brightness")
    assert up.returncode == 0, up.err
    assert f"brightness              127.0.0.1:{salon.reward_port + 1}" in up.out
    port = free_port()
    serving = salon.start("serve", "mine:Mine", "--port", str(port))
    try:
        image = np.zeros((1, 8, 8, 3), np.uint8)
        with RewardClient(f"127.0.0.1:{port}") as client:
            wait_until(lambda: scores(client, image, "mine"), "mine:Mine is served")
    finally:
        serving.terminate()
        serving.communicate()
    trained = salon("submit", "job.yaml", "--watch")
    assert trained.returncode == 0, trained.out + trained.err
    assert "brightness" in trained.out
    assert " ran" not in up.err + trained.out + trained.err


def scores(client, images, reward):
    try:
        [outcome] = client.score(images, reward=reward, deadline=2)
    except SalonError:
        return False
    return outcome.score == 0
