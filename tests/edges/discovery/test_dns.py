"""DNS discovery against a real server: records, TTL, and that no bad answer ever looks like an empty service."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest
from dnslib import RCODE  # type: ignore[import-untyped, unused-ignore]

from lbplugins.values import Address
from sidecar.core.model import Discovered, Instance
from sidecar.discovery import ask, build_sources, run
from sidecar.discovery.dns import Dns, SystemDns, clamp
from sidecar.discovery.options import DnsOptions, Instances
from tests.edges.discovery.nameserver import NameServer, Zone


@pytest.fixture
def server() -> Iterator[NameServer]:
    server = NameServer(Zone())
    yield server
    server.close()


def source(server: NameServer, name: str = "shop.example", kind: str = "A", port: int | None = 8080) -> Dns:
    return Dns("shop", DnsOptions.model_validate({"name": name, "port": port, "type": kind, "nameserver": str(server.address)}))


def instances(*addresses: str) -> tuple[Instance, ...]:
    return tuple(Instance("shop", Address.parse(address)) for address in addresses)


async def test_a_records_are_instances_with_the_configured_port(server: NameServer) -> None:
    server.zone.records["shop.example", "A"] = ["10.0.0.6", "10.0.0.5"]

    fact, again_s = await ask(source(server))

    assert fact.error == "" and fact.instances == instances("10.0.0.5:8080", "10.0.0.6:8080")
    assert (fact.service, fact.source, again_s) == ("shop", "dns:shop.example", 60.0)


async def test_aaaa_records_are_instances_too(server: NameServer) -> None:
    server.zone.records["shop.example", "AAAA"] = ["fd00::5"]

    fact, _ = await ask(source(server, kind="AAAA"))

    assert fact.instances == instances("[fd00::5]:8080")


@pytest.mark.parametrize(("ttl", "again_s"), [(0, 1.0), (1, 1.0), (17, 17.0), (60, 60.0), (86400, 60.0)])
async def test_the_ttl_says_when_to_ask_again_within_bounds(server: NameServer, ttl: int, again_s: float) -> None:
    server.zone.records["shop.example", "A"] = ["10.0.0.5"]
    server.zone.ttl = ttl

    assert (await ask(source(server)))[1] == again_s == clamp(ttl)


async def test_srv_records_bring_ports_and_their_targets_addresses(server: NameServer) -> None:
    server.zone.records["_http._tcp.shop.example", "SRV"] = ["20 1 8082 b.example.", "10 5 8080 a.example.", "10 1 8081 a.example."]
    server.zone.records["a.example", "A"] = ["10.0.0.5"]
    server.zone.records["b.example", "AAAA"] = ["fd00::6"]

    fact, _ = await ask(source(server, "_http._tcp.shop.example", "SRV", None))

    assert fact.instances == instances("10.0.0.5:8080", "10.0.0.5:8081", "[fd00::6]:8082"), fact.error
    assert fact.labels is not None
    assert fact.labels[fact.instances[0]] == {"srv_target": "a.example", "srv_priority": "10", "srv_weight": "5"}
    assert fact.labels[fact.instances[2]]["srv_priority"] == "20"


async def test_an_srv_target_that_does_not_resolve_is_an_error_not_a_smaller_service(server: NameServer) -> None:
    server.zone.records["_http._tcp.shop.example", "SRV"] = ["10 1 8080 a.example.", "10 1 8080 gone.example."]
    server.zone.records["a.example", "A"] = ["10.0.0.5"]

    fact, _ = await ask(source(server, "_http._tcp.shop.example", "SRV", None))

    assert fact.instances == () and "gone.example" in fact.error and "NXDOMAIN" in fact.error


async def test_an_srv_answer_of_a_lone_dot_says_not_offered(server: NameServer) -> None:
    server.zone.records["_http._tcp.shop.example", "SRV"] = ["0 0 0 ."]

    fact, _ = await ask(source(server, "_http._tcp.shop.example", "SRV", None))

    assert "not offered" in fact.error


async def test_nxdomain_nodata_and_servfail_are_errors(server: NameServer) -> None:
    assert "no such name (NXDOMAIN)" in (await ask(source(server)))[0].error

    server.zone.records["shop.example", "AAAA"] = ["fd00::5"]
    assert "has no A records" in (await ask(source(server)))[0].error

    server.zone.records.clear()
    server.zone.rcode = RCODE.SERVFAIL
    fact, again_s = await ask(source(server))
    assert "shop.example A" in fact.error and fact.instances == () and again_s == 2.0


async def test_a_name_server_that_does_not_answer_is_an_error_within_the_deadline(server: NameServer) -> None:
    server.zone.records["shop.example", "A"] = ["10.0.0.5"]
    server.zone.silent = True

    fact, _ = await ask(source(server), deadline_s=0.3)

    assert fact.error == "no answer within 0.3 s" and fact.instances == ()


async def test_no_name_server_there_at_all_is_an_error() -> None:
    options = DnsOptions.model_validate({"name": "shop.example", "port": 80, "nameserver": "127.0.0.1:1"})

    fact, _ = await ask(Dns("shop", options), deadline_s=20)

    assert fact.error.startswith("shop.example A: ") and fact.instances == ()


@pytest.mark.parametrize("address", ["0.0.0.0", "224.0.0.1", "169.254.169.254"])
async def test_addresses_that_are_never_asked_are_an_error(server: NameServer, address: str) -> None:
    server.zone.records["shop.example", "A"] = ["10.0.0.5", address]

    fact, _ = await ask(source(server))

    assert address in fact.error and fact.instances == ()


async def test_an_answer_too_big_for_udp_comes_whole(server: NameServer) -> None:
    server.zone.records["shop.example", "A"] = [f"10.0.{number // 250}.{number % 250 + 1}" for number in range(500)]

    fact, _ = await ask(source(server))

    assert len(fact.instances) == 500, fact.error


async def test_the_runner_delivers_changes_and_errors_and_each_only_once(server: NameServer) -> None:
    server.zone.records["shop.example", "A"] = ["10.0.0.5"]
    server.zone.ttl = 1
    facts: list[Discovered] = []
    news = asyncio.Event()

    def deliver(batch: Sequence[Discovered]) -> None:
        facts.extend(batch)
        news.set()

    async def told(count: int) -> None:
        async with asyncio.timeout(60):
            while len(facts) < count:
                news.clear()
                await news.wait()

    task = asyncio.create_task(run(source(server), deliver))
    await told(1)
    server.zone.records["shop.example", "A"] = ["10.0.0.5", "10.0.0.6"]
    await told(2)
    asked = len(server.zone.asked)
    async with asyncio.timeout(60):
        while len(server.zone.asked) < asked + 2:  # two more answers, the same as before
            await asyncio.sleep(0.05)
    server.zone.records.clear()
    await told(3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert [(fact.instances, bool(fact.error)) for fact in facts] == [
        (instances("10.0.0.5:8080"), False),
        (instances("10.0.0.5:8080", "10.0.0.6:8080"), False),
        ((), True),
    ]
    assert facts[0].at < facts[1].at < facts[2].at


async def test_the_systems_resolver_serves_without_dnspython() -> None:
    fact, again_s = await ask(SystemDns("shop", DnsOptions(name="localhost", port=80)))

    assert Instance("shop", Address("127.0.0.1", 80)) in fact.instances and again_s == 10.0


async def test_a_name_the_system_does_not_know_is_an_error() -> None:
    fact, _ = await ask(SystemDns("shop", DnsOptions(name="no-such-host.invalid", port=80)), deadline_s=30)

    assert fact.error and fact.instances == ()


def test_dns_is_built_from_its_short_and_long_forms() -> None:
    short = build_sources("shop", Instances.model_validate({"dns": "shop.example:80"}))
    srv = Instances.model_validate({"dns": "_http._tcp.shop.example"})

    assert [built.name for built in short] == ["dns:shop.example"]
    assert srv.dns is not None and srv.dns.type == "SRV"
