"""What may stand under `publish`, and that the docs' own examples do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from sidecar.config.load import lacking_here, load, unusable_here
from sidecar.publish.notices import Severity
from sidecar.publish.options import PublishOptions

ROOT = Path(__file__).parents[3]
URL = "https://logs.example/"


def examples() -> list[str]:
    text = (ROOT / "docs" / "publishing.md").read_text(encoding="utf-8")
    return re.findall(r"```yaml\n(publish:\n.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("text", examples())
def test_the_docs_examples_are_sound(text: str) -> None:
    PublishOptions.model_validate(YAML(typ="safe").load(text)["publish"])


def test_there_is_an_example_of_every_sink() -> None:
    assert {key for text in examples() for key in YAML(typ="safe").load(text)["publish"]} == set(PublishOptions.model_fields)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"logstash": {}}, "give either address"),
        ({"logstash": {"address": "a:1", "url": URL}}, "give either address"),
        ({"logstash": {"address": "a:1", "authorization": "env:X"}}, "authorization is for url"),
        ({"logstash": {"address": "a:1", "transport": "udp", "tls": {}}}, "transport: udp"),
        ({"elasticsearch": {"url": "http://es.example:9200", "authorization": "env:X"}}, "in the clear"),
        ({"elasticsearch": {"url": "https://me:secret@es.example"}}, "must not stand in the address"),
        ({"elasticsearch": {"url": URL, "authorization": "ApiKey abc"}}, "env:NAME or file:/path"),
        ({"otlp": {"url": "ftp://x"}}, "write http://HOST"),
        ({"otlp": {"url": "http://x:99999/"}}, "write http://HOST"),
        ({"otlp": {"url": "http://x\n/"}}, "write http://HOST"),
        ({"webhooks": {"a": {"shape": "pagerduty"}}}, "needs it"),
        ({"webhooks": {"a": {"shape": "slack"}}}, "needs url"),
        ({"webhooks": {"a": {"shape": "slack", "url": URL, "key": "env:X"}}}, "the others have none"),
        ({"webhooks": {"a.b": {"shape": "slack", "url": URL}}}, "pattern"),
        ({"statsd": {"address": "a:1", "intervall": "1s"}}, "Extra inputs"),
    ],
)
def test_what_makes_no_sense_is_an_error_that_says_so(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(says)) as raised:
        PublishOptions.model_validate(settings)

    assert "secret@" not in str(raised.value.errors()[0]["msg"])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_secret_may_travel_in_the_clear_on_this_machine(host: str) -> None:
    PublishOptions.model_validate({"elasticsearch": {"url": f"http://{host}:9200", "authorization": "env:X"}})


def test_every_secret_is_known_to_check() -> None:
    webhooks = {
        "chat": {"shape": "slack", "url": "env:A"},
        "pager": {"shape": "pagerduty", "key": "env:B"},
        "open": {"shape": "ecs", "url": URL},
    }
    options = PublishOptions.model_validate({"otlp": {"url": URL, "authorization": "env:C"}, "webhooks": webhooks})

    assert {(where, secret.reference) for where, secret in options.secrets()} == {
        ("otlp.authorization", "env:C"),
        ("webhooks.chat.url", "env:A"),
        ("webhooks.pager.key", "env:B"),
    }


def test_what_was_read_is_written_as_it_stood() -> None:
    settings = {"webhooks": {"chat": {"shape": "slack", "url": "env:A", "at_least": "page"}}, "otlp": {"url": URL}}

    dumped = PublishOptions.model_validate(settings).model_dump(mode="json", exclude_none=True)

    assert dumped["webhooks"]["chat"]["url"] == "env:A"
    assert PublishOptions.model_validate(dumped) == PublishOptions.model_validate(settings)
    assert [severity.word for severity in Severity] == ["note", "warning", "page"]


def test_a_sink_without_its_secret_is_checks_business_and_keeps_nothing_from_running(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    publish = f'publish: {{otlp: {{url: "{URL}", authorization: "env:X"}}}}\n'
    file.write_text(f"balancers: {{m: {{plugin: memory}}}}\nservices: {{s: {{balancer: m}}}}\n{publish}")
    loaded = load(file)

    assert [problem.path for problem in lacking_here(loaded, {})] == ["publish.otlp.authorization"]
    assert unusable_here(loaded, {}) == []
    assert lacking_here(loaded, {"X": "long enough"}) == []
