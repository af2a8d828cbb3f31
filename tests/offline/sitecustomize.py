"""On PYTHONPATH of every notebook under test: a connection that leaves this machine is an error."""

import ipaddress
import socket

_connect, _lookup = socket.socket.connect, socket.getaddrinfo


def _local(host) -> bool:
    try:
        return host in ("localhost", "", None) or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and not _local(address[0]):
        raise OSError(f"the default path must not use the network, but something connects to {address}")
    return _connect(self, address)


def getaddrinfo(host, *args, **kwargs):
    if not _local(host):
        raise OSError(f"the default path must not use the network, but something looks up {host!r}")
    return _lookup(host, *args, **kwargs)


socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
