"""The terminal commands against the real API over a real world: answers, exit codes, and messages that say what to do."""

from __future__ import annotations

import asyncio
import grp
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from aiohttp import web

from lbplugins.values import Operator
from sidecar.cli import client
from sidecar.cli.daemon import Misused, place
from sidecar.cli.show import Output
from sidecar.core.model import Configured, HoldName, Judgement
from sidecar.core.policy import Mode
from sidecar.web import models
from tests.cli.desk import LabDesk, busy, free_port, parsed, ran, serving
from tests.core.lab import good, refused
from tests.plugins.stranger import needs_root

_STATUS_AS_NOBODY = """
import contextlib, encodings.ascii, encodings.idna, io, os, sys
from sidecar.cli import main
words = ["status", "--api", sys.argv[1]]
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    main(["status", "--api", "unix:/nowhere"])
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.exit(main(words))
"""
"""Once as root, for all that must be imported: the interpreter itself may lie where nobody may look."""

SECRET = "nG7-xQ2_pLw9Zr4TvB8sKd3mYc6HjA1e"


@pytest.fixture
def lab() -> LabDesk:
    return LabDesk(4)


@pytest.fixture
async def api(lab: LabDesk, tmp_path: Path) -> AsyncIterator[str]:
    async with serving(lab, tmp_path) as address:
        yield address


# ---- status ----


async def test_status_of_a_calm_service_is_quiet(api: str) -> None:
    shown = await ran("status", "--api", api)

    assert shown.code == 0
    assert "shop  PASS" in shown.out
    assert "4 of 4 in rotation" in shown.out
    assert [line.split()[:2] for line in shown.out.splitlines() if "10.0.0." in line] == [[f"s{i}", f"10.0.0.{i}:80"] for i in range(1, 5)]
    assert "edge/shop" in shown.out
    assert "\x1b" not in shown.out
    assert shown.err == ""


async def test_status_says_who_is_out_and_why(lab: LabDesk, api: str) -> None:
    lab.answer(2, refused())
    lab.run(3.0)

    shown = await ran("status", "--api", api)

    (line,) = [line for line in shown.out.splitlines() if line.split()[:2] == ["s2", "10.0.0.2:80"]]
    assert "ejected" in line
    assert "none" in line
    assert "refused" in line and "times in a row" in line
    assert "WARN" in shown.out
    assert "3 of 4" in shown.out
    assert shown.code == 0


async def test_status_tells_a_hold_once_with_its_arithmetic(lab: LabDesk, api: str) -> None:
    for i in range(1, 5):
        lab.answer(i, refused())
    lab.run(3.0)

    shown = await ran("status", "--api", api)

    held = [line for line in shown.out.splitlines() if "held:" in line and "no_witness" in line]
    assert len(held) == 1
    assert "s1, s2, s3, s4" in held[0]
    assert shown.code == 1


async def test_status_says_what_the_balancer_says_of_those_it_has_out_itself(lab: LabDesk, api: str) -> None:
    lab.set_seen(3, serving=False, remark="own check DOWN")
    lab.run(3.0)

    shown = (await ran("status", "--api", api)).out

    (line,) = [line for line in shown.splitlines() if line.split()[:2] == ["s3", "10.0.0.3:80"]]
    assert "none" in line and line.endswith("edge: own check DOWN")
    assert "Out by:  edge: own check DOWN" in (await ran("explain", "shop/s3", "--api", api)).out


async def test_status_says_that_a_pool_takes_no_change_from_us(lab: LabDesk, api: str) -> None:
    lab.set_seen(3, writable="its file was edited by hand")
    lab.run(3.0)

    assert "answers, but takes no change from us: its file was edited by hand" in (await ran("status", "--api", api)).out


async def test_status_tells_a_freeze_once(api: str) -> None:
    assert (await ran("freeze", "shop", "--reason", "a move", "--api", api)).code == 0

    assert (await ran("status", "--api", api)).out.count("a move") == 1


async def test_status_as_json_is_the_apis_own(api: str) -> None:
    shown = await ran("status", "--api", api, "--json")

    found = models.Services.model_validate_json(shown.out)
    assert found.services["shop"].instances["s1"].judgement is Judgement.HEALTHY
    assert json.loads(shown.out)["sidecar"]["when"].endswith("Z")
    assert shown.out.count("\n") == 1


