"""Where a gRPC target leads: to this host, or through a proxy."""

import ipaddress
import os
import re
import socket
from urllib.parse import urlsplit

# In the order in which gRPC looks; it knows neither capitals nor all_proxy.
PROXIES, EXCEPTIONS = ("grpc_proxy", "https_proxy", "http_proxy"), ("no_grpc_proxy", "no_proxy")
_LOOPBACK_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")


def is_local(target: str) -> bool:
    """Whether a gRPC target is certainly on this host: a loopback address or a Unix socket."""
    found = addresses(target)
    return found is None or all(_is_loopback(host) for host, _ in found)


def is_this_host(target: str) -> bool:
    """Whether a target is this host by any of its names and addresses: no proxy leads there."""
    found = addresses(target)
    return found is None or all(
        _is_loopback(host) or host in _LOOPBACK_NAMES or _is_own(host) for host, _ in found
    )


def through_proxy(target: str) -> str:
    """A remark for errors: which proxy gRPC asks for `target`; empty where it asks none."""
    name = next((name for name in PROXIES if os.environ.get(name)), None)
    if name is None or is_this_host(target):
        return ""
    exceptions = next((value for name in EXCEPTIONS if (value := os.environ.get(name))), "")
    hosts = [host for host, _ in addresses(target) or []]
    if any(_is_exempt(host, entry.strip()) for host in hosts for entry in exceptions.split(",")):
        return ""
    proxy = urlsplit(os.environ[name])
    shown = proxy._replace(netloc=proxy.netloc.rpartition("@")[2]).geturl()
    return f" (through the proxy {shown} of {name}; no_proxy lists hosts that need none)"


def _is_exempt(host: str, entry: str) -> bool:
    """As gRPC has it: an entry is the end of a name, or a network."""
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return bool(entry) and host.lower().endswith(entry.lower())


def addresses(target: str) -> list[tuple[str, int | None]] | None:
    """Each host of a gRPC target with its port, None where it has none; None for a Unix socket."""
    scheme, separator, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return None
    if separator and scheme in ("dns", "ipv4", "ipv6", "passthrough"):
        target = rest.removeprefix("//").rpartition("/")[2]
    return [_host_and_port(address) for address in target.split(",")]


def _host_and_port(address: str) -> tuple[str, int | None]:
    if address.startswith("["):
        host, _, rest = address[1:].partition("]")
    elif address.count(":") == 1:
        host, rest = address.partition(":")[0], address[address.index(":") :]
    else:  # two or more colons without brackets: an IPv6 address without a port
        return address, None
    port = rest.removeprefix(":")
    return host, int(port) if re.fullmatch(r"[0-9]{1,5}", port) and int(port) < 65536 else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_own(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower() == socket.gethostname().lower()
    if address.is_unspecified:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:  # the kernel gives a socket no other address
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True
