"""The `salon` command as a user runs it: a process, its output and its exit code."""

import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import redis
import yaml
from PIL import Image

from salon.jobs.record import JobState
from salon.jobs.store import JobStore
from salon.queue.connection import RedisRefused, connect_now
from salon.redis_password import redis_folder
from salon.settings import Settings
from salon.stack import lifecycle as stack
from tests.fixtures.certificates import Authority
from tests.fixtures.command import assert_one_line_error
from tests.fixtures.redis import RedisServer, TlsProxy
from tests.fixtures.stack import wait_until

MODELS = Path(__file__).parents[3] / "models"
MAIN = "from salon.cli import main; main()"
SPEC = {
    "name": "tiny",
    "model": "nowhere/at-all",
    "prompts": ["one", "two"],
    "rewards": [{"name": "jpeg_compressibility"}],
    "iterations": 3,
    "algorithm": {"name": "ddpo"},
    "evaluation": {"prompts": ["six"], "samples": 4},
}


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    return path


def test_a_photo_is_scored(salon, jpeg_service, photo, tmp_path):
    path = tmp_path / "photo.png"
    picture = Image.open(photo)
    picture.save(path)
    reward = "jpeg_incompressibility"
    done = salon("score", str(path), "--reward", reward, "--target", jpeg_service.target)
    assert done.returncode == 0, done.err
    name, answered, score = done.out.split()
    assert (name, answered) == (str(path), reward)
    picture.save(tmp_path / "again.jpg", quality=95)
    assert float(score) == pytest.approx((tmp_path / "again.jpg").stat().st_size / 1000)


def test_what_is_no_image_is_an_error_and_the_rest_is_scored(salon, jpeg_service, photo, tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.open(photo).save(good)
    bad.write_bytes(good.read_bytes()[:500])
    done = salon("score", str(bad), str(good), "--target", jpeg_service.target)
    assert done.returncode == 1
    first, second = done.out.strip().splitlines()
    assert "ERROR_CODE_" in first
    assert float(second.split()[-1]) < 0


def test_a_file_that_is_not_there_is_named(salon):
    assert_one_line_error(salon("score", "nowhere.png"), "nowhere.png", "No such file")


def test_scoring_without_a_service_says_where_it_looked(salon, photo):
    assert_one_line_error(salon("score", str(photo)), f"127.0.0.1:{salon.reward_port}")


@pytest.mark.parametrize("command", [["jobs"], ["show", "x"], ["watch", "x"], ["cancel", "x"]])
def test_without_a_stack_the_way_to_start_one_is_named(salon, command):
    assert_one_line_error(salon(*command), f"127.0.0.1:{salon.redis_port}", "salon up")


def test_submitting_without_a_stack_names_the_way_to_start_one(salon, spec):
    assert_one_line_error(salon("submit", str(spec)), "salon up")


def test_a_spec_is_checked_before_anything_else(salon, spec):
    assert_one_line_error(salon("submit", str(spec), "sead=1"), "sead: unknown key", "seed")
    assert_one_line_error(salon("run", str(spec), "iterations=x"), "iterations", "'x'")
    unserved = salon("run", str(spec), "eval_rewards=[beauty]")
    assert_one_line_error(unserved, "no reward beauty", "SALON_REWARD_TARGETS")
    unfit = salon("run", str(spec), "eval_rewards=[vqa_satisfaction]")
    assert_one_line_error(unfit, "vqa_satisfaction needs metadata", "take it out")
    salon.environment |= {"HF_TOKEN": "", "HF_HOME": str(salon.folder)}
    assert_one_line_error(salon("run", str(spec), "push_to_hub=me/it"), "HF_TOKEN")
    nowhere = salon("run", str(spec), "model=/nowhere")
    assert_one_line_error(nowhere, "model: there is no folder /nowhere")
    assert salon.processes() == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rewards", "beauty,l2"], ["no reward beauty", "jpeg_compressibility", "l2"]),
        (["--rewards", "l2,aesthetic"], ["aesthetic needs models/tiny-clip-digits"]),
    ],
)
def test_what_cannot_be_served_is_named_and_nothing_is_started(salon, arguments, words):
    assert_one_line_error(salon("up", *arguments), *words)
    assert salon.processes() == []


