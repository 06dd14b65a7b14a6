"""``faceline up`` and ``down``: a Prefect server, a Ray head and a worker on this machine.

Every process leads a session of its own, is remembered with the time it started, and is ended only
if the process of that number is still the one that was started. Both servers ask for a secret,
which lies in a file that only its owner reads.
"""

import base64
import contextlib
import hashlib
import logging
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from stages.runtime.artifacts import read_json, write_json
from stages.runtime.params import ServersParams
from stages.runtime.process import NO_CLOUD_PROBE, OFFLINE

logger = logging.getLogger(__name__)

POOL = "faceline"
START_S = 120.0
STOP_S = 10.0
SOCKET_PATH_LIMIT = 40  # Ray adds some 65 characters, the kernel allows 107
STATE = Path(".work", "servers.json")


@dataclass(frozen=True)
class Server:
    """One process that ``faceline up`` started.

    Attributes:
        name: ``prefect``, ``ray`` or ``worker``.
        pid: Its number, also of its session.
        started: When the kernel started it, in clock ticks after boot: tells it from a later
            process of the same number.
        address: Where it listens; empty for the worker.
        environment: What a client needs, secrets as paths where that is possible.
    """

    name: str
    pid: int
    started: str
    address: str
    environment: dict[str, str]

    def alive(self) -> bool:
        """Whether this very process still runs."""
        return _started(self.pid) == self.started


def up(root: Path, section: ServersParams, *, worker: bool = False) -> list[Server]:
    """Start what does not run yet and return all of it.

    Args:
        root: The checkout; its ``.work/servers.json`` remembers what was started.
        section: Addresses, ports and folders.
        worker: Also create the work pool, deploy ``deploy/prefect.yaml`` and start a worker.

    Raises:
        ValueError: A port is taken by another process.
        RuntimeError: A server did not start in time.
    """
    folder = root / section.folder
    folder.mkdir(parents=True, exist_ok=True)
    running = {server.name: server for server in _state(root) if server.alive()}
    starters: list[tuple[str, Callable[[], Server]]] = [
        ("prefect", lambda: _start_prefect(root, folder, section)),
        ("ray", lambda: _start_ray(folder, section)),
    ]
    if worker:
        starters.append(("worker", lambda: _start_worker(root, folder, running["prefect"])))
    for name, start in starters:
        if name not in running:
            running[name] = start()
            _remember(root, list(running.values()))
    return [running[name] for name, _ in starters]


def down(root: Path) -> list[str]:
    """End what :func:`up` started, last first, and return the names; what ended before is no error.

    Raises:
        RuntimeError: A process outlived SIGKILL.
    """
    ended = []
    for server in reversed(_state(root)):
        orphaned = not _stat(server.pid) and bool(_session(server.pid))  # the leader was killed
        if server.alive() or orphaned:
            _end(server)
            ended.append(server.name)
    (root / STATE).unlink(missing_ok=True)
    return ended


def ray_environment(root: Path) -> dict[str, str]:
    """Return what a stage needs to attach to the head of this checkout; nothing without a head.

    A ``RAY_ADDRESS`` of the user's own goes before it.
    """
    return {} if "RAY_ADDRESS" in os.environ else _environment(root, "ray")


def prefect_environment(root: Path) -> dict[str, str]:
    """Return what a flow needs to report to the server of this checkout.

    Without a server, Prefect starts one for the run: that may take long on a busy machine. A
    ``PREFECT_API_URL`` of the user's own goes before both.
    """
    if "PREFECT_API_URL" in os.environ:
        return {}
    patience = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(round(START_S))}
    return _environment(root, "prefect") or patience


def _environment(root: Path, name: str) -> dict[str, str]:
    found = [server for server in _state(root) if server.name == name and server.alive()]
    return dict(found[0].environment) if found else {}


def _state(root: Path) -> list[Server]:
    path = root / STATE
    return [Server(**row) for row in read_json(path)] if path.is_file() else []


def _remember(root: Path, servers: list[Server]) -> None:
    write_json([asdict(server) for server in servers], root / STATE)
    (root / STATE).chmod(0o600)


def _start_prefect(root: Path, folder: Path, section: ServersParams) -> Server:
    host, port = section.host, section.prefect_port
    _expect_free(host, port, "servers.prefect_port")
    address = f"http://{host}:{port}/api"
    login = f"faceline:{_secret(folder / 'prefect_secret')}" if section.secrets else ""
    auth = {"PREFECT_SERVER_API_AUTH_STRING": login} if login else {}
    home = {"PREFECT_HOME": str((folder / "prefect").resolve())}
    client = {"PREFECT_API_URL": address}
    if login:
        client["PREFECT_API_AUTH_STRING"] = login
    server = _spawn(
        "prefect",
        [sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", str(port)],
        folder,
        {**home, **auth, **client, "PREFECT_CLI_PROMPT": "false"},
        address=address,
        cwd=root,
        environment=client,
    )

    def healthy() -> bool:
        request = urllib.request.Request(f"{address}/flows/count", data=b"{}", method="POST")  # noqa: S310
        request.add_header("Content-Type", "application/json")
        if login:
            request.add_header(
                "Authorization", f"Basic {base64.b64encode(login.encode()).decode()}"
            )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
                return int(answer.status) == 200
        except (urllib.error.URLError, OSError):
            return False

    return _wait(server, healthy, folder)


def _start_ray(folder: Path, section: ServersParams) -> Server:
    host, port = section.host, section.ray_port
    _expect_free(host, port, "servers.ray_port")
    address = f"{host}:{port}"
    client = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
    if section.secrets:
        path = folder / "ray_token"
        _secret(path)
        client |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path.resolve())}
    dashboard = ["--include-dashboard=false"]
    if section.ray_dashboard_port is not None:
        dashboard = [
            "--include-dashboard=true",
            f"--dashboard-host={host}",
            f"--dashboard-port={section.ray_dashboard_port}",
        ]
    server = _spawn(
        "ray",
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *(f"--node-ip-address={host}", f"--port={port}"),
            # else fixed ranges, which `port` or another head on this machine may collide with
            *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"),
            f"--num-cpus={section.ray_cpus}",
            f"--object-store-memory={section.ray_object_store_mb * 2**20}",
            f"--temp-dir={_short(folder / 'ray')}",
            *dashboard,
            "--disable-usage-stats",
        ],
        folder,
        {**{name: v for name, v in client.items() if name != "RAY_ADDRESS"}, **NO_CLOUD_PROBE},
        address=address,
        cwd=folder,
        environment=client,
    )
    log = folder / "ray.log"
    return _wait(server, lambda: b"Ray runtime started" in log.read_bytes(), folder)


