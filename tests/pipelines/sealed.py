"""Runs a command where no packet can leave, and lists those that tried (Linux, root).

The command gets a network namespace whose only way out is a cable with a listener at its end. It
sees every attempt, from Python or not; name servers are out there as well.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SCRIPT = """
set -e
mount --bind "$SEALED_RESOLV" /etc/resolv.conf
ip link set lo up
echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6
ip link add out type veth peer name end
ip link set end up
ip link set out up
ip addr add 192.0.2.1/24 dev out
ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev out nud permanent
ip route add default via 192.0.2.2
"$SEALED_PYTHON" -c "$SEALED_WATCH" > "$SEALED_SEEN" &
watch=$!
while ! grep -q watching "$SEALED_SEEN"; do sleep 0.05; done
set +e
"$@"
code=$?
sleep 0.2
kill $watch
exit $code
"""

WATCH = """
import socket
from struct import unpack
cable = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
cable.bind(("end", 0))
print("watching", flush=True)
while True:
    frame = cable.recv(2048)
    ports = frame[14 + 4 * (frame[14] & 15) :]
    port = unpack("!H", ports[2:4])[0] if frame[23] in (6, 17) else 0
    where = f"{socket.inet_ntoa(frame[30:34])}:{port} {ports[8:72] if port == 53 else b''}"
    print(where if frame[12:14] == b"\\x08\\0" else frame[12:14].hex(), flush=True)
"""


@dataclass(frozen=True)
class Result:
    """What a sealed command said, and where its packets wanted to go."""

    stdout: str
    stderr: str
    code: int
    packets: list[str]


def available() -> bool:
    """Whether namespaces and virtual cables can be made here."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    probe = "ip link add out type veth peer name end"
    return (
        subprocess.run(
            ["unshare", "-n", "-m", "sh", "-c", probe], capture_output=True, check=False
        ).returncode
        == 0
    )


def run(command: list[str], folder: Path, *, cwd: Path, env: dict[str, str]) -> Result:
    """Run a command sealed; ``folder`` takes two small files."""
    resolv, seen = folder / "resolv.conf", folder / "packets"
    resolv.write_text("nameserver 198.51.100.53\noptions timeout:1 attempts:1\n")
    result = subprocess.run(
        ["unshare", "-n", "-m", "sh", "-c", SCRIPT, "sealed", *command],
        cwd=cwd,
        env={
            **env,
            "SEALED_RESOLV": str(resolv),
            "SEALED_SEEN": str(seen),
            "SEALED_PYTHON": sys.executable,
            "SEALED_WATCH": WATCH,
        },
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    packets = seen.read_text().splitlines()[1:]
    return Result(result.stdout, result.stderr, result.returncode, packets)
