"""Some behaviours of the campaign `behaviours`, a few at once. Reasons only: seconds and bytes are the campaign's."""

from __future__ import annotations

from tests.campaigns.behaviours import hostiles, run

CHOSEN = ("200 KB that are 200 MB, looked into", "gRPC: endless pings", "a name that SNI refuses")


def test_hostile_instances_get_their_reasons() -> None:
    found = run(10, CHOSEN)

    assert [each.name for each in found if each.name not in CHOSEN] == [] and len(found) == len(CHOSEN)
    assert [fault for each in found for fault in each.faults] == []


def test_every_behaviour_has_a_name_of_its_own() -> None:
    names = [one.name for one in hostiles("ca.pem")]

    assert len(names) == len(set(names)) >= 70
