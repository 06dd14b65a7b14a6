"""Runs a command where no packet can leave, and counts those that tried (Linux, root).

The command gets a network namespace whose only way out is a cable that ends nowhere. Its counter
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
set +e
"$@"
code=$?
cat /sys/class/net/out/statistics/tx_packets > "$SEALED_COUNT" 2>/dev/null ||
    sed -n 's/^ *out: *//p' /proc/net/dev | awk '{print $10}' > "$SEALED_COUNT"
exit $code
"""


@dataclass(frozen=True)
class Result:
    """What a sealed command said, and how many packets wanted out."""

    stdout: str
    stderr: str
    code: int
    packets: int


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
    resolv, count = folder / "resolv.conf", folder / "packets"
    resolv.write_text("nameserver 198.51.100.53\noptions timeout:1 attempts:1\n")
    result = subprocess.run(
        ["unshare", "-n", "-m", "sh", "-c", SCRIPT, "sealed", *command],
        cwd=cwd,
        env={**env, "SEALED_RESOLV": str(resolv), "SEALED_COUNT": str(count)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    return Result(result.stdout, result.stderr, result.returncode, int(count.read_text()))
