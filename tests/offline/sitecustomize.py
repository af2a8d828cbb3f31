"""On PYTHONPATH of every notebook under test: a connection that leaves this machine is an error,
and so is too much memory.
"""

import ipaddress
import os
import socket
import sys
import threading
import time

_connect, _lookup = socket.socket.connect, socket.getaddrinfo


def _local(host) -> bool:
    try:
        return host in ("localhost", "", None) or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and not _local(address[0]):
        raise OSError(
            f"the default path must not use the network, but something connects to {address}"
        )
    return _connect(self, address)


def getaddrinfo(host, *args, **kwargs):
    if not _local(host):
        raise OSError(f"the default path must not use the network, but something looks up {host!r}")
    return _lookup(host, *args, **kwargs)


socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo


# --- memory: Binder stops what takes 2 GB; here a kernel ends itself a little earlier -------------
# Counted is what a limit cannot take back. Weights read from their file are pages of that file,
# which the system drops and reads again when memory is short; how many of them are resident at a
# moment is left to it.

LIMIT_MB = float(os.environ.get("TML_MEMORY_LIMIT_MB", 1900))


def _held_mb() -> float:
    with open("/proc/self/statm") as file:
        _, resident, of_files = map(int, file.read().split()[:3])
    return (resident - of_files) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _watch() -> None:
    while (found := _held_mb()) <= LIMIT_MB:
        time.sleep(0.05)
    sys.stderr.write(f"the kernel holds {found:.0f} MB and may have {LIMIT_MB:.0f}\n")
    sys.stderr.flush()
    os._exit(137)


if any("ipykernel_launcher" in word for word in sys.orig_argv) and os.path.exists(
    "/proc/self/statm"
):
    threading.Thread(target=_watch, daemon=True).start()
