"""The write-ahead log survives anything that a crash, a disk or a stray bit can do to it, and never believes a wrong record."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lbplugins.values import Address, Operator, Ref
from sidecar.core.model import Act, Ejection, Freeze, Instance, Intent, Override, ServerRef
from sidecar.journal import intents as journal
from sidecar.journal.force import fold
from sidecar.journal.intents import Intents, JournalError, Stored, line, read

ONE, TWO = (Instance("shop", Address(f"10.0.0.{host}", 80)) for host in (1, 2))
S1, S2 = (ServerRef("edge", Ref("shop", name)) for name in ("s1", "s2"))
BOOT = "boot-a"


class Clocks:
    """Clocks that a test moves."""

    def __init__(self) -> None:
        self.boottime, self.wall = 1000.0, 1.7e9

    def open(self, directory: Path, boot_id: str = BOOT) -> Intents:
        return Intents.open(directory, boottime=lambda: self.boottime, boot_id=boot_id, wall=lambda: self.wall)


def ejected(instance: Instance = ONE, at: float = 10.0, **more: object) -> Intent:
    ejection = Ejection(instance, at, "refused", "refused twice")
    return replace(Intent(Act.EJECT, at, "rule:refused", "it refused", instance, ejection), **more)  # type: ignore[arg-type]


def returned(instance: Instance = ONE, at: float = 20.0) -> Intent:
    return Intent(Act.RETURN, at, "sidecar", "it answers", instance)


def forgotten(instance: Instance = ONE, at: float = 30.0) -> Intent:
    return Intent(Act.FORGET, at, "sidecar", "nothing left", instance)


def overridden(owner: str, state: Operator, at: float = 10.0, until: float | None = None, instance: Instance = ONE) -> Intent:
    override = Override(instance, owner, state, f"operator:{owner}", at, until)
    return Intent(Act.OVERRIDE, at, f"operator:{owner}", "deploy", instance, override=override)


def frozen(service: str, at: float = 10.0, until: float | None = None) -> Intent:
    return Intent(Act.FREEZE, at, "operator:kim", "incident", freeze=Freeze(service, "operator:kim", at, until))


SOME = [
    ejected(notes=((S1, "weight 7"), (S2, "weight 3"))),
    overridden("kim", Operator.DRAINING),
    frozen("shop"),
    ejected(TWO),
    returned(TWO),
]


@pytest.fixture
def clocks() -> Iterator[Clocks]:
    yield Clocks()


def written(directory: Path, clocks: Clocks, intents: list[Intent]) -> bytes:
    log = clocks.open(directory)
    for intent in intents:
        log.append([intent])
    log.close()
    return (directory / "intents").read_bytes()


def test_what_was_appended_is_replayed_with_its_clocks(tmp_path: Path, clocks: Clocks) -> None:
    log = clocks.open(tmp_path)
    assert log.replayed == []
    log.append(SOME[:2])
    clocks.boottime += 5.0
    clocks.wall += 7.0
    log.append(SOME[2:])
    log.append([])
    log.close()
    log.close()

    again = clocks.open(tmp_path)

    assert [each.intent for each in again.replayed] == SOME
    assert again.replayed[0] == Stored(SOME[0], 1000.0, BOOT, 1.7e9)
    assert again.replayed[-1] == Stored(SOME[-1], 1005.0, BOOT, 1.7e9 + 7.0)
    assert again.problems == []
    again.close()


def test_reading_changes_nothing(tmp_path: Path, clocks: Clocks) -> None:
    assert read(tmp_path).stored == []
    content = written(tmp_path, clocks, SOME) + b"torn"
    (tmp_path / "intents").write_bytes(content)

    found = read(tmp_path)

    assert [each.intent for each in found.stored] == SOME
    assert found.bad == b"torn"
    assert (tmp_path / "intents").read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["intents"]


def test_cut_at_every_byte_the_whole_records_are_kept_and_the_rest_set_aside(tmp_path: Path, clocks: Clocks) -> None:
    content = written(tmp_path, clocks, SOME)
    ends = [at + 1 for at, byte in enumerate(content) if byte == 0x0A]
    folder = tmp_path / "cut"
    folder.mkdir()

    for cut in range(len(content) + 1):
        (folder / "intents").write_bytes(content[:cut])
        whole = sum(end <= cut for end in ends)
        rest = content[max([0, *(end for end in ends if end <= cut)]) : cut]

        found = read(folder)

        assert [each.intent for each in found.stored] == SOME[:whole]
        assert found.bad == rest
        assert bool(found.problems) == bool(rest)
        if cut % 11 == 0 or not rest:
            log = clocks.open(folder)
            assert [each.intent for each in log.replayed] == SOME[:whole]
            assert [each.read_bytes() for each in folder.glob("intents.bad-*")] == ([rest] if rest else [])
            log.append([forgotten()])
            log.close()
            assert read(folder).stored[-1].intent == forgotten()
            assert read(folder).bad == b""
            for each in folder.iterdir():
                each.unlink()


def test_no_flipped_bit_is_ever_believed(tmp_path: Path, clocks: Clocks) -> None:
    content = written(tmp_path, clocks, SOME)
    good = [each.intent for each in read(tmp_path).stored]
    dice = random.Random(15)
    in_every_byte = [[8 * at + dice.randrange(8)] for at in range(len(content))]
    in_the_head = [[bit] for bit in range(8 * len(b"1 01234567 {"))]
    at_random = [[dice.randrange(8 * len(content)) for _ in range(dice.choice([2, 5, 40]))] for _ in range(300)]

    for bits in in_every_byte + in_the_head + at_random:
        damaged = bytearray(content)
        for bit in bits:
            damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "intents").write_bytes(damaged)

        found = [each.intent for each in read(tmp_path).stored]

        assert found == good[: len(found)]
        assert len(found) < len(good) or damaged == content


@pytest.mark.parametrize("rubbish", [b"\0" * 5000, b"\n", b"1  \n", b"1 00000000 {}\n", b"{}\n", b"\xff\xfe", b"1 " * 100_000])
def test_rubbish_is_set_aside(tmp_path: Path, clocks: Clocks, rubbish: bytes) -> None:
    (tmp_path / "intents").write_bytes(rubbish)

    log = clocks.open(tmp_path)

    assert log.replayed == []
    assert (tmp_path / "intents.bad-1").read_bytes() == rubbish
    assert "intents.bad-1" in log.problems[-1]
    log.append(SOME)
    log.close()
    assert len(read(tmp_path).stored) == len(SOME)


def test_only_the_newest_bad_files_are_kept(tmp_path: Path, clocks: Clocks) -> None:
    for each in range(8):
        (tmp_path / "intents").write_bytes(b"bad %d" % each)
        clocks.open(tmp_path).close()

    assert sorted(each.read_bytes() for each in tmp_path.glob("intents.bad-*")) == [b"bad %d" % each for each in range(3, 8)]


def test_a_whole_record_that_makes_no_sense_is_skipped_and_the_others_kept(tmp_path: Path, clocks: Clocks) -> None:
    strange = line(Stored(SOME[0], 1.0, BOOT, 1.0)).replace(b'"eject"', b'"bless"')
    _, _, payload = strange.rstrip().split(b" ", 2)
    strange = b"1 %08x %s\n" % (zlib.crc32(b"1 " + payload), payload)
    (tmp_path / "intents").write_bytes(strange + line(Stored(SOME[1], 1.0, BOOT, 1.0)))

    log = clocks.open(tmp_path)

    assert [each.intent for each in log.replayed] == [SOME[1]]
    assert (tmp_path / "intents.bad-1").read_bytes() == strange
    assert "'bless' is no Act" in log.problems[0]
    log.close()


def test_a_newer_version_is_refused_and_left_alone(tmp_path: Path, clocks: Clocks) -> None:
    newer = b"2 %08x %s\n" % (zlib.crc32(b"2 {}"), b"{}")
    (tmp_path / "intents").write_bytes(newer)

    with pytest.raises(JournalError, match=r"newer lb-sidecar \(format 2.*run that version"):
        clocks.open(tmp_path)

    assert (tmp_path / "intents").read_bytes() == newer


def test_format_one_is_still_read(tmp_path: Path, clocks: Clocks) -> None:
    """Bytes written by the first release: changing how they are read is a new format."""
    golden = (
        b'1 31b5b43e {"intent":{"act":"eject","at":10.0,"by":"rule:refused","why":"it refused",'
        b'"instance":["shop",["10.0.0.1",80],""],"ejection":{"instance":["shop",["10.0.0.1",80],""],"at":10.0,"rule":"refused",'
        b'"cause":"refused twice","strength":"hard","repeat":0,"until":0.0,"enforced":true,"in_flight":"keep","returning":false},'
        b'"notes":[[["edge",["shop","s1"]],"weight 7"]]},"boottime":1000.0,"boot_id":"boot-a","wall":1700000000.0}\n'
    )
    (tmp_path / "intents").write_bytes(golden)

    log = clocks.open(tmp_path)

    assert [each.intent for each in log.replayed] == [ejected(notes=((S1, "weight 7"),))], log.problems
    log.close()


def test_opening_keeps_only_what_is_in_force(tmp_path: Path, clocks: Clocks) -> None:
    before = written(tmp_path, clocks, SOME + [ejected(TWO, at) for at in (40.0, 50.0)] + [forgotten(TWO)])

    clocks.open(tmp_path).close()

    after = read(tmp_path)
    assert len((tmp_path / "intents").read_bytes()) < len(before)
    assert [each.intent for each in after.stored] == SOME[:3]


def test_the_file_is_rewritten_now_and_then(tmp_path: Path, clocks: Clocks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "COMPACT_EVERY", 10)
    log = clocks.open(tmp_path)

    for each in range(100):
        log.append([ejected(at=float(each)), returned(at=each + 0.5), forgotten(at=each + 0.7)])
        assert (tmp_path / "intents").stat().st_size < 20_000
    log.append([ejected(TWO)])
    log.close()

    assert [each.intent for each in read(tmp_path).stored if each.intent.instance == TWO] == [ejected(TWO)]
    assert not (tmp_path / "intents.tmp").exists()


def test_compacting_to_given_records(tmp_path: Path, clocks: Clocks) -> None:
    log = clocks.open(tmp_path)
    log.append(SOME)
    keep = [Stored(SOME[2], 1.0, BOOT, 1.0)]

    log.compact(keep)

    assert read(tmp_path).stored == keep
    log.append([SOME[0]])
    log.close()
    assert [each.intent for each in read(tmp_path).stored] == [SOME[2], SOME[0]]


@pytest.mark.parametrize("harm", ["removed", "replaced", "emptied", "longer"])
def test_a_file_harmed_under_our_hands_is_made_good_before_the_next_append(tmp_path: Path, clocks: Clocks, harm: str) -> None:
    log = clocks.open(tmp_path)
    log.append(SOME[:2])
    path = tmp_path / "intents"
    match harm:
        case "removed":
            path.unlink()
        case "replaced":
            path.unlink()
            path.write_bytes(b"someone else's")
        case "emptied":
            os.truncate(path, 0)
        case _:
            with path.open("ab") as file:
                file.write(b"half a rec")

    log.append(SOME[2:3])
    log.close()

    assert [each.intent for each in read(tmp_path).stored] == SOME[:3]
    assert read(tmp_path).bad == b""


CHILD = """
import resource, sys
from pathlib import Path
from tests.edges.journal.test_intents import Clocks, JournalError, ejected, read

