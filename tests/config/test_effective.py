"""`check --effective`: the text says where every value comes from and is itself the same configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.config import ConfigError, effective, load

GOOD = sorted([*(Path(__file__).parent / "good").glob("*.yaml"), *(Path(__file__).parents[2] / "examples").glob("*.yaml")])


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_the_effective_text_loads_to_the_same_configuration(path: Path, tmp_path: Path) -> None:
    loaded = load(path)
    again = tmp_path / "again.yaml"
    again.write_text(effective(loaded))

    reloaded = load(again)

    assert reloaded.problems == (), "\n".join(map(str, reloaded.problems))
    assert reloaded.config == loaded.config and reloaded.hash == loaded.hash


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_every_value_has_an_origin(path: Path) -> None:
    for line in effective(load(path)).splitlines()[1:]:
        if not line.endswith((":", "-")):
            origin = line.rpartition(" # ")[2]
            assert origin == "default" or f"{path}:" in origin, line


def test_credentials_in_headers_and_secrets_are_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "balancers: {edge: {plugin: memory}}\napi: {tokens: {ci: {secret: 'env:CI'}}}\n"
        "services: {shop: {balancer: edge, probe: {http: /h, headers: {Authorization: Bearer swordfish, X-Api-Key: swordfish, X-A: b}}}}\n"
    )

    text = effective(load(path))

    assert "swordfish" not in text and text.count('"***"') == 2
    assert "X-A: b" in text and '"env:CI"' in text


def test_a_faulty_configuration_has_no_effective_text(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("mode: x\n")

    with pytest.raises(ConfigError, match="not one of"):
        effective(load(path))
