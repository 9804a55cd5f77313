"""The plugin against running nginx, old and new, and against what goes wrong around it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from lbplugins.api import BalancerError
from lbplugins.nginx import Nginx, process
from lbplugins.nginx.servers import parse, render, set_ours
from lbplugins.values import FULL, MAINTENANCE, NONE, OPERATOR, READY, Change, Ref, Refusal, Seen, Setting
from tests.plugins.nginx.lab import BINARIES, POOL, NginxLab, free_port, until

pytestmark = pytest.mark.real

OUT, BACK = Setting(NONE), Setting()


@asynccontextmanager
async def opened(lab: NginxLab, **options: object) -> AsyncIterator[Nginx]:
    plugin = lab.plugin(**options)
    try:
        await plugin.open()
        yield plugin
    finally:
        await plugin.aclose()


async def look(plugin: Nginx) -> dict[str, Seen]:
    return {ref.server: seen for ref, seen in (await plugin.observe(frozenset({POOL}), {})).items()}


async def tell(plugin: Nginx, name: str, want: Setting, **more: object) -> list[Refusal]:
    change = replace(Change(Ref(POOL, name), want, expect=(await look(plugin))[name]), **more)  # type: ignore[arg-type]
    return list(await plugin.apply([change]))


@contextmanager
def users(lab: NginxLab, count: int = 4) -> Iterator[Counter[str]]:
    """People who ask all the time, each request on a new connection; what they got."""
    got: Counter[str] = Counter()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                got[lab.ask()] += 1
            except OSError as error:
                got[repr(error)] += 1

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield got
    finally:
        stop.set()
        for thread in threads:
            thread.join()


async def test_out_and_back_under_traffic_loses_no_request(lab: NginxLab) -> None:
    start = lab.text()
    name = lab.names[0]
    async with opened(lab) as plugin:
        with users(lab) as got:
            assert await tell(plugin, name, OUT) == []
            assert lab.serving() == set(lab.names[1:])
            assert (await look(plugin))[name].serving is False
            assert await tell(plugin, name, BACK) == []
            assert lab.serving() == set(lab.names)

    assert set(got) <= set(lab.names), got
    assert lab.text() == start and lab.reloads() == 2
    assert sorted(os.listdir(lab.servers_dir)) == ["shop.conf"]


async def test_the_operators_own_words_are_kept_byte_for_byte(lab: NginxLab) -> None:
    a, b, c = lab.names
    start = f"# wiki/shop\n\tserver {a}  weight=2 max_fails=3\tfail_timeout=7s ; # ours  # since may\n\n"
    start += f"server {b}\n   max_fails=0;\nserver {c} down; # disk\n"
    lab.write(start)
    lab.reload()
    async with opened(lab) as plugin:
        assert await tell(plugin, a, Setting(FULL, 50)) == []
        shares = lab.shares()
        assert shares[a] == shares[b] and c not in shares
        assert await tell(plugin, b, OUT) == []
        assert f"\tserver {a}  weight=100 max_fails=3\tfail_timeout=7s ; # ours  # since may  # lb-sidecar nominal=2 cut=50\n" in lab.body()
        assert (await look(plugin))[a].weight == 2
        for name in (a, b):
            assert await tell(plugin, name, BACK) == []

    assert lab.text() == start


async def test_an_operators_down_survives_all_that_we_do(lab: NginxLab) -> None:
    a, b, c = lab.names
    lab.edit(c, lambda _: f"server {c} max_fails=0 down;\n")
    lab.reload()
    start = lab.text()
    async with opened(lab) as plugin:
        assert (await look(plugin))[c].operator is MAINTENANCE
        refused = await tell(plugin, c, BACK, on=OPERATOR)
        assert len(refused) == 1 and "by hand" in refused[0].reason
        for want in (OUT, BACK):
            assert await tell(plugin, c, want) == []
            assert (await look(plugin))[c].operator is MAINTENANCE and c not in lab.serving()
        assert await tell(plugin, a, OUT) == []
        refused = await tell(plugin, b, OUT)
        assert len(refused) == 1 and "502" in refused[0].reason
        assert await tell(plugin, a, BACK) == []

    assert lab.text() == start


async def test_our_maintenance_is_the_operators_axis(lab: NginxLab) -> None:
    name = lab.names[0]
    async with opened(lab) as plugin:
        assert await tell(plugin, name, OUT, on=OPERATOR) == []
        assert f"server {name} max_fails=0 down;  # lb-sidecar maintenance\n" in lab.text()
        seen = (await look(plugin))[name]
        assert seen.operator is MAINTENANCE and seen.ours == BACK and seen.serving is False
        assert await tell(plugin, name, BACK, on=OPERATOR) == []
        assert (await look(plugin))[name].operator is READY and lab.serving() == set(lab.names)


async def test_several_changes_are_one_reload_and_none_is_none(lab: NginxLab) -> None:
    async with opened(lab) as plugin:
        seen = await look(plugin)
        batch = [Change(Ref(POOL, name), OUT, expect=seen[name]) for name in lab.names]
        refused = await plugin.apply(batch)
        assert [refusal.change for refusal in refused] == [batch[2]] and "502" in refused[0].reason
        assert lab.reloads() == 1 and lab.serving() == {lab.names[2]}
        seen = await look(plugin)
        trade = [
            Change(Ref(POOL, lab.names[2]), OUT, expect=seen[lab.names[2]]),
            Change(Ref(POOL, lab.names[0]), BACK, expect=seen[lab.names[0]]),
        ]
        assert await plugin.apply(trade) == [] and lab.serving() == {lab.names[0]}
        assert await tell(plugin, lab.names[1], OUT) == [] and await plugin.apply([]) == []
        assert lab.reloads() == 2


@pytest.mark.parametrize("keep", [0.0, 0.4, 0.97])
async def test_a_truncated_include_is_seen_told_and_never_overwritten(lab: NginxLab, keep: float) -> None:
    async with opened(lab) as plugin:
        await tell(plugin, lab.names[0], OUT)
        whole = lab.file.read_bytes()
        os.truncate(lab.file, int(len(whole) * keep))
        cut = lab.file.read_bytes()

        seen = await look(plugin)
        assert set(seen) == set(lab.names), "nginx still runs them all"
        assert [seen[name].serving for name in lab.names] == [False, True, True]
        assert all(str(lab.file) in (seen[name].writable or "") for name in lab.names)
        refused = await tell(plugin, lab.names[0], BACK)
        assert len(refused) == 1 and refused[0].reason == seen[lab.names[0]].writable
        assert lab.file.read_bytes() == cut and lab.reloads() == 1

        lab.file.write_bytes(whole)
        assert await tell(plugin, lab.names[0], BACK) == []


async def test_a_missing_include_is_an_error_with_its_name_to_a_newcomer(lab: NginxLab) -> None:
    lab.file.unlink()
    async with opened(lab) as plugin:
        with pytest.raises(BalancerError, match=r"shop\.conf does not exist"):
            await look(plugin)
        lab.file.symlink_to(lab.config)
        with pytest.raises(BalancerError, match="symbolic link"):
            await look(plugin)


async def test_a_full_disk_leaves_the_old_file(lab: NginxLab) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root; test_files has the same with a limit on file size")
    text = lab.text()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k,mode=755", "tmpfs", lab.servers_dir], check=True, timeout=60)
    try:
        lab.write(text)
        lab.reload()
        async with opened(lab) as plugin:
            with (lab.servers_dir / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="space"):
                while True:
                    filler.write(b"x" * 512)
            with pytest.raises(BalancerError, match="the disk is full"):
                await tell(plugin, lab.names[0], OUT)
            assert lab.text() == text and lab.reloads() == 1 and lab.serving() == set(lab.names)
            assert sorted(os.listdir(lab.servers_dir)) == ["filler", "shop.conf"]

            (lab.servers_dir / "filler").unlink()
            assert await tell(plugin, lab.names[0], OUT) == []
            assert lab.serving() == set(lab.names[1:])
    finally:
        subprocess.run(["umount", "-l", lab.servers_dir], check=True, timeout=60)


async def test_a_configuration_broken_elsewhere_is_left_alone(lab: NginxLab) -> None:
    async with opened(lab) as plugin:
        before = lab.file.stat()
        lab.configure(more="  no_such_directive on;\n")
        with pytest.raises(BalancerError, match=r"broken by something else.*no_such_directive"):
            await tell(plugin, lab.names[0], OUT)
        assert lab.file.stat() == before and lab.reloads() == 0

        lab.configure()
        assert await tell(plugin, lab.names[0], OUT) == []


async def test_a_reload_that_succeeds_and_does_not_load_is_rolled_back(lab: NginxLab) -> None:
    start = lab.text()
    with socket.socket() as taken:
        port = free_port()
        taken.bind(("127.0.0.1", port))
        taken.listen()
        lab.configure(more=f"  server {{ listen 127.0.0.1:{port}; }}\n")
        async with opened(lab) as plugin:
            with pytest.raises(BalancerError, match=r"the old files are back: .*bind"):
                await tell(plugin, lab.names[0], OUT)
            assert lab.text() == start and lab.serving() == set(lab.names)
            seen = (await look(plugin))[lab.names[0]]
            assert seen.ours == BACK and seen.serving is True

            taken.close()
            assert await tell(plugin, lab.names[0], OUT) == []
            assert lab.serving() == set(lab.names[1:])


async def test_a_hand_edit_holds_everything_until_it_is_adopted(lab: NginxLab) -> None:
    a, b, c = lab.names
    async with opened(lab) as plugin:
        await tell(plugin, a, OUT)
        assert await plugin.diff(POOL) == ""
        lab.edit(c, lambda _: f"server {c} weight=3 max_fails=0; # bigger now\n")
        edited = lab.text()

        seen = await look(plugin)
        told = f"{lab.file} was edited by hand; review with `lb-sidecar adopt {POOL} --diff`"
        assert {s.writable for s in seen.values()} == {told}
        assert seen[a].ours == OUT and seen[a].serving is False and seen[c].serving is True
        for name, want in ((a, BACK), (b, OUT)):
            assert [refusal.reason for refusal in await tell(plugin, name, want)] == [told]
        assert lab.text() == edited and lab.reloads() == 1
        diff = await plugin.diff(POOL)
        assert f"-server {c} max_fails=0;\n" in diff and f"+server {c} weight=3 max_fails=0; # bigger now\n" in diff

    async with opened(lab) as other:
        assert await other.diff(POOL) == diff
        await other.adopt(POOL)
        assert await other.diff(POOL) == "" and lab.reloads() == 2
        shares = lab.shares()
        assert shares[c] == 3 * shares[b] and a not in shares
        seen = await look(other)
        assert seen[c].weight == 3 and seen[c].writable is None
        await other.adopt(POOL)
        assert lab.reloads() == 2
        assert await tell(other, a, BACK) == []

    assert lab.text() == f"server {a} max_fails=0;\nserver {b} max_fails=0;\nserver {c} weight=3 max_fails=0; # bigger now\n"


async def test_an_edit_that_nginx_refuses_is_not_adopted(lab: NginxLab) -> None:
    async with opened(lab) as plugin:
        await tell(plugin, lab.names[0], OUT)
        lab.write(lab.text() + "server 10.0.0.1:1 bogus;\n")
        edited = lab.text()

        with pytest.raises(BalancerError, match="bogus"):
            await plugin.adopt(POOL)
        assert lab.text() == edited and lab.reloads() == 1
        with pytest.raises(BalancerError, match="there are: shop"):
            await plugin.adopt("shop2")


async def test_a_plain_edit_before_our_first_act_is_no_edit(lab: NginxLab) -> None:
    async with opened(lab) as plugin:
        await tell(plugin, lab.names[0], OUT)
        await tell(plugin, lab.names[0], BACK)
        lab.edit(lab.names[1], lambda line: line.replace(";", " weight=5;"))

        seen = (await look(plugin))[lab.names[1]]
        assert seen.writable is None and seen.weight == 5 and "newer than what nginx runs" in seen.remark
        assert await tell(plugin, lab.names[0], OUT) == []
        assert (await look(plugin))[lab.names[1]].remark == ""


async def test_a_restarted_master_is_another_generation_and_keeps_our_ejection(lab: NginxLab) -> None:
    name = lab.names[0]
    async with opened(lab) as plugin:
        await tell(plugin, name, OUT)
        before = (await look(plugin))[name]
        lab.stop()
        with pytest.raises(BalancerError, match="nginx does not run"):
            await look(plugin)
        lab.start()

        after = (await look(plugin))[name]
        assert after.generation != before.generation and after.ours == OUT and after.serving is False
        stale = await plugin.apply([Change(Ref(POOL, name), BACK, expect=before)])
        assert len(stale) == 1 and "generation" in stale[0].reason
        reloads = lab.reloads()
        lab.reload()
        assert (await look(plugin))[name] == after, "a reload by somebody else loses nothing"
        assert await tell(plugin, name, BACK) == [] and lab.reloads() == reloads + 2


async def test_an_act_cut_off_before_its_reload_is_finished_by_the_next_life(lab: NginxLab) -> None:
    name = lab.names[0]
    include = parse(lab.text())
    lab.write(render(set_ours(include, include.named(name)[0], OUT)))
    written = lab.text()
    async with opened(lab) as plugin:
        seen = (await look(plugin))[name]
        assert seen.ours not in (OUT, BACK) and seen.serving is None and seen.writable is None
        assert await tell(plugin, name, OUT) == []
        assert lab.text() == written and lab.reloads() == 1 and name not in lab.serving()
        assert (await look(plugin))[name].ours == OUT

    lab.write(render(set_ours(parse(written), parse(written).servers[0], BACK)))  # cut off, where index 0 is replaced below
    async with opened(lab) as plugin:
        assert (await look(plugin))[name].ours == OUT, "nginx still runs our ejection"
        assert await tell(plugin, name, BACK) == [] and name in lab.serving()


async def test_a_pid_that_is_not_nginx_is_never_signalled(lab: NginxLab) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    right = lab.pid_file.read_text()
    try:
        async with opened(lab) as plugin:
            change = Change(Ref(POOL, lab.names[0]), OUT, expect=(await look(plugin))[lab.names[0]])
            nonsense = [(text, "no process id") for text in ("1\n", "", "-5", "x" * 60)]
            for text, why in [(str(bystander.pid), "no nginx master"), *nonsense]:
                lab.pid_file.write_text(text)
                with pytest.raises(BalancerError, match=why):
                    await plugin.apply([change])
            lab.pid_file.write_text(str(min(lab.active_workers())))
            with pytest.raises(BalancerError, match="no nginx master"):
                await plugin.apply([change])
        assert bystander.poll() is None and lab.reloads() == 0
    finally:
        lab.pid_file.write_text(right)
        bystander.kill()
        bystander.wait()


async def test_after_a_binary_upgrade_the_new_master_is_told(lab: NginxLab) -> None:
    with _two_masters(lab) as (old, _):
        async with opened(lab) as plugin:
            before = (await look(plugin))[lab.names[0]]
            assert f"nginx master {old} still serves" in before.remark
            os.kill(old, signal.SIGQUIT)
            until(lambda: _is_gone(old) and lab.answers(), "the new nginx serves alone")

            assert await tell(plugin, lab.names[0], OUT) == []
            assert lab.serving() == set(lab.names[1:])
            assert (await look(plugin))[lab.names[0]].remark == ""


async def test_a_binary_upgrade_that_is_given_up_leaves_nobody_in_whom_only_the_new_master_had_out(lab: NginxLab) -> None:
    with _two_masters(lab) as (old, new):
        async with opened(lab) as plugin:
            assert await tell(plugin, lab.names[0], OUT) == []
            os.kill(new, signal.SIGQUIT)
            until(lambda: _pid_in(lab.pid_file) == old, "the old nginx is the only one again")
            until(lambda: _is_gone(new), "the new nginx is gone")

            async with opened(lab) as newcomer:
                for each in (plugin, newcomer):
                    seen = (await look(each))[lab.names[0]]
                    assert seen.ours != OUT and seen.serving is None and "newer than what nginx runs" in seen.remark
            assert await tell(plugin, lab.names[0], OUT) == []
            assert lab.serving() == set(lab.names[1:])


@contextmanager
def _two_masters(lab: NginxLab) -> Iterator[tuple[int, int]]:
    """An old and a new nginx, in the middle of a binary upgrade; their pids."""
    lab.stop()
    subprocess.run(lab.argv(), check=True, cwd=lab.home, timeout=60, stdin=subprocess.DEVNULL)  # as a daemon: only those can upgrade
    until(lambda: lab.pid_file.exists() and lab.pid_file.read_text().strip() and lab.answers(), "nginx serves")
    pids = [int(lab.pid_file.read_text())]
    try:
        os.kill(pids[0], signal.SIGUSR2)
        until(lambda: _pid_in(lab.pid_file) not in (None, pids[0]), "a second master runs")
        pids.append(int(lab.pid_file.read_text()))
        until(lambda: len(process.find_master(lab.pid_file, lab.binary).workers) == lab.workers, "its workers run")
        yield pids[0], pids[1]
    finally:
        for pid in pids:
            if not _is_gone(pid):
                os.kill(pid, signal.SIGTERM)
        until(lambda: all(_is_gone(pid) for pid in pids), "both are gone")


def _pid_in(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def test_a_reload_by_command_counts_only_when_it_loads(lab: NginxLab) -> None:
    start, name = lab.text(), lab.names[0]
    hup = ["/bin/sh", "-c", f"kill -HUP $(cat {lab.pid_file})"]
    async with opened(lab, reload=hup, test=lab.argv("-t")) as plugin:
        assert await tell(plugin, name, OUT) == [] and name not in lab.serving()
        assert await tell(plugin, name, BACK) == [] and lab.text() == start
    for command, why in (
        (["/bin/false"], "failed with code 1"),
        (["/no/such/program"], "cannot run"),
        (["/bin/true"], "the old files are back: no new worker within 5 s"),
    ):
        async with opened(lab, reload=command) as plugin:
            with pytest.raises(BalancerError, match=why):
                await tell(plugin, name, OUT)
            assert lab.text() == start
            assert (await look(plugin))[name].ours == BACK
    async with opened(lab, test=["/bin/sh", "-c", "echo no luck; exit 3"]) as plugin:
        with pytest.raises(BalancerError, match="no luck"):
            await tell(plugin, name, OUT)
    assert lab.reloads() == 2 and lab.serving() == set(lab.names)


async def test_a_reload_that_comes_and_then_fails_is_not_taken_for_the_old_state(lab: NginxLab) -> None:
    start, name, flag = lab.text(), lab.names[0], lab.home / "failed"
    command = f"kill -HUP $(cat {lab.pid_file}); sleep 1; test -e {flag} || {{ touch {flag}; exit 7; }}"
    async with opened(lab, reload=["/bin/sh", "-c", command]) as plugin:
        with pytest.raises(BalancerError, match="code 7"):
            await tell(plugin, name, OUT)
        assert lab.text() == start and lab.reloads() == 2
        until(lambda: lab.serving() == set(lab.names), "nginx runs the old file again")
        assert (await look(plugin))[name].serving is True


async def test_a_result_that_nginx_rejects_is_refused_and_the_old_file_is_back(lab: NginxLab) -> None:
    start, name, flag = lab.text(), lab.names[0], lab.home / "second"
    second_fails = f"if test -e {flag}; then echo 'nginx: [emerg] invalid parameter'; exit 1; fi; touch {flag}"
    async with opened(lab, test=["/bin/sh", "-c", second_fails]) as plugin:
        refused = await tell(plugin, name, OUT)
        assert len(refused) == 1 and "the old file is back: nginx: [emerg] invalid parameter" in refused[0].reason
        assert lab.text() == start and lab.reloads() == 0
        assert (await look(plugin))[name].ours == BACK


async def test_an_edit_that_falls_into_our_act_is_never_overwritten(lab: NginxLab) -> None:
    name, flag = lab.names[0], lab.home / "second"
    start = lab.text()
    edit = f"echo '# mine' >> {lab.file}"
    async with opened(lab, test=["/bin/sh", "-c", edit]) as plugin:
        with pytest.raises(BalancerError, match="changed by somebody else"):
            await tell(plugin, name, OUT)
    assert lab.text() == start + "# mine\n"
    lab.write(start)
    async with opened(lab, test=["/bin/sh", "-c", f"if test -e {flag}; then {edit}; exit 1; fi; touch {flag}"]) as plugin:
        with pytest.raises(BalancerError, match="left as edited"):
            await tell(plugin, name, OUT)
        assert "# lb-sidecar ejected" in lab.text() and lab.text().endswith("# mine\n")
        assert "edited by hand" in ((await look(plugin))[name].writable or "") and lab.reloads() == 0


async def test_reloads_wait_while_old_workers_pile_up(tmp_path: Path) -> None:
    lab = NginxLab(tmp_path, "1.22", workers=1)
    slow: list[socket.socket] = []
    try:
        for _ in range(11):
            client = socket.create_connection(("127.0.0.1", lab.port), 20)
            client.sendall(b"GET / HTTP/1.0\r\n")  # and never the end of it
            slow.append(client)
            lab.ask()
            lab.reload()
        reloads = lab.reloads()
        async with opened(lab) as plugin:
            seen = (await look(plugin))[lab.names[0]]
            assert "11 old workers" in seen.remark
            refused = await tell(plugin, lab.names[0], OUT)
            assert len(refused) == 1 and "11 workers" in refused[0].reason and "worker_shutdown_timeout" in refused[0].reason
            assert lab.reloads() == reloads and "lb-sidecar" not in lab.text()
            for client in slow:
                client.close()
            async with asyncio.timeout(60):
                while (await look(plugin))[lab.names[0]].remark:
                    await asyncio.sleep(0.05)
            assert await tell(plugin, lab.names[0], OUT) == []
    finally:
        for client in slow:
            client.close()
        lab.close()


async def test_weights_of_a_hashing_upstream_are_not_cut(lab: NginxLab) -> None:
    lab.configure(inside="hash $request_uri;")
    lab.reload()
    async with opened(lab) as plugin:
        assert (await look(plugin))[lab.names[0]].grain_pct == 100
        refused = await tell(plugin, lab.names[0], Setting(FULL, 50))
        assert len(refused) == 1 and "hashes" in refused[0].reason
        assert await tell(plugin, lab.names[0], OUT) == []


async def test_servers_outside_our_file_are_seen_and_not_written(lab: NginxLab) -> None:
    a, b, c = lab.names
    lab.write(f"server {a};\n")
    lab.configure(inside=f"server {b}; server {c} down;")
    lab.reload()
    async with opened(lab) as plugin:
        seen = await look(plugin)
        assert [seen[name].serving for name in lab.names] == [True, True, False]
        assert seen[c].operator is MAINTENANCE and "move its line to" in (seen[b].writable or "")
        assert len(await tell(plugin, b, OUT)) == 1
        assert await tell(plugin, a, OUT) == [] and lab.serving() == {b}


async def test_the_same_address_twice_is_told_not_guessed(lab: NginxLab) -> None:
    lab.write(lab.text() + f"server {lab.names[0]};\n")
    lab.reload()
    async with opened(lab) as plugin:
        assert "2 times" in ((await look(plugin))[lab.names[0]].writable or "")
        assert len(await tell(plugin, lab.names[0], OUT)) == 1 and lab.reloads() == 1


async def test_open_says_what_is_wrong_and_what_to_do(lab: NginxLab) -> None:
    for options, why in (
        ({"servers_dir": lab.home / "gone"}, "install -d"),
        ({"config": lab.home / "gone.conf"}, "gone.conf does not exist"),
        ({"binary": "/no/nginx"}, "name nginx's with `binary:"),
        ({"binary": "/bin/echo", "pid_file": lab.pid_file}, "is no nginx master|is not nginx"),
        ({"pid_file": lab.home / "gone.pid"}, "nginx does not run"),
    ):
        plugin = lab.plugin(**options)
        with pytest.raises(BalancerError, match=why):
            await plugin.open()
        await plugin.aclose()
    lab.servers_dir.chmod(0o777)
    with pytest.raises(BalancerError, match="chmod go-w"):
        await lab.plugin().open()
    lab.servers_dir.chmod(0o755)
    async with opened(lab) as plugin:
        assert await plugin.pools() == {POOL}
        assert plugin.lock_path() == str(lab.servers_dir / ".lb-sidecar.lock")


UNPRIVILEGED = """
import asyncio, os, sys
from lbplugins.api import BalancerError
from lbplugins.nginx import Nginx, NginxOptions
from lbplugins.values import NONE, Change, Ref, Setting
config, servers_dir, binary, home, name, please = sys.argv[1:]
asyncio.run(asyncio.sleep(0))
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)

