"""Acme in a box, and the conformance kit on it."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
from acme_lb import Acme, AcmeOptions

from lbplugins.testing import BalancerConformance, Lab
from lbplugins.values import Ref, Serve, Setting

STATES = {"full": "ready", "drain": "draining", "none": "maintenance"}


class AcmeLab(Lab):
    refs = (Ref("web", "a"), Ref("web", "b"))

    def __init__(self, folder: Path) -> None:
        self.file = folder / "acme.json"
        self.away = folder / "acme.json.away"
        servers = {"a": {"address": "10.0.0.5:8080", "weight": 100}, "b": {"address": "10.0.0.6:8080", "weight": 50}}
        self.file.write_text(json.dumps({"web": servers}))

    def plugin(self):
        return Acme(AcmeOptions(file=self.file))

    def truth(self, ref):
        server = json.loads(self.file.read_text())[ref.pool][ref.server]
        if server.get("state", "ready") != "ready":
            return Setting(Serve.DRAIN if server["state"] == "draining" else Serve.NONE)
        return Setting(Serve(server.get("sidecar", "full")), server.get("percent", 100))

    def meddle(self, ref, setting):
        self.edit(ref, state=STATES[setting.serve])

    def reweigh(self, ref, weight):
        self.edit(ref, weight=weight)
        return True

    def edit(self, ref, **keys):
        document = json.loads(self.file.read_text())
        document[ref.pool][ref.server].update(keys)
        self.file.write_text(json.dumps(document))

    @contextmanager
    def unreachable(self):
        self.file.rename(self.away)
        yield
        self.away.rename(self.file)

    def effort(self):
        return self.file.stat().st_ino  # another file = Acme was told


class TestAcme(BalancerConformance):
    @pytest.fixture
    def lab(self, tmp_path):
        return AcmeLab(tmp_path)