def test_a_token_and_its_line_for_the_service(salon, tmp_path):
    file = tmp_path / "tokens"
    made = salon("token", "trainer-1", str(file))
    digest = hashlib.sha256(made.out.strip().encode()).hexdigest()
    assert file.read_text() == f"sha256:{digest} trainer-1\n"
    assert_one_line_error(salon("token", "two words", str(file)), "'two words'")


def test_a_setting_that_cannot_be_used_is_named(salon):
    salon.environment["SALON_LEASE_SECONDS"] = "soon"
    assert_one_line_error(salon("jobs"), "SALON_LEASE_SECONDS", "'soon'")


@pytest.mark.parametrize("port", ["redis_port", "reward_port"])
def test_a_port_in_use_is_named_and_nothing_is_started(salon, port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", getattr(salon, port)))
        taken.listen()
        failed = salon("up")
        assert_one_line_error(failed, f"127.0.0.1:{getattr(salon, port)} is in use")
    assert salon.processes() == []


def test_the_stack_goes_up_and_down_and_keeps_its_jobs(salon, spec):
    for name in ("salon", "services", "workers", "trainer", "celery", "redis", "logging"):
        (salon.folder / f"{name}.py").write_text(f"raise SystemExit('the user’s {name}.py ran')")
    up = salon("up")
    assert up.returncode == 0, up.err
    assert {"redis", "jpeg", "scoring", "training"} <= set(up.out.split())
    assert f"jpeg_incompressibility  127.0.0.1:{salon.reward_port}" in up.out
    assert_one_line_error(salon("up"), "runs already", "salon down")

    misspelt = salon("submit", str(spec), "eval_rewards=[jpeg_incompresibility]")
    assert_one_line_error(misspelt, "did you mean jpeg_incompressibility?")
    last = salon("submit", str(spec), "eval_rewards=[beauty]").out.splitlines()[-2:]
    assert last[0].startswith("submitted ")
    assert last[1].startswith("no worker scores beauty now (served: jpeg_compressibility, jpeg_in")
    command = "python -P -m workers -Q score.beauty"
    assert last[1].endswith(f"""SALON_REWARD_TARGETS='{{"beauty": "HOST:PORT"}}' {command}""")
    submitted = salon("submit", str(spec), "--watch")  # its model is nowhere
    assert submitted.returncode == 1
    assert "nowhere/at-all" in submitted.err
    job = submitted.out.split("submitted ")[1].split()[0]
    assert "prompts: 2 prompts, e.g. one" in submitted.out
    assert "checkpoint_every" not in submitted.out
    assert job in salon("jobs").out
    shown = salon("show", job[-6:]).out
    assert "nowhere/at-all" in shown and f"folder  runs/{job}" in shown
    assert "checkpoint_every" not in shown
    assert "checkpoint_every: 10" in salon("show", job, "--spec").out
    assert salon("logs", job, "--follow").out == salon("logs", job).out
    assert "attempt starts" in salon("logs", job).out
    assert f"{job} is failed already" in salon("cancel", job).out
    assert_one_line_error(salon("show", "nope"), "'nope'")

    status = salon("status")
    assert status.returncode == 0, status.out
    assert f"redis://:***@127.0.0.1:{salon.redis_port}/0 answers" in status.out
    assert f"jpeg_compressibility    127.0.0.1:{salon.reward_port}  healthy" in status.out

    down = salon("down")
    assert down.out.startswith("stopped")
    assert salon.processes() == []
    assert salon("down").out.strip() == "no stack was running"

    state = salon.folder / ".salon"
    for path in (state, *state.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    for name in ("redis", "jpeg", "scoring", "training"):
        lines = (state / "logs" / f"{name}.log").read_text().splitlines()
        assert lines and all(json.loads(line)["event"] for line in lines)
    assert stat.S_IMODE((salon.folder / "runs").stat().st_mode) == 0o700
    assert salon("up").returncode == 0
    assert job in salon("jobs").out


@pytest.fixture
def foreign_redis(tmp_path):
    """One that is reached by TLS, with a certificate, from an authority of its own."""
    folder = tmp_path / "redis"
    folder.mkdir()
    authority = Authority(folder)
    server = RedisServer(folder, password="s3cret")
    proxy = TlsProxy(authority, server.port)
    certificate, key = authority.issue("salon")
    server.tls_url = (
        f"rediss://:s3cret@127.0.0.1:{proxy.port}/0?ssl_ca_certs={authority.file}"
        f"&ssl_certfile={certificate}&ssl_keyfile={key}"
    )
    yield server
    proxy.stop()
    server.stop()


def test_a_redis_that_runs_is_used_and_left_alone(salon, foreign_redis):
    salon.environment["SALON_REDIS_URL"] = foreign_redis.tls_url
    up = salon("up")
    assert up.returncode == 0, up.err
    assert "redis at rediss://:***@127.0.0.1" in up.out
    state = salon.folder / ".salon"
    children = [
        child["name"] for child in json.loads((state / "stack.json").read_text())["children"]
    ]
    assert children == [
        "jpeg",
        "scoring",
        "training",
    ]  # both workers answer: `up` has waited for it
    assert "s3cret" not in up.out
    assert not any("s3cret" in part for command in salon.commands() for part in command)
    for file in state.rglob("*"):
        assert file.is_dir() or "s3cret" not in file.read_text(), file
    assert salon("jobs").returncode == 0
    assert salon("down").out.strip() == "stopped"
    assert salon.processes() == []
    assert connect_now(foreign_redis.url).ping()


def test_a_redis_that_wants_another_password_is_not_used(salon, foreign_redis):
    salon.environment["SALON_REDIS_URL"] = f"redis://:wr0ng@127.0.0.1:{foreign_redis.port}/0"
    failed = salon("up")
    assert_one_line_error(
        failed, f":***@127.0.0.1:{foreign_redis.port}", "does not take the password"
    )
    assert salon.processes() == []


def test_a_redis_at_the_default_address_that_nobody_named_is_not_used(own_redis):
    unnamed = Settings.model_construct(_fields_set=set(), redis_url=own_redis.url)
    with pytest.raises(RedisRefused, match=r"not this stack's .* set SALON_REDIS_URL to use it"):
        stack.up(unnamed)


def test_of_two_stacks_that_start_at_once_one_does(salon):
    both = [salon.start("up"), salon.start("up")]
    ended = [(*process.communicate(timeout=120), process.returncode) for process in both]
    assert sorted(code for _, _, code in ended) == [0, 1]
    [refused] = [err for _, err, code in ended if code == 1]
    assert "a stack runs already" in refused or "is in use" in refused
    assert salon("down").out.strip() == "stopped"
    wait_until(lambda: salon.processes() == [], "every process is gone", 30)


def test_what_a_killed_supervisor_leaves_is_cleaned_up(salon):
    assert salon("up").returncode == 0
    shared = Path(
        json.loads((salon.folder / ".salon" / "stack.json").read_text())["own_shared_dir"]
    )
    assert stat.S_IMODE(shared.stat().st_mode) == 0o700
    supervisor = next(p for p in salon.processes() if "salon.stack.lifecycle" in p.cmdline())
    supervisor.kill()
    wait_until(lambda: not supervisor.is_running(), "the supervisor is gone")
    assert_one_line_error(salon("up"), "runs already")
    assert salon("down").out.strip() == "stopped"
    assert salon.processes() == []
    assert not shared.exists()


def test_a_redis_whose_data_are_damaged_is_named_with_what_it_says(salon):
    redis_folder(salon.folder / ".salon")
    (salon.folder / ".salon" / "redis" / "appendonly.aof").write_text("no log of Redis\n")
    assert_one_line_error(salon("up"), "redis did not start", "redis.log", "redis-check-aof")
    assert salon.processes() == []


@pytest.mark.parametrize("part", ["salon.stack.lifecycle", "services", "trainer"])
def test_ctrl_c_leaves_no_process_and_no_traceback(salon, spec, part):
    """While the stack starts, while it is waited for, and while the job runs, for hours if let."""
    running = salon.start("run", lasting(spec))
    wait_until(lambda: any(part in command for command in salon.commands()), f"{part} runs", 180)
    os.killpg(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 130
    assert out.strip().splitlines()[-1].startswith("stopped by the user")
    assert err == ""
    wait_until(lambda: salon.processes() == [], "every process is gone", 30)


def lasting(spec):
    job = SPEC | {"model": str(MODELS / "tiny-sd-digits"), "iterations": 100_000}
    spec.write_text(yaml.safe_dump(job))
    return str(spec)


def left_by(salon):
    """The jobs in the data of a stack that is down: what the next one would find."""
    wait_until(lambda: salon.processes() == [], "every process is gone", 120)
    server = RedisServer(salon.folder / ".salon" / "redis")
    try:
        return JobStore(redis.Redis.from_url(server.url)).newest()
    finally:
        server.stop()


def test_a_run_that_is_killed_leaves_no_process_and_no_job(salon, spec):
    running = salon.start("run", lasting(spec))
    wait_until(lambda: any("trainer" in c for c in salon.commands()), "it trains", 180)
    running.kill()
    running.communicate()
    [job] = left_by(salon)
    assert job.state is JobState.CANCELLED


def test_a_run_that_nobody_reads_ends_with_its_job_cancelled(salon, spec):
    running = salon.start("run", lasting(spec))
    for line in running.stdout:
        if line.startswith("submitted "):
            break
    running.stdout.close()
    assert running.wait(120) == 141
    assert running.stderr.read().startswith("nobody reads on: the job is cancelled")
    running.stderr.close()
    [job] = left_by(salon)
    assert job.state is JobState.CANCELLED


def test_a_hangup_that_is_ignored_at_the_start_ends_nothing(salon, spec):
    """As nohup starts it; the job's model is nowhere, so that it ends by itself."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        running = salon.start("run", str(spec))
    finally:
        signal.signal(signal.SIGHUP, old)
    wait_until(lambda: any("services" in c for c in salon.commands()), "the stack starts", 60)
    running.send_signal(signal.SIGHUP)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 1
    assert "nowhere/at-all" in err
    assert "stopped by the user" not in out
    assert salon.processes() == []


def test_ctrl_c_while_the_command_is_imported_is_no_traceback(salon):
    code = """
import sys
import salon.cli

class Interrupt:
    def find_spec(name, *_):
        if name == "salon.cli.app":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt)
salon.cli.main()
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_version(salon):
    assert salon("--version").out == f"salon {version('salon')}\n"


@pytest.mark.parametrize(("words", "completed"), [("salon sta", ["status"]), ("salon show ti", [])])
def test_the_shell_can_complete_commands_and_is_silent_without_a_stack(salon, words, completed):
    salon.environment |= {"_SALON_COMPLETE": "complete_bash", "COMP_WORDS": words}
    salon.environment["COMP_CWORD"] = str(len(words.split()) - 1)
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'salon'\n" + MAIN]
    done = subprocess.run(
        command, env=salon.environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.stderr) == (completed, "")


def test_without_a_stack_status_says_so_and_fails(salon):
    told = salon("status")
    assert told.returncode == 1
    assert "no local stack runs" in told.out
    status = salon("status", "--json")
    assert status.returncode == 1
    found = json.loads(status.out)
    assert found["stack"] is None
    assert f"127.0.0.1:{salon.redis_port}" in found["redis"]["error"]
    assert [reward["healthy"] for reward in found["rewards"]] == [False]


def test_running_a_job_beside_a_stack_leaves_that_stack_alone(salon, spec):
    assert salon("up").returncode == 0
    assert_one_line_error(salon("run", str(spec)), "runs already", "salon down")
    assert salon("jobs").returncode == 0


def test_serving_in_the_foreground_until_told_to_stop(salon, photo):
    serving = salon.start("serve", "jpeg", "--port", str(salon.reward_port))
    wait_until(lambda: salon("score", str(photo)).returncode == 0, "it scores")
    os.killpg(serving.pid, signal.SIGTERM)
    serving.communicate(timeout=30)
    assert serving.returncode == 0


def test_the_help_of_serve_has_the_options_of_the_service(salon):
    done = salon("serve", "--help")
    assert done.returncode == 0
    assert "Usage: salon serve " in done.out
    assert "--max-batch" in done.out
    failed = salon("serve", "jpeg", "--prot", "1")
    assert failed.returncode == 2
    assert "Usage: salon serve " in failed.err and "--port" in failed.err


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost", "redis://localhost:x/0"])
def test_a_url_that_is_none_is_named(salon, url):
    salon.environment["SALON_REDIS_URL"] = url
    assert_one_line_error(salon("jobs"), "SALON_REDIS_URL", url)


def test_a_state_folder_that_cannot_be_is_named(salon):
    (salon.folder / "file").write_text("")
    salon.environment["SALON_STATE_DIR"] = str(salon.folder / "file")
    assert_one_line_error(salon("up"), "file")