async def act(**more):
    plugin = Nginx(NginxOptions.model_validate(
        {"config": config, "servers_dir": servers_dir, "binary": binary, "prefix": home, **more}))
    await plugin.open()
    ref = Ref("shop", name)
    seen = (await plugin.observe(frozenset({"shop"}), {}))[ref]
    print("writable:", seen.writable)
    try:
        print("apply:", [refusal.reason for refusal in await plugin.apply([Change(ref, Setting(NONE), expect=seen)])])
    except BalancerError as error:
        print("error:", error)
    print("ours:", (await plugin.observe(frozenset({"shop"}), {}))[ref].ours.serve)
    await plugin.aclose()

asyncio.run(act())
asyncio.run(act(reload=["/bin/touch", please]))
asyncio.run(act(reload=["/bin/touch", please], test=["/bin/true"]))
"""


@pytest.mark.parametrize("version", sorted(BINARIES))
def test_without_root_it_says_what_is_missing_and_works_through_a_helper(version: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    home = Path(tempfile.mkdtemp(prefix="lb-sidecar-nginx-"))
    lab = NginxLab(home, version)
    please, stop = lab.servers_dir / "please", threading.Event()

    def helper() -> None:
        while not stop.wait(0.02):
            if please.exists():
                please.unlink()
                assert lab.master is not None
                lab.master.send_signal(signal.SIGHUP)

    thread = threading.Thread(target=helper)
    try:
        for path in (lab.servers_dir, lab.file):
            os.chown(path, 65534, 65534)
        thread.start()
        argv = [lab.config, lab.servers_dir, lab.binary, home, lab.names[0], please]
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(UNPRIVILEGED), *map(str, argv)],
            capture_output=True,
            text=True,
            timeout=100,
            env={"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"]},
        )
        assert done.returncode == 0, done.stderr
        by_signal, by_own_test, by_helper = done.stdout.split("writable:")[1:]
        assert "user nobody may not signal nginx, which runs as root" in by_signal and "ours: full" in by_signal
        assert "give `test` a command that may" in by_own_test and "ours: full" in by_own_test
        assert by_helper.split() == ["None", "apply:", "[]", "ours:", "none"]
        assert lab.serving() == set(lab.names[1:]) and lab.reloads() == 1
        assert (lab.file.stat().st_uid, lab.file.stat().st_gid) == (65534, 65534)
    finally:
        stop.set()
        thread.join()
        lab.close()
        shutil.rmtree(home)