async def test_status_of_one_service_by_its_beginning(api: str) -> None:
    assert (await ran("status", "sh", "--api", api)).code == 0

    wrong = await ran("status", "blog", "--api", api)

    assert wrong.code == 2
    assert "there is no service 'blog'; known are shop" in wrong.err


class Screen(io.StringIO):
    """A terminal's end of what is printed."""

    def isatty(self) -> bool:
        return True


async def test_watching_on_a_terminal_survives_the_daemon(lab: LabDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    screen = Screen()
    async with serving(lab, tmp_path) as api:
        args = parsed("status", "--watch", "--api", api)
        task = asyncio.ensure_future(args.func(args, Output("table", screen, io.StringIO())))
        await _until(lambda: "edge/shop" in screen.getvalue())
    await _until(lambda: "no daemon answers" in screen.getvalue())
    told = len(screen.getvalue())
    async with serving(lab, tmp_path):
        await _until(lambda: "edge/shop" in screen.getvalue()[told:])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert "\x1b[?1049h" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[?25h\x1b[?1049l")


async def test_colour_is_for_terminals_that_want_it(lab: LabDesk, api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    args = parsed("status", "--api", api)
    coloured, plain = Screen(), Screen()

    await args.func(args, Output("table", coloured, io.StringIO()))
    monkeypatch.setenv("NO_COLOR", "1")
    await args.func(args, Output("table", plain, io.StringIO()))

    assert "\x1b[32m" in coloured.getvalue()
    assert "\x1b[32m" not in plain.getvalue()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


async def test_watching_goes_on_until_it_is_ended(api: str) -> None:
    args = parsed("status", "--watch", "--api", api, "--json")
    out = io.StringIO()
    task = asyncio.ensure_future(args.func(args, Output("json", out, io.StringIO())))
    async with asyncio.timeout(30):
        while out.getvalue().count("\n") < 2:
            await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert all(models.Services.model_validate_json(line) for line in out.getvalue().splitlines())


# ---- explain ----


async def test_explain_says_would_of_what_is_only_told(lab: LabDesk, api: str) -> None:
    services = {name: replace(service, mode=Mode.OBSERVE) for name, service in lab.policy.services.items()}
    lab.policy = replace(lab.policy, services=services)
    lab.feed(Configured(lab.policy, lab.now))
    lab.answer(3, refused())
    lab.run(3.0)

    told = await ran("explain", "shop/s3", "--api", api)

    assert "It would be ejected" in told.out and "gets all its traffic" in told.out


async def test_explain_tells_the_story_of_an_ejection(lab: LabDesk, api: str) -> None:
    lab.answer(3, refused())
    lab.run(3.0)

    told = await ran("explain", "shop/s3", "--api", api)

    assert told.code == 0
    assert told.out.startswith("shop/s3  10.0.0.3:80\n")
    assert "It is ejected" in told.out
    assert "gets no traffic" in told.out
    assert "Next:" in told.out and "good answers in a row" in told.out
    story = told.out[told.out.index("What happened") : told.out.index("Facts now")]
    assert story.index("healthy") < story.index("suspect") < story.index("ejected:")
    assert "rule:consecutive" in story
    assert "evidence:" in story
    assert "ours none" in told.out


async def test_explain_tells_what_keeps_everything_in(lab: LabDesk, api: str) -> None:
    for i in range(1, 5):
        lab.answer(i, refused())
    lab.run(3.0)

    told = await ran("explain", "shop/10.0.0.2:80", "--api", api)

    assert "Held:" in told.out and "no_witness" in told.out
    assert "all 4 instances fail" in told.out


async def test_explain_of_another_time_tells_what_was_then(lab: LabDesk, api: str) -> None:
    lab.answer(3, refused())
    lab.run(13.0)
    out_at = lab.wall_of(lab.now).isoformat()
    lab.answer(3, good())
    lab.run(30.0)

    now, then = await ran("explain", "shop/s3", "--api", api), await ran("explain", "shop/s3", "--at", out_at, "--api", api)

    assert "It is healthy" in now.out
    assert "it was ejected, since" in then.out
    assert "Facts now" not in then.out
    assert "returned" not in then.out


async def test_explain_as_json_has_instance_and_decisions(api: str) -> None:
    told = json.loads((await ran("explain", "shop/s1", "--api", api, "-o", "json")).out)

    assert models.Instance.model_validate(told["instance"]).instance == "10.0.0.1:80"
    assert models.Decisions.model_validate(told["decisions"]).decisions[0].service == "shop"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("s1", "'s1' is not SERVICE/NAME: did you mean shop/s1?"),
        ("nothing", "as shop/web1 or shop/10.0.0.5:8080"),
        ("shop/", "is not SERVICE/NAME"),
        ("shop/x", "shop has no instance 'x'; it has shop/s1 (10.0.0.1:80), shop/s2"),
        ("shop/s", "'shop/s' could be shop/s1 (10.0.0.1:80), shop/s2"),
        ("shop/10.0.0", "write more of it"),
        ("shop/10.0.0.1:8", "shop has no instance '10.0.0.1:8'"),
        ("shop/../../x", "shop has no instance '../../x'"),
    ],
)
async def test_a_name_that_does_not_fit_one_instance_is_wrong_use(api: str, name: str, says: str) -> None:
    told = await ran("explain", name, "--api", api)

    assert told.code == 2
    assert says in told.err
    assert told.out == ""


@pytest.mark.parametrize("name", ["shop/s1", "shop/shop/s1", "shop/edge/shop/s1", "sh/10.0.0.1", "shop/10.0.0.1:80"])
async def test_every_form_of_a_name_finds_it(api: str, name: str) -> None:
    assert (await ran("explain", name, "--api", api)).out.startswith("shop/s1  10.0.0.1:80")


# ---- history ----


async def test_history_is_the_log_newest_last(lab: LabDesk, api: str) -> None:
    lab.answer(1, refused())
    lab.run(3.0)

    told = await ran("history", "--api", api)

    assert told.code == 0
    assert told.out.index("healthy") < told.out.rindex("ejected")


async def test_history_keeps_to_what_is_asked(lab: LabDesk, api: str) -> None:
    lab.answer(1, refused())
    lab.answer(2, refused())
    lab.run(4.0)

    one = json.loads((await ran("history", "shop/s1", "--by", "rule", "--json", "--api", api)).out)
    few = await ran("history", "shop", "--limit", "2", "--api", api)
    none = await ran("history", "--until", "2001-01-01T00:00:00Z", "--api", api)

    assert {d["instance"] for d in one["decisions"]} == {"10.0.0.1:80"}
    assert {d["by"].partition(":")[0] for d in one["decisions"]} == {"rule"}
    assert "older ones are left out: use --until" in few.out
    assert "nothing is on record that matches" in none.out


async def test_in_observe_mode_an_act_is_said_to_be_on_record_only_and_is_not_waited_for(lab: LabDesk, api: str) -> None:
    shop = lab.world.policy.services["shop"]
    lab.feed(Configured(replace(lab.world.policy, services={"shop": replace(shop, mode=Mode.OBSERVE)}), lab.now))

    told = await ran("drain", "shop/s1", "--wait", "10m", "--api", api)
    ready = await ran("ready", "shop/s1", "--api", api)

    assert told.code == 1 and "mode is observe: that is on record, and nothing is written to the balancer" in told.out
    assert "not every balancer showed it" not in told.err
    assert ready.code == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["history", "--limit", "0"], "from 1 to 1000"),
        (["history", "--since", "soon"], "--since is 'soon': write it as"),
        (["drain", "shop/s1", "--ttl", "15"], "--ttl"),
        (["drain", "shop/s1", "--ttl", "31d"], "at most"),
        (["drain", "shop/s1", "--until", "2001-01-01T00:00:00Z"], "that is over"),
        (["drain", "shop/s1", "--wait", "1h"], "--wait is 1h"),
        (["drain", "shop/s1", "--owner", "a b"], "is no owner"),
        (["drain", "shop/s1", "--reason", "x" * 501], "500 characters"),
        (["drain", "shop/s1", "shop/s99"], "shop has no instance 's99'"),
        (["freeze", "blog"], "there is no service 'blog'"),
        (["adopt", "nothing"], "there is no pool 'nothing'; known are edge/shop"),
        (["status", "--api", "ftp://x"], "write it as http://127.0.0.1:8642"),
        (["status", "--api", "http://u:p@x"], "LB_SIDECAR_TOKEN"),
        (["status", "--api", "http://x:99999"], "write it as http://127.0.0.1:8642"),
    ],
)
async def test_wrong_use_is_told_before_anything_is_done(lab: LabDesk, api: str, words: list[str], says: str) -> None:
    told = await ran(*words, *([] if "--api" in words else ["--api", api]))

    assert told.code == 2
    assert says in told.err
    assert lab.told("operator") == []


