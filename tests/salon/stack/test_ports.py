"""Ports of this host that are taken, and by whom."""

import os
import socket
import subprocess
import sys

import psutil
import pytest

from salon.stack.ports import why_taken
from tests.fixtures.service import free_port

ME = f"{psutil.Process().name()} (pid {os.getpid()})"


def test_a_free_port_is_not_taken():
    assert why_taken("127.0.0.1", free_port()) == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_who_listens_is_named(host):
    code = f"import socket; s = socket.create_server(({host!r}, 0)); "
    code += "print(s.getsockname()[1], flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        port = int(process.stdout.readline())
        said = why_taken("127.0.0.1", port)
        process.communicate(b"\n")
    assert said.startswith("is in use by ")
    assert said.endswith(f"(pid {process.pid}): stop what listens there")


def test_a_connection_that_has_it_by_chance_is_told_from_a_server():
    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.create_connection(server.getsockname()) as client:
        said = why_taken("127.0.0.1", client.getsockname()[1])
    assert said.startswith(f"is in use by {ME} for a connection")
    assert said.endswith("try again soon")


def test_without_the_right_to_ask_it_is_in_use_all_the_same(monkeypatch):
    def denied(_):
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", denied)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert why_taken("127.0.0.1", port) == "is in use: stop what listens there"


def test_another_reason_is_said():
    # An address of nobody's here, as another host's would be.
    assert why_taken("192.0.2.1", 50051).startswith("cannot be used (Cannot assign")