def _start_worker(root: Path, folder: Path, prefect: Server) -> Server:
    """Deploy and start a worker; the flow runs in this checkout."""
    own = {**prefect.environment, "PREFECT_HOME": str((folder / "prefect").resolve())}
    command = [sys.executable, "-m", "prefect"]
    pool = [*command, "work-pool", "create", POOL, "--type", "process", "--overwrite"]
    definition = str(root / "deploy" / "prefect.yaml")
    deploy = [*command, "--no-prompt", "deploy", "--all", "--prefect-file", definition]
    for arguments in (pool, deploy):
        result = subprocess.run(
            arguments,
            cwd=root,
            env={**_base(), **own, "PWD": str(root.resolve())},
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            said = (result.stdout + result.stderr).strip()[-2000:]
            raise RuntimeError(f"expected {' '.join(arguments[2:5])} to work: {said}")
    server = _spawn(
        "worker",
        [*command, "worker", "start", "--pool", POOL, "--name", "faceline-worker"],
        folder,
        own,
        address="",
        cwd=root,
        environment={},
    )
    log = folder / "worker.log"
    return _wait(server, lambda: b"started" in log.read_bytes(), folder)


def _spawn(
    name: str,
    command: list[str],
    folder: Path,
    extra: dict[str, str],
    *,
    address: str,
    cwd: Path,
    environment: dict[str, str],
) -> Server:
    """Start a process in a session of its own, its output in ``<folder>/<name>.log``."""
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**_base(), **extra},
        )
    return Server(name, process.pid, _started(process.pid) or "", address, environment)


def _base() -> dict[str, str]:
    """The environment of a server: telemetry off, this interpreter first on PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**OFFLINE, **os.environ, "PATH": path}


def _wait(server: Server, ready: Callable[[], bool], folder: Path) -> Server:
    """Wait until a server is ready.

    Raises:
        RuntimeError: It ended, or was not ready in time and has been ended.
    """
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.alive():
        if ready():
            return server
        time.sleep(0.2)
    log = (folder / f"{server.name}.log").read_text(errors="replace")[-2000:]
    state = "was not ready in time" if server.alive() else "ended"
    _end(server)
    raise RuntimeError(f"expected {server.name} to start, it {state}; its log ends: {log}")


def _end(server: Server) -> None:
    """End a server's whole session: SIGTERM, after the grace time SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in _session(server.pid):
            _signal(pid, number)
        deadline = time.monotonic() + STOP_S
        while time.monotonic() < deadline:
            _reap(server.pid)
            if not _session(server.pid):
                return
            time.sleep(0.05)
    raise RuntimeError(f"expected {server.name} (session {server.pid}) to end, it still runs")


def _reap(pid: int) -> None:
    """Collect an ended child, where it is ours."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _stat(pid: int | str) -> list[str]:
    """Fields of ``/proc/<pid>/stat`` after the name: state first; empty if there is no process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _started(pid: int) -> str | None:
    """When a process started, None if it has ended."""
    fields = _stat(pid)
    return fields[19] if fields and fields[0] not in "ZX" else None


def _session(leader: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _stat(folder.name)
        if fields and fields[0] not in "ZX" and int(fields[3]) == leader:
            found.append(int(folder.name))
    return found


def _secret(path: Path) -> str:
    """Return the secret kept at ``path``; made at random, for its owner's eyes, the first time."""
    if not path.is_file():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    return path.read_text().strip()


def _short(folder: Path) -> Path:
    """A folder whose sockets have names short enough for the kernel: this one or one in /tmp."""
    full = folder.resolve()
    if len(str(full)) <= SOCKET_PATH_LIMIT:
        return full
    digest = hashlib.sha256(str(full).encode()).hexdigest()[:8]
    return Path(os.environ.get("TMPDIR", "/tmp"), f"faceline-{digest}")  # noqa: S108


def _expect_free(host: str, port: int, parameter: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"expected {host}:{port} to be free, got {error}; "
                f"end what listens there or change {parameter} in params/servers.yaml"
            ) from error


def write_environment(servers: list[Server], path: Path) -> None:
    """Write ``export`` lines for a shell that wants to talk to the servers; its owner reads it."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        for server in servers:
            for name, value in sorted(server.environment.items()):
                file.write(f"export {name}={shlex.quote(value)}\n")
