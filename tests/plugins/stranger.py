"""A plugin's rights as another user finds them: in a process of its own, which becomes `nobody` before it asks."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import pytest

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

# All that will be needed is imported before: the interpreter itself may lie where nobody may look.
_PROGRAM = """
import asyncio, json, os, sys
import encodings.idna, subprocess, tempfile
module, name, options = json.loads(sys.argv[1])
plugin_class = getattr(__import__(module, fromlist=[name]), name)
plugin = plugin_class(plugin_class.Options.model_validate(options))
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
print(json.dumps(list(asyncio.run(plugin.rights()))))
"""


async def rights_of_nobody(module: str, name: str, options: dict[str, object]) -> list[str]:
    """What `nobody`, without any group, lacks."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", _PROGRAM, json.dumps([module, name, options], default=str)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    lines: list[str] = json.loads(done.stdout)
    return lines
