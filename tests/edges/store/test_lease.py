"""A lease that is not renewed ends; one of another boot has ended."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.store import clock
from sidecar.store.lease import LEASE_S, Lease, LeaseError, LeaseFile

BOOT = "boot-a"


def test_a_lease_holds_until_its_end_and_no_longer(tmp_path: Path) -> None:
    file = LeaseFile(tmp_path, BOOT)
    file.renew(1120.0)

    lease = LeaseFile(tmp_path, "whoever reads").read()

    assert lease == Lease(1120.0, BOOT, os.getpid())
    assert not lease.expired(1000.0, BOOT)
    assert not lease.expired(1119.9, BOOT)
    assert lease.expired(1120.0, BOOT)
    assert lease.expired(9999.0, BOOT)


def test_who_stands_by_answers_no_more_once_its_promise_there_is_over(tmp_path: Path) -> None:
    LeaseFile(tmp_path, BOOT).renew(1120.0, {"edge": 1100.0})

    lease = LeaseFile(tmp_path, BOOT).read()

    assert lease.unanswered(1099.0, BOOT) == frozenset()
    assert lease.unanswered(1100.0, BOOT) == {"edge"} and not lease.expired(1100.0, BOOT)


def test_renewing_moves_the_end_and_ending_ends_it(tmp_path: Path) -> None:
    file = LeaseFile(tmp_path, BOOT)
    file.renew(1120.0)
    file.renew(1150.0)
    assert not file.read().expired(1140.0, BOOT)

    file.end()

    assert file.read().expired(1.0, BOOT)
    assert [each.name for each in tmp_path.iterdir()] == ["lease"]


def test_a_lease_of_another_boot_has_expired(tmp_path: Path) -> None:
    LeaseFile(tmp_path, BOOT).renew(1120.0)

    assert LeaseFile(tmp_path, BOOT).read().expired(1000.0, "boot-b")


def test_a_reader_that_looked_at_the_clock_first_does_not_expire_a_fresh_lease() -> None:
    assert not Lease(1000.0 + LEASE_S, BOOT).expired(999.0, BOOT)


def test_a_lease_from_a_clock_that_was_set_back_has_expired() -> None:
    assert Lease(1e6, BOOT).expired(1000.0, BOOT)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"until": "x", "boot_id": "b"}', b'{"until": NaN, "boot_id": "b"}', b"9" * 9999]
)
def test_a_damaged_file_promises_nothing_and_says_why(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lease").write_bytes(content)

    lease = LeaseFile(tmp_path, BOOT).read()

    assert lease.expired(1.0, BOOT) and lease.expired(1.0, "")
    assert "is unreadable" in lease.fault


def test_no_file_promises_nothing(tmp_path: Path) -> None:
    lease = LeaseFile(tmp_path, BOOT).read()

    assert lease.expired(1.0, "")
    assert lease.fault == "there is no lease"


def test_a_lease_that_cannot_be_renewed_says_what_follows(tmp_path: Path) -> None:
    with pytest.raises(LeaseError, match=r"cannot be renewed: No such file.*`release --expired`"):
        LeaseFile(tmp_path / "absent", BOOT).renew(1.0)


def test_the_clocks_of_this_machine() -> None:
    before = clock.monotonic()

    assert clock.boottime() >= before > 0
    assert clock.wall() > 1.7e9
    assert clock.boot_id() == clock.boot_id()


def test_without_a_boot_id_no_earlier_one_is_ours(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")

    ids = [clock.boot_id(tmp_path / "absent"), clock.boot_id(tmp_path / "absent"), clock.boot_id(tmp_path / "empty")]

    assert len(set(ids)) == 3
    assert all(each.startswith("unknown-") for each in ids)