folder, room = Path(sys.argv[1]), int(sys.argv[2])
log = Clocks().open(folder)
log.append([ejected()])
size = (folder / "intents").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, resource.RLIM_INFINITY))
for each in range(3):
    try:
        log.append([ejected(at=11.0), ejected(at=12.0)])
    except JournalError as error:
        print("refused:", error)
    found = read(folder)
    assert len(found.stored) == 1 and not found.bad, (found, room)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.append([ejected(at=13.0)])
assert [each.intent.at for each in read(folder).stored] == [10.0, 13.0]
"""


@pytest.mark.parametrize("room", [0, 1, 300, 700])
def test_a_full_disk_refuses_clearly_leaves_nothing_torn_and_heals(tmp_path: Path, room: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), str(room)], capture_output=True, text=True, timeout=60, check=False, cwd=Path.cwd()
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused: intents could not be written to") == 3
    assert "nothing is ejected until they can be" in done.stdout


OPENING = """
import resource, sys
from pathlib import Path
from tests.edges.journal.test_intents import Clocks, read

folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
log = Clocks().open(folder)
assert len(log.replayed) == 2, log.replayed
print(*log.problems, sep="\\n")
found = read(folder)
assert len(found.stored) == 2 and not found.bad
"""


def test_opening_on_a_full_disk_goes_on_with_the_old_file(tmp_path: Path, clocks: Clocks) -> None:
    written(tmp_path, clocks, [ejected(ONE), ejected(TWO)])
    with (tmp_path / "intents").open("ab") as file:
        file.write(b"torn record of a crash")

    done = subprocess.run(
        [sys.executable, "-c", OPENING, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False, cwd=Path.cwd()
    )

    assert done.returncode == 0, done.stderr
    assert "it goes on as it is" in done.stdout


KILLED = """
import sys
from pathlib import Path
from tests.edges.journal.test_intents import Clocks, ejected