# ---- acts ----


async def test_drain_takes_it_out_and_ready_ends_it(lab: LabDesk, api: str) -> None:
    drained = await ran("drain", "shop/s1", "--reason", "deploy 42", "--ttl", "15m", "--wait", "60s", "--api", api)

    assert drained.code == 0
    assert "draining" in drained.out and "deploy 42" in drained.out and "every balancer shows it" in drained.out
    assert lab.seen(1).operator is Operator.DRAINING
    (override,) = lab.instance(1).overrides.values()
    assert override.until is not None and override.until - override.at == pytest.approx(900.0)

    ended = await ran("ready", "shop/s1", "--wait", "60s", "--api", api)

    assert ended.code == 0
    assert lab.seen(1).operator is Operator.READY
    assert not lab.instance(1).overrides


async def test_maint_of_several_goes_one_after_the_other(lab: LabDesk, api: str) -> None:
    told = await ran("maint", "shop/s1", "shop/s2", "shop/10.0.0.1:80", "--wait", "30s", "--api", api)

    assert told.code == 0
    assert [lab.seen(i).operator.value for i in (1, 2, 3)] == ["maintenance", "maintenance", "ready"]
    assert len(lab.told("operator")) == 2


async def test_a_guard_that_refuses_says_why_and_how_to_pass_it(lab: LabDesk, api: str) -> None:
    told = await ran("maint", "shop/s1", "shop/s2", "shop/s3", "shop/s4", "--api", api)

    assert told.code == 1
    assert "shop/s4: refused by min_healthy: 0 of " in told.err
    assert "--force does it nevertheless" in told.err
    assert lab.seen(4).operator is Operator.READY
    assert told.out.count("put in maintenance") == 3

    forced = await ran("maint", "shop/s4", "--force", "--api", api)

    assert forced.code == 0
    lab.run(2.0)
    assert lab.seen(4).operator is Operator.MAINTENANCE


