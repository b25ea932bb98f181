"""What docs/serving.md says is so: flags, metrics, errors, and its commands, run in their order."""

import os
import re
import shlex
import subprocess
import sys
import time

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from salon import errors
from salon.client import RewardClient
from salon.reward.v1 import reward_pb2
from salon.security import Security
from salon.settings import Settings
from services.scoring.metrics import Metrics
from tests.fixtures.service import REPOSITORY, free_port, wait_until
from tests.salon.files import encoded, noise

PAGE = (REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8")
COMMAND = "from salon.cli import main; main()"  # what `salon` is
SHELL = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)


def section(title):
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_flags_on_the_page_are_those_of_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "services", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "300"},
    )
    flags = set(re.findall(r"(--[a-z][a-z-]+)", done.stdout)) - {"--help"}
    assert len(flags) > 20
    assert set(re.findall(r"`(--[a-z-]+)`", section("Flags"))) == flags
    own = [block for block in SHELL if "python -P -m services" in block]
    mentioned = set(re.findall(r"(?<![a-z-])(--[a-z-]+)", " ".join([*own, *prose()])))
    assert mentioned <= flags


def prose():
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))


def test_the_metrics_on_the_page_are_those_served():
    metrics = Metrics(["jpeg"])
    served = {
        family.name + "_total" * (family.type == "counter"): (family.type, labels_of(family))
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        if family.name.startswith("salon_")
    }
    rows = re.findall(r"\| `(salon_\w+)\{([\w,]+)\}` \| (\w+) \|", section("Metrics"))
    assert {name: (kind, set(labels.split(","))) for name, labels, kind in rows} == served
    assert set(re.findall(r"salon_inference_\w+", PAGE)) == set(served)


def labels_of(family):
    return set().union(*(sample.labels for sample in family.samples)) - {"le"}


def test_the_errors_on_the_page_are_all_that_there_are():
    rows = re.findall(r"\| ([A-Z_]+) \| (\w+) \|", section("When calls fail"))
    for status, reason in rows:
        assert getattr(errors, reason).grpc_code.name == status
    elsewhere = {"SalonError", "SampleError", "StackUnavailable"}
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.SalonError)
    }
    assert {reason for _, reason in rows} == classes - elsewhere
    codes = set(re.findall(r"\| `(ERROR_CODE_\w+)` \|", PAGE))
    assert codes == set(reward_pb2.ErrorCode.keys()) - {"ERROR_CODE_UNSPECIFIED"}


def test_the_variables_on_the_page_are_settings():
    for name in set(re.findall(r"SALON_([A-Z_]+)", PAGE)):
        assert name.lower() in Settings.model_fields


class Walkthrough:
    """The page's commands in a folder of their own, at free ports."""

    def __init__(self, folder):
        self.folder = folder
        self.ports = {number: str(free_port()) for number in ("50151", "50152", "9090")}

    def adapt(self, text):
        for number, port in self.ports.items():
            text = text.replace(number, port)
        return text

    def shell(self, start):
        """What the block that begins with `start` prints."""
        [block] = [block for block in SHELL if block.startswith(start)]
        python = shlex.quote(sys.executable)
        command = f"{python} -c {shlex.quote(COMMAND)} "
        block = re.sub(r"\bpython ", f"{python} ", self.adapt(block))
        block = re.sub(r"(?m)^( *)salon (?=score |token )", lambda found: found[1] + command, block)
        done = subprocess.run(
            ["bash", "-euc", block],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def serve(self):
        [block] = [block for block in SHELL if "--tls-cert" in block]
        words = shlex.split(self.adapt(block).replace("\\\n", " "))
        assert words[:4] == ["python", "-P", "-m", "services"]
        return words[4:]


@pytest.fixture
def walk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Walkthrough(tmp_path)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "service.log"


@pytest.fixture
def running(walk, log):
    """The service of the page, with its certificate and the token of a laptop."""
    walk.shell("openssl")
    token = walk.shell("salon token").strip()
    (walk.folder / "laptop.token").write_text(token)
    with log.open("wb") as errors_to:
        process = subprocess.Popen(
            [sys.executable, "-m", "services", *walk.serve()],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stderr=errors_to,
        )
    wait_until(lambda: b'"serving"' in log.read_bytes(), "serving")
    yield token
    process.kill()
    process.wait()


def describe(walk, token):
    security = Security(token, ca=walk.folder / "ca.pem")
    with RewardClient(f"localhost:{walk.ports['50151']}", security=security) as client:
        return client.describe().name


def test_the_walkthrough_of_tls_tokens_and_rotation(walk, running, log):
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", walk.adapt(code)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "pillow" in done.stdout, done.stderr
    (walk.folder / "photo.png").write_bytes(encoded(noise()))
    assert "jpeg_compressibility  -0." in walk.shell("SALON_REWARD_TOKEN")
    with pytest.raises(errors.Unauthenticated):
        describe(walk, "")

    [rotate] = re.findall(r"1\. `salon (.*?)`", PAGE)
    second = subprocess.run(
        [sys.executable, "-c", COMMAND, *rotate.split()],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    time.sleep(1.1)  # as the page says
    assert describe(walk, second) == describe(walk, running) == "jpeg_compressibility"
    assert '"caller": "laptop"' in log.read_text()
    assert '"caller": "laptop-2"' in log.read_text()
    walk.shell("sed -i")
    time.sleep(1.1)
    with pytest.raises(errors.Unauthenticated):
        describe(walk, running)
    assert describe(walk, second) == "jpeg_compressibility"
    for secret in (running, second):
        assert secret not in log.read_text()

    assert 'code="UNAUTHENTICATED",reward=""} 2.0' in walk.shell("curl")
