"""Who has a port of this host."""

import errno
import socket

import psutil


def why_taken(host: str, port: int) -> str:
    """Why no server can listen there, and what helps, for an error; empty if one can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return f"cannot be used ({error.strerror}): ask who runs this host"
        else:
            return ""
    return _whose(port)


def _whose(port: int) -> str:
    try:
        found = [each for each in psutil.net_connections("tcp") if each.laddr[1:] == (port,)]
    except psutil.Error:  # only root may ask, on some systems
        found = []
    # A connection beside its listener is the listener's.
    listening = [each for each in found if each.status == psutil.CONN_LISTEN]
    pids = dict.fromkeys(each.pid for each in listening or found if each.pid)
    who = f" by {', '.join(map(_process, pids))}" if pids else ""
    if found and not listening:
        return (
            f"is in use{who} for a connection, which is given any port that is free: try again soon"
        )
    return f"is in use{who}: stop what listens there"


def _process(pid: int) -> str:
    try:
        return f"{psutil.Process(pid).name()} (pid {pid})"
    except psutil.Error:
        return f"pid {pid}"