async def test_a_refusal_as_json_is_the_apis_error(lab: LabDesk, api: str) -> None:
    await ran("maint", "shop/s1", "shop/s2", "shop/s3", "--api", api)

    told = await ran("drain", "shop/s4", "--json", "--api", api)

    error = models.Error.model_validate_json(told.out)
    assert (told.code, error.status, error.hold) == (1, 409, HoldName.MIN_HEALTHY)


async def test_waiting_in_vain_is_a_bad_answer(lab: LabDesk, api: str) -> None:
    busy(lab, 1, 7)

    told = await ran("drain", "shop/s1", "--wait", "10ms", "--api", api)

    assert told.code == 1
    assert "not every balancer showed it within 0.01 s" in told.err
    assert "lb-sidecar explain shop/s1" in told.err


async def test_waiting_in_vain_for_one_of_several_names_that_one(lab: LabDesk, api: str) -> None:
    busy(lab, 2, 7)

    told = await ran("drain", "shop/s1", "shop/s2", "--wait", "10ms", "--api", api)

    assert told.code == 1
    assert "shop/s2: not every balancer showed it" in told.err
    assert "shop/s1: not every" not in told.err


async def test_ready_tells_whose_word_is_left(lab: LabDesk, api: str) -> None:
    await ran("drain", "shop/s1", "--owner", "deploy-42", "--reason", "release", "--api", api)

    told = await ran("ready", "shop/s1", "--owner", "ann", "--api", api)

    assert "it stays draining by operator:" in told.out
    assert "release; `lb-sidecar ready shop/s1 --owner deploy-42` ends that too" in told.out
    assert (await ran("ready", "shop/s1", "--owner", "deploy-42", "--api", api)).code == 0
    lab.run(2.0)
    assert lab.seen(1).operator is Operator.READY


async def test_freeze_and_unfreeze(lab: LabDesk, api: str) -> None:
    assert "shop frozen by" in (await ran("freeze", "shop", "--reason", "migration", "--ttl", "1h", "--api", api)).out
    lab.answer(1, refused())
    lab.run(5.0)
    shown = await ran("status", "--api", api)
    assert "frozen until" in shown.out and "migration" in shown.out
    assert lab.out() == []

    assert "shop unfrozen by" in (await ran("unfreeze", "shop", "--api", api)).out
    lab.run(5.0)
    assert lab.out() == [1]

    again = await ran("unfreeze", "shop", "--api", api)
    assert again.code == 1
    assert "not frozen" in again.err


