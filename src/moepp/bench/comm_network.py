"""A network inside one machine: each process in a network namespace of its own, on a switch, over links of limited
bandwidth and added latency. Linux, and only for who may make namespaces.

Nothing here has a name outside: a namespace and its devices live as long as the process that made them, so that none
are left behind however the benchmark ends.

The switch is a process, too. Without latency it holds a bridge and the ends of virtual Ethernet cables; with latency
each process has a TUN device, and the switch, a thread of Python, hands on packets when their time has come (the
kernel's own delay, ``netem``, is missing in many). The kernel's token bucket (``tc … tbf``) limits what enters a link,
in both directions of a cable, and on the sender's side of a TUN device.
"""

import ctypes
import os
import select
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import MoEPPError
from .comm_workers import Workers

DEVICE = "moepp"
"""The link's name in each process's namespace."""
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_SET_INTERFACE, _TUN, _NO_PACKET_INFO = 0x400454CA, 0x0001, 0x1000
_TUN_MTU = 9000  # bytes: few packets for a switch of Python
# What a link takes at once, above its bandwidth: a packet or two, or the bandwidth over so many seconds. A large bucket
# would let small messages pass as if there were no limit.
_BURST_PACKETS = {"cables": 3000, "packets": 9500}  # bytes
_BURST_S = 2e-4
_DESTINATION = slice(16, 20)  # of an IPv4 header


class NetworkUnavailable(MoEPPError, RuntimeError):
    """Namespaces or their devices cannot be made here; says why."""


@dataclass(frozen=True)
class Link:
    """What is between each process and the switch."""

    bandwidth_mbit: float | None
    """10⁶ bit/s in each direction, headers included; None: as fast as the machine copies."""
    latency_ms: float = 0.0
    """Added from one process to another, one way."""

    def __str__(self) -> str:
        rate = "no limit" if self.bandwidth_mbit is None else f"{self.bandwidth_mbit:g} Mbit/s"
        return rate + (f", {self.latency_ms:g} ms" if self.latency_ms else "")


def build(workers: Workers, ranks: int, latency_ms: float) -> None:
    """Puts each worker into a namespace and connects the first ``ranks``; the one after them is the switch.

    Raises:
        NetworkUnavailable: that is not permitted or not possible here.
    """
    if sys.platform != "linux":
        raise NetworkUnavailable(f"network namespaces are Linux's, and this is {sys.platform}")
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            raise NetworkUnavailable(f"the program {program!r} is not installed; it comes with iproute2")
    processes = workers.call(_leave)[:ranks]
    workers.call(_switch_packets if latency_ms else _switch_cables, processes, latency_ms, among=[ranks])
    workers.call(_join, among=range(ranks))


def shape(workers: Workers, ranks: int, link: Link) -> None:
    """Limits the links' bandwidth, or lifts the limit."""
    least = _BURST_PACKETS["packets" if link.latency_ms else "cables"]
    workers.call(_shape, [DEVICE], link.bandwidth_mbit, least, among=range(ranks))
    if not link.latency_ms:
        workers.call(_shape, [f"port{rank}" for rank in range(ranks)], link.bandwidth_mbit, least, among=[ranks])


def sent_bytes() -> int | None:
    """What this process's link has sent, headers included; None where there is none."""
    counters = Path("/proc/thread-self/net/dev")
    for line in counters.read_text().splitlines() if counters.is_file() else ():
        name, _, numbers = line.strip().partition(":")
        if name == DEVICE:
            return int(numbers.split()[8])
    return None


def _leave(_: int) -> int:
    """Moves the process into a new, empty namespace; its id."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NETWORK):
        raise NetworkUnavailable(f"a network namespace cannot be made: {os.strerror(ctypes.get_errno())}")
    _run("ip link set lo up")
    return os.getpid()


def _switch_cables(_: int, processes: Sequence[int], latency_ms: float) -> None:
    _run("ip link add switch type bridge")
    _run("ip link set switch up")
    for rank, process in enumerate(processes):
        _run(f"ip link add port{rank} type veth peer name {DEVICE} netns {process}")
        _run(f"ip link set port{rank} master switch up")


def _switch_packets(_: int, processes: Sequence[int], latency_ms: float) -> None:
    ends = [_tun(process) for process in processes]
    threading.Thread(target=_hand_on, args=(ends, latency_ms / 1e3), daemon=True).start()


def _tun(process: int) -> int:
    """The switch's end of a new device in another process's namespace."""
    from fcntl import ioctl  # which Windows has not

    with _namespace_of(process):
        try:
            end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            ioctl(end, _SET_INTERFACE, struct.pack("16sH22x", DEVICE.encode(), _TUN | _NO_PACKET_INFO))
        except OSError as error:
            raise NetworkUnavailable(f"/dev/net/tun makes no device: {error.strerror}") from error
        _run(f"ip link set {DEVICE} mtu {_TUN_MTU} txqueuelen 10000")
    return end


@contextmanager
def _namespace_of(process: int) -> Iterator[None]:
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as own, open(f"/proc/{process}/ns/net") as other:
        assert libc.setns(other.fileno(), _NEW_NETWORK) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert libc.setns(own.fileno(), _NEW_NETWORK) == 0, os.strerror(ctypes.get_errno())


def _hand_on(ends: Sequence[int], delay: float) -> None:
    """Gives each packet to the process it is addressed to, so many seconds after it came."""
    to = {_address(rank): end for rank, end in enumerate(ends)}
    waiting: deque[tuple[float, int, bytes]] = deque()
    while True:
        left = waiting[0][0] - time.monotonic() if waiting else None
        readable, _, _ = select.select(ends, [], [], None if left is None else max(left, 0.0))
        for end in readable:
            packet = os.read(end, 1 << 16)
            target = to.get(packet[_DESTINATION])
            if target is not None:
                waiting.append((time.monotonic() + delay, target, packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, target, packet = waiting.popleft()
            os.write(target, packet)


def _address(rank: int) -> bytes:
    return bytes((10, 77, 0, rank + 1))


def _join(rank: int) -> None:
    _run(f"ip address add {'.'.join(map(str, _address(rank)))}/24 dev {DEVICE}")
    _run(f"ip link set {DEVICE} up")


def _shape(_: int, devices: Sequence[str], bandwidth_mbit: float | None, least_burst: int) -> None:
    for device in devices:
        if bandwidth_mbit is None:
            subprocess.run(["tc", "qdisc", "delete", "dev", device, "root"], capture_output=True, check=False)
        else:
            rate = round(bandwidth_mbit * 1e6)
            burst = max(least_burst, round(rate / 8 * _BURST_S))
            _run(f"tc qdisc replace dev {device} root tbf rate {rate}bit burst {burst} latency 1s")


def _run(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise NetworkUnavailable(f"`{command}` failed: {said.removeprefix('Error: ')}")
