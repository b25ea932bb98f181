"""What a process writes to stderr once its logs are configured: JSON, whatever happens in it."""

import json
import subprocess
import sys

import pytest

HEAD = """
import threading, warnings
import structlog
from salon import logs
logs.configure("trainer", job="job-1")
"""


def lines(code):
    command = [sys.executable, "-P", "-c", HEAD + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, [json.loads(line) for line in done.stderr.splitlines()]


@pytest.mark.parametrize(
    ("code", "level", "words"),
    [
        ("structlog.get_logger().info('hello')", "info", "hello"),
        ("warnings.warn('hm')", "warning", "UserWarning: hm"),
        ("raise ValueError('x\\ny')", "critical", "uncaught exception"),
        ("threading.Thread(target=lambda: 1 / 0).start()", "critical", "uncaught exception"),
        ("threading.Thread(target=structlog.get_logger().error, args=['e']).start()", "error", "e"),
    ],
)
def test_each_line_is_an_object_with_the_fields_of_the_process(code, level, words):
    returncode, [line] = lines(code)
    assert (line["level"], line["service"], line["job"]) == (level, "trainer", "job-1")
    assert words in line["event"]
    assert returncode == ("raise" in code)
    if level == "critical":
        assert "Traceback (most recent call last)" in line["exception"]


def test_celery_does_not_tell_of_every_task():
    code = """
import logging
for name in ("celery.worker.strategy", "celery.app.trace"):
    logging.getLogger(name).info("Task received")
    logging.getLogger(name).error("Task raised")
"""
    assert [line["event"] for line in lines(code)[1]] == ["Task raised"] * 2