async def test_freeze_of_everything_needs_no_name(lab: LabDesk, api: str) -> None:
    assert "everything frozen" in (await ran("freeze", "--api", api)).out
    assert "" in lab.world.freezes


async def test_adopt_shows_the_difference_first(api: str) -> None:
    assert "+ server b (shown for edge/shop)" in (await ran("adopt", "shop", "--diff", "--api", api)).out
    assert "+ server b (taken for edge/shop)" in (await ran("adopt", "edge/shop", "--api", api)).out


async def test_reload_tells_every_problem(lab: LabDesk, api: str) -> None:
    assert (await ran("reload", "--api", api)).out == "the new configuration is in force\n"

    lab.problems = ["lb-sidecar.yaml:3: no plugin 'haprox', did you mean 'haproxy'?", "lb-sidecar.yaml:9: unknown key 'prob'"]
    told = await ran("reload", "--api", api)

    assert told.code == 1
    assert "did you mean 'haproxy'?" in told.err and "unknown key 'prob'" in told.err
    assert "the old configuration stays in force" in told.err


# ---- who is asked, and with which token ----


async def test_nobody_at_the_socket_is_told_with_the_cure(tmp_path: Path) -> None:
    told = await ran("status", "--api", f"unix:{tmp_path}/api.sock")

    assert told.code == 1
    assert f"no daemon answers at {tmp_path}/api.sock: there is no such socket. Start the daemon with `lb-sidecar run`" in told.err


@needs_root
@pytest.mark.parametrize("is_shut", [False, True], ids=["the socket", "its folder"])
def test_who_may_not_use_the_socket_is_told_that_and_not_that_nobody_answers(is_shut: bool) -> None:
    folder = Path(tempfile.mkdtemp(prefix="lbc"))
    try:
        folder.chmod(0o755)
        (folder / "run").mkdir(mode=0o700 if is_shut else 0o755)
        path = folder / "run" / "api.sock"
        with socket.socket(socket.AF_UNIX) as daemon:
            daemon.bind(str(path))
            daemon.listen()
            path.chmod(0o660)
            os.chown(path.parent if is_shut else path, 0, grp.getgrnam("daemon").gr_gid)
            done = subprocess.run([sys.executable, "-c", _STATUS_AS_NOBODY, f"unix:{path}"], capture_output=True, text=True, timeout=60)
    finally:
        shutil.rmtree(folder)

    assert done.returncode == 1 and "no daemon answers" not in done.stderr, done.stderr
    what = f"the folder {path.parent}, in which the socket api.sock is" if is_shut else f"the socket {path}"
    assert f"nobody may not use {what}: permission denied" in done.stderr
    assert "sudo lb-sidecar" in done.stderr and "`usermod -aG daemon nobody`" in done.stderr


async def test_a_socket_left_over_is_told_from_one_that_never_was(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "api.sock"))
    left.close()
    (tmp_path / "file").write_text("x")

    assert "left over from a daemon that is gone" in (await ran("status", "--api", str(tmp_path / "api.sock"))).err
    assert "this is no socket" in (await ran("status", "--api", str(tmp_path / "file"))).err


async def test_nobody_at_the_port_is_told_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("LB_SIDECAR_API", f"http://127.0.0.1:{port}")

    told = await ran("status")

    assert told.code == 1
    assert "nothing listens there. Start it with `lb-sidecar run`; the place comes from LB_SIDECAR_API" in told.err


async def test_another_program_at_the_port_is_not_believed(tmp_path: Path) -> None:
    port = free_port()
    app = web.Application()
    app.router.add_get("/api/v1/services", _some_page)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        told = await ran("status", "--api", f"127.0.0.1:{port}")
        missing = await ran("reload", "--api", f"127.0.0.1:{port}")
    finally:
        await runner.cleanup()

    assert (told.code, missing.code) == (1, 1)
    assert "another program or version?" in told.err
    assert "not as lb-sidecar does: is this its address?" in missing.err


async def _some_page(request: web.Request) -> web.Response:
    return web.Response(text="<html>hello</html>")