log = Clocks().open(Path(sys.argv[1]))
print("open", flush=True)
for each in range(10**6):
    log.append([ejected(at=float(each))])
    print(each, flush=True)
"""


def test_killed_at_any_moment_all_that_was_acknowledged_is_there(tmp_path: Path) -> None:
    dice = random.Random(1)
    for each in range(3):
        folder = tmp_path / str(each)
        folder.mkdir()
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
        assert child.stdout is not None
        last = ""
        for _ in range(dice.randrange(2, 100)):
            last = child.stdout.readline()
        assert last, f"the child ended by itself, with {child.wait(30)}"
        child.kill()
        rest = child.stdout.read().split()  # not `communicate`, which knows nothing of what `readline` has read ahead
        child.stdout.close()
        child.wait(30)

        found = read(folder)

        acknowledged = int(rest[-1] if rest else last)
        assert max(stored.intent.at for stored in found.stored) in (acknowledged, acknowledged + 1)


def test_a_folder_that_is_not_there_says_so(tmp_path: Path, clocks: Clocks) -> None:
    with pytest.raises(JournalError, match=r"absent/intents cannot be written: No such file.*`state.dir`"):
        clocks.open(tmp_path / "absent")


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path: Path, clocks: Clocks) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "intents").symlink_to(tmp_path / "victim")

    with pytest.raises(JournalError, match="plain file"):
        clocks.open(tmp_path)

    assert (tmp_path / "victim").read_text() == "precious"


def test_a_closed_log_refuses(tmp_path: Path, clocks: Clocks) -> None:
    log = clocks.open(tmp_path)
    log.close()

    with pytest.raises(JournalError):
        log.append(SOME)


def test_folding_the_file_gives_what_is_ours(tmp_path: Path, clocks: Clocks) -> None:
    written(tmp_path, clocks, SOME)

    adopted = fold(read(tmp_path).stored, 500.0, 2000.0, BOOT)

    assert [each.instance for each in adopted.ejections if not each.returning] == [ONE]
    assert adopted.notes == {S1: "weight 7", S2: "weight 3"}
