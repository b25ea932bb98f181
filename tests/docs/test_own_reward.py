"""What docs/own-reward.md shows works as shown: its rewards are served and scored with."""

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from salon import RewardClient
from salon.queue.broker import score_queue
from salon.reward.v1 import reward_pb2
from salon.serving import catalogue
from salon.settings import load_settings
from salon.stack.programs import programs
from services.server.reward_modules import choose_rewards
from tests.fixtures.service import REPOSITORY
from tests.salon.files import noise

PAGE = (REPOSITORY / "docs" / "own-reward.md").read_text(encoding="utf-8")
SHARPNESS, CLIENT, SHARP_ENOUGH, LOCAL_OPTIONS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
[ENTRY_POINT] = re.findall(r'-points."salon.rewards"]\n(.*?)```', PAGE, re.DOTALL)
SERVE, UP, TRAIN, SERVE_WITH_OPTIONS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path):
    """A folder with the page's two modules."""
    for name, source in (("sharpness", SHARPNESS), ("sharp_enough", SHARP_ENOUGH)):
        assert f"`{name}.py`" in PAGE
        (tmp_path / f"{name}.py").write_text(source)
    return tmp_path


@pytest.fixture
def serve(start_service, folder):
    """Run one of the page's commands, but on a free port."""

    def start(command):
        python, safe, dash_m, services, module, port, _, *flags = shlex.split(command)
        assert (python, safe, dash_m, services) == ("python", "-P", "-m", "services")
        assert port == "--port"
        return start_service(module, *flags, folder=folder)

    return start


def variance(image):
    laplacian = ndimage.laplace(image.astype(float).mean(axis=2))
    return np.var(laplacian[1:-1, 1:-1])


def test_the_reward_of_the_page_is_served_and_scored_with(serve, folder):
    service = serve(SERVE)
    assert len(SHARPNESS.splitlines()) <= 30
    done = subprocess.run(
        [sys.executable, "-c", CLIENT.replace("127.0.0.1:50152", service.target)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [float(score) for score, _, _ in lines] == pytest.approx([*map(variance, images)])
    assert {(error, version) for _, error, version in lines} == {("None", "1")}


def test_the_reward_with_options_gives_details_and_refuses_what_it_cannot_judge(serve):
    service = serve(SERVE_WITH_OPTIONS)
    images = [noise(40, 40), np.full((40, 40, 3), 9, np.uint8), noise(2, 40)]
    with RewardClient(service.target) as client:
        sharp, flat, thin = client.score(images, reward="sharp_enough")
    assert (sharp.score, flat.score, thin.score) == (1, 0, None)
    assert sharp.version == "1+threshold-250"
    assert sharp.details["variance"] == pytest.approx(variance(images[0]))
    assert thin.error.code == reward_pb2.ERROR_CODE_INVALID_SAMPLE
    assert str(thin.error) == "(2, 40) pixels have no Laplacian: send 3 x 3 or more"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "threshold=-1"], "option threshold of sharp_enough: "),
        (["--set", "sharpness=1"], "sharp_enough has no option 'sharpness'; known: threshold"),
        (["--model", "a"], "sharp_enough has no option 'model'; known: threshold"),
    ],
)
def test_options_that_cannot_be_used_are_refused_before_anything_starts(folder, options, words):
    command = [sys.executable, "-m", "services", "sharp_enough", "--port", "0", *options]
    done = subprocess.run(
        command,
        cwd=folder,
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(words)
    assert done.stderr.count("\n") == 1


def test_the_stack_of_the_page_scores_with_the_reward(monkeypatch):
    setting, *command = shlex.split(UP)
    assert command == ["salon", "up"]
    monkeypatch.setenv(*setting.split("=", 1))
    commands = [" ".join(program.command) for program in programs(load_settings())]
    assert any(f"-Q {score_queue('sharpness')}" in command for command in commands)


def test_the_queue_of_the_page_is_that_of_the_reward():
    assert f"-Q {score_queue('sharpness')}\n" in TRAIN


def test_the_package_of_the_page_registers_it(installed):
    name, place = ENTRY_POINT.replace('"', "").strip().split(" = ")
    module = place.partition(":")[0].replace(".", "/")
    attribute = '    name = "sharp_enough"\n'
    assert attribute in SHARP_ENOUGH
    enough = SHARP_ENOUGH.replace(attribute, attribute + LOCAL_OPTIONS)
    files = {f"{module}.py": SHARPNESS, "judges/enough.py": enough}
    installed(files, **{name: place, "sharp_enough": "judges.enough:SharpEnough"})
    assert [choice.reward.name for choice in choose_rewards(name)] == ["sharpness"]
    assert f"--rewards {name},jpeg_compressibility`" in PAGE
    assert catalogue.known()["sharp_enough"].local_options == ("threshold=250",)