async def test_over_tcp_reading_needs_no_token_but_acting_does(lab: LabDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    (tmp_path / "token").write_text(SECRET + "\n")
    tokens = {"deploy": {"secret": f"file:{tmp_path}/token", "may": ["read", "drain"], "services": ["shop"]}}
    async with serving(lab, tmp_path, listen=f"127.0.0.1:{port}", tokens=tokens):
        api = f"http://127.0.0.1:{port}"
        read = await ran("status", "--api", api)
        refused_one = await ran("drain", "shop/s1", "--api", api)
        monkeypatch.setenv("LB_SIDECAR_TOKEN", f"file:{tmp_path}/token")
        drained = await ran("drain", "shop/s1", "--api", api)
        frozen = await ran("freeze", "--api", api)
        monkeypatch.setenv("LB_SIDECAR_TOKEN", SECRET)
        literal = await ran("status", "--api", api)
        monkeypatch.setenv("LB_SIDECAR_TOKEN", f"file:{tmp_path}/none")
        missing = await ran("status", "--api", api)

    assert (read.code, refused_one.code, drained.code, frozen.code, literal.code, missing.code) == (0, 1, 0, 1, 2, 2)
    assert "LB_SIDECAR_TOKEN=file:/path" in refused_one.err
    assert "token:deploy" in drained.out
    assert SECRET not in literal.err
    assert "No such file" in missing.err


async def test_a_token_never_travels_in_the_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    monkeypatch.setenv("LB_SIDECAR_TOKEN", "env:MY_TOKEN")

    told = await ran("status", "--api", "http://192.0.2.1:8642")

    assert told.code == 2
    assert "in the clear" in told.err
    assert SECRET not in told.err


async def test_a_hostile_answer_cannot_paint_the_terminal(lab: LabDesk, api: str) -> None:
    lab.instance(1).reason = "\x1b[31mred\x1b[0m\r\n[bold]fake line"
    lab.instance(1).told = Judgement.SUSPECT
    lab.answer(1, refused())
    lab.run(0.5)
    lab.instance(1).reason = "\x1b[31mred\x1b[0m\r\n[bold]fake line"

    for words in (["status"], ["explain", "shop/s1"]):
        told = await ran(*words, "--api", api)
        assert "\x1b" not in told.out
        assert "\\x1b[31mred" in told.out
        assert "[bold]fake line" in told.out


async def test_run_gives_the_exit_code(api: str, capsys: pytest.CaptureFixture[str]) -> None:
    args = parsed("status", "--api", api)

    code = await asyncio.to_thread(args.run, args)

    assert code == 0
    assert "shop  PASS" in capsys.readouterr().out


# ---- times and places, as people write them ----

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "ahead", "wanted"),
    [
        ("2026-03-01T08:30:00Z", False, datetime(2026, 3, 1, 8, 30, tzinfo=UTC)),
        ("2026-03-01T08:30:00+02:00", False, datetime(2026, 3, 1, 8, 30, tzinfo=timezone(timedelta(hours=2)))),
        ("2h", False, datetime(2026, 3, 1, 10, 0, tzinfo=UTC)),
        ("2027-01-01T00:00:00Z", True, datetime(2027, 1, 1, tzinfo=UTC)),
    ],
)
def test_moments_are_read_as_written(text: str, ahead: bool, wanted: datetime) -> None:
    assert client.moment(text, "--at", NOW, ahead=ahead) == wanted


def test_a_time_of_day_is_the_last_one_or_the_next() -> None:
    before, after = client.moment("14:05", "--at", NOW, ahead=False), client.moment("14:05", "--until", NOW, ahead=True)

    assert before <= NOW < after
    assert after - before == timedelta(days=1)
    assert before.astimezone().strftime("%H:%M:%S") == "14:05:00"


@pytest.mark.parametrize("text", ["25:00", "12:60", "yesterday", "", "2h", "2026-02-30T00:00:00Z"])
def test_what_is_no_moment_ahead_is_refused(text: str) -> None:
    with pytest.raises(Misused, match="write it as"):
        client.moment(text, "--until", NOW, ahead=True)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (None, "/run/lb-sidecar/api.sock"),
        ("unix:/x/api.sock", "/x/api.sock"),
        ("/x/api.sock", "/x/api.sock"),
        ("127.0.0.1:8642", "http://127.0.0.1:8642"),
        ("https://lb.example:8642/", "https://lb.example:8642"),
        ("http://[::1]:8642", "http://[::1]:8642"),
    ],
)
def test_places_are_read_as_written(text: str | None, wanted: str) -> None:
    assert str(place(text, {})) == wanted


def test_the_environment_names_the_place_unless_the_option_does() -> None:
    env = {"LB_SIDECAR_API": "http://127.0.0.1:1"}

    assert place(None, env).origin == "LB_SIDECAR_API"
    assert place("/x", env).origin == "--api"
