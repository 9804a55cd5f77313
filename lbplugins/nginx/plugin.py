"""nginx, driven by one file of `server` lines per upstream and a reload that is proven."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import BaseModel

from lbplugins.api import Balancer, BalancerError
from lbplugins.nginx import files, layout, process, rights
from lbplugins.nginx.options import NginxOptions
from lbplugins.nginx.picture import Pool, outside
from lbplugins.nginx.plan import Plan, bytes_of, in_order, pictured, text_of
from lbplugins.nginx.servers import MAX_BYTES, Include, IncludeFault, parse, render
from lbplugins.nginx.traffic import Feed
from lbplugins.values import Change, Ref, Refusal, Seen, TrafficSample, Traits

LOADED_BY = b"\n# loaded by nginx master "
"""Ends our copy of what was loaded last, before the generation of the master that did."""

MAX_READ = 512
"""So many parsed includes are kept; two per upstream are in use."""

_A = TypeVar("_A")
_R = TypeVar("_R")


class Nginx(Balancer):
    """One nginx. Its state: the last layout read, and per upstream the bytes that its master was last proven to run, unless in doubt."""

    Options: ClassVar[type[BaseModel]] = NginxOptions
    traits = Traits(costly=True)

    def __init__(self, options: BaseModel) -> None:
        super().__init__(options)
        assert isinstance(options, NginxOptions)
        self._with = options
        self._layout: layout.Layout | None = None
        self._build: tuple[str, process.Build] | None = None
        self._life: process.Life | None = None
        self._proven: dict[str, bytes] = {}
        self._doubted: set[str] = set()
        self._read: dict[bytes, Include] = {}
        self._writer: ThreadPoolExecutor | None = None
        self._feeds: list[Feed] = []

    # ---- the contract ----

    async def open(self) -> None:
        """BalancerError unless the configuration, the directory of our files and the running nginx are all to be seen."""
        await asyncio.to_thread(self._open)

    async def pools(self) -> frozenset[str]:
        """The upstreams that include a file of `servers_dir`."""
        return frozenset((await asyncio.to_thread(self._scan)).upstreams)

    async def rights(self) -> Sequence[str]:
        """Files closed to us, and a test or reload that we may not run; needs no `open`."""
        return await asyncio.to_thread(rights.lacking, self._with, self._scan, self._master, self._test)

    def lock_path(self) -> str | None:
        return str(self._with.servers_dir / ".lb-sidecar.lock")

    async def observe(self, pools: frozenset[str], notes: Mapping[Ref, str]) -> Mapping[Ref, Seen]:
        """The servers of these upstreams, moved to our files or not. `notes` are not needed: the marks say what is ours, and survive us."""
        return await asyncio.to_thread(self._observe, pools)

    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        """All changes with one test and one reload, or with none when the files already say so. BalancerError: rolled back, reason told."""
        return await self._write(self._apply, changes)

    def traffic(self) -> AsyncIterator[Sequence[TrafficSample]] | None:
        """Every attempt at a server that nginx logs to `traffic.syslog`; None without that option."""
        if self._with.traffic is None:
            return None
        feed = Feed(self._with.traffic.syslog)
        self._feeds.append(feed)
        return feed

    async def aclose(self) -> None:
        while self._feeds:
            self._feeds.pop().close()
        writer, self._writer = self._writer, None
        if writer is not None:
            await asyncio.to_thread(writer.shutdown)

    # ---- beyond the contract: a file edited by hand ----

    async def diff(self, pool: str) -> str:
        """What a hand has changed in the file of this upstream since we wrote it, as a unified diff; '' = nothing."""
        return await asyncio.to_thread(self._diff, pool)

    async def adopt(self, pool: str) -> None:
        """Take the edited file of this upstream as the operator's word, test it and load it. BalancerError when nginx will not have it."""
        await self._write(self._adopt, pool)

    async def _write(self, act: Callable[[_A], _R], argument: _A) -> _R:
        """The result of one writing act, in the one thread for them: cancelled, an act under way goes on, one that waits never begins."""
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, "nginx-writer")
        return await asyncio.get_running_loop().run_in_executor(self._writer, act, argument)

    # ---- seeing ----

    def _open(self) -> None:
        files.check_directory(self._with.servers_dir)
        self._master(self._scan())
        if self._with.test is None:
            self._binary()

    def _scan(self) -> layout.Layout:
        known = self._layout
        if known is None or not layout.is_current(known):
            self._layout = known = layout.scan(self._with.config, self._with.servers_dir)
        return known

    def _binary(self) -> tuple[str, process.Build]:
        if self._build is None:
            binary = process.find_binary(self._with.binary)
            self._build = (binary, process.build_of(binary))
        return self._build

    def _master(self, found: layout.Layout) -> process.Master:
        master = process.find_master(self._pid_file(found), self._with.binary)
        if self._life != master.life:
            # What one master has loaded says nothing of another: a binary upgrade that is given up leaves one with older servers.
            self._life = master.life
            self._proven.clear()
            self._doubted.clear()
        return master

    def _pid_file(self, found: layout.Layout) -> Path:
        if self._with.pid_file is not None:
            return self._with.pid_file
        path = Path(found.pid_file or self._binary()[1].pid_file)
        if not path.is_absolute():
            path = (self._with.prefix or Path(self._binary()[1].prefix)) / path
        if not path.is_absolute():
            raise BalancerError(
                f"{self._with.config} does not say where nginx's pid file is; add `pid /run/nginx.pid;` to it, or set `pid_file`"
            )
        return path

    def _error_logs(self, found: layout.Layout, master: process.Master) -> process.ErrorLogs:
        names = [*found.error_logs, *([master.error_log] if master.error_log else [])] or [self._binary()[1].error_log]
        prefix = Path(self._with.prefix or master.prefix or self._binary()[1].prefix)
        home = Path(master.cwd or "/") / prefix
        return process.ErrorLogs([home / name for name in names if name != "stderr" and not name.startswith(("syslog:", "memory:"))])

    def _observe(self, pools: frozenset[str]) -> dict[Ref, Seen]:
        found = self._scan()
        master = self._master(found)
        seen: dict[Ref, Seen] = {}
        for name in sorted(pools & found.upstreams.keys()):
            seen |= pictured(self._pool(found.upstreams[name], master), master)
        for name in sorted(pools & found.unmoved.keys()):
            seen |= outside(found.unmoved[name], master.generation)
        return seen

    def _pool(self, upstream: layout.Upstream, master: process.Master) -> Pool:
        """One upstream as it stands on disk and in nginx. BalancerError when its file is unreadable and we know no other truth."""
        try:
            content = files.read(upstream.file, MAX_BYTES, follow=False)
            include, fault = self._parsed(content.data), ""
        except BalancerError as error:
            include, fault, content = None, str(error), files.Content(b"", float("inf"))
        except IncludeFault as error:
            include, fault, content = None, f"{upstream.file} {error}", files.Content(b"", float("inf"))
        # A wall clock set between the two times can mislead here; it costs one reload, or shows an unfinished act of ours as done.
        if content.changed_at <= master.loaded_at():
            self._proven[upstream.name] = content.data
            self._doubted.discard(upstream.name)
        elif upstream.name not in self._proven and upstream.name not in self._doubted:
            self._recall(upstream, master)
        proven = self._proven.get(upstream.name)
        running = None
        if proven is not None:
            with contextlib.suppress(IncludeFault):
                running = self._parsed(proven)
        if include is None and running is None:
            raise BalancerError(fault)
        denied = files.unwritable(self._with.servers_dir) or (process.may_not_signal(master) if self._with.reload == "signal" else None)
        return Pool(upstream, content.data, include, running, include is not None and proven == content.data, fault, denied or "")

    def _parsed(self, data: bytes) -> Include:
        """The include in these bytes, read once for as long as they do not change."""
        include = self._read.get(data)
        if include is None:
            if len(self._read) >= MAX_READ:
                self._read.clear()
            self._read[data] = include = parse(text_of(data))
        return include

    def _recall(self, upstream: layout.Upstream, master: process.Master) -> None:
        """What an earlier life of ours saw this master load, unless it has reloaded since."""
        with contextlib.suppress(BalancerError):
            last = files.read(_last(upstream), MAX_BYTES, follow=False)
            saved, _, generation = last.data.rpartition(LOADED_BY)
            if generation == f"{master.generation}\n".encode() and last.changed_at >= master.loaded_at():
                self._proven[upstream.name] = saved

    # ---- telling: in the writer's thread only ----

    def _apply(self, changes: Sequence[Change]) -> list[Refusal]:
        found = self._scan()
        master = self._master(found)
        names = {change.ref.pool for change in changes} & found.upstreams.keys()
        pools = {name: self._pool(found.upstreams[name], master) for name in sorted(names)}
        plan = Plan(pools, master, self._with.servers_dir)
        for change in in_order(changes):
            plan.add(change)
        wanted = plan.texts()
        if wanted:
            reason = self._busy(master) or self._load(found, master, pools, wanted)
            if reason:
                plan.refuse_all(wanted, reason)
        return plan.refusals

    def _busy(self, master: process.Master) -> str:
        """Why another reload must wait, or ''."""
        if master.leaving <= max(process.MAX_LEAVING, 4 * len(master.workers)):
            return ""
        return (
            f"{master.leaving} workers of earlier configurations are still finishing their requests, and each reload adds more; "
            "it is tried again, and `worker_shutdown_timeout` in nginx.conf bounds the wait"
        )

    def _load(self, found: layout.Layout, master: process.Master, pools: Mapping[str, Pool], wanted: Mapping[str, bytes]) -> str:
        """'' = nginx is proven to run these files; else why it will not. BalancerError for all else; either way the old files are back."""
        files.check_directory(self._with.servers_dir)
        broken = self._test(master)
        if broken:
            raise BalancerError(f"nginx's configuration is broken by something else, so nothing was changed: {broken}")
        swap, was_told = files.Replacement(), False
        try:
            for name, data in wanted.items():
                if data != pools[name].data:
                    swap.put(pools[name].upstream.file, data, pools[name].data)
            refused = self._test(master)
            if not refused:
                was_told = True
                loaded = self._reload(found)
        except BaseException as error:
            try:
                swap.undo()
            finally:
                if was_told and not (isinstance(error, process.NotLoaded) and error.refused):
                    self._doubt(found, wanted)
            if isinstance(error, process.NotLoaded):
                raise BalancerError(f"nginx did not load the new servers, so the old files are back: {error}") from error
            raise
        if refused:
            swap.undo()
            return f"nginx does not accept the result, so the old file is back: {refused}"
        swap.keep()
        for name, data in wanted.items():
            self._remember(pools[name].upstream, data, loaded)
        return ""

    def _doubt(self, found: layout.Layout, names: Iterable[str]) -> None:
        """After a reload that may yet come, or came and failed later: nginx is told once more, now that the old files are back."""
        for name in names:
            self._proven.pop(name, None)
            self._doubted.add(name)
        with contextlib.suppress(BalancerError):
            self._tell(self._master(found))

    def _test(self, master: process.Master) -> str:
        """'' or the line in which nginx says what is wrong with its configuration."""
        argv = self._with.test
        if argv is None:
            binary, build = self._binary()
            prefix = str(self._with.prefix) if self._with.prefix else master.prefix
            argv = process.argv_of_test(binary, build, self._with.config, prefix)
        code, text = process.run(argv, process.TEST_DEADLINE_S, master.cwd or "/")
        if code == 0:
            return ""
        cure = ""
        if "Permission denied" in text and os.geteuid() != 0 and self._with.test is None:
            cure = f" ({files.who()} may not test it: give `test` a command that may)"
        return process.headline(text) + cure

    def _reload(self, found: layout.Layout) -> process.Master:
        """The nginx that runs what is on disk now. NotLoaded if none does, BalancerError if it could not be told."""
        before, told_at = self._master(found), time.clock_gettime(time.CLOCK_BOOTTIME)
        logs = self._error_logs(found, before)
        self._tell(before)
        return process.prove(before, told_at, self._pid_file(found), self._with.binary, logs)

    def _tell(self, master: process.Master) -> None:
        if self._with.reload == "signal":
            process.hang_up(master, self._with.binary)
            return
        code, text = process.run(self._with.reload, process.RELOAD_DEADLINE_S, "/")
        if code != 0:
            raise BalancerError(f"`{' '.join(self._with.reload)}` failed with code {code}: {process.headline(text)}")

    def _remember(self, upstream: layout.Upstream, data: bytes, master: process.Master) -> None:
        self._proven[upstream.name] = data
        self._doubted.discard(upstream.name)
        last = _last(upstream)
        # Without this copy only `diff` and a later start know less, so a full disk does not undo what nginx already runs.
        with contextlib.suppress(BalancerError):
            files.remove(last)
            if parse(text_of(data)).is_marked:
                files.save(last, data + LOADED_BY + f"{master.generation}\n".encode())

    # ---- a file edited by hand ----

    def _found(self, pool: str) -> tuple[layout.Layout, layout.Upstream]:
        found = self._scan()
        if pool not in found.upstreams:
            raise BalancerError(
                f"no upstream {pool[:128]!r} includes a file of {self._with.servers_dir}; there are: {', '.join(sorted(found.upstreams))}"
            )
        return found, found.upstreams[pool]

    def _diff(self, pool: str) -> str:
        _, upstream = self._found(pool)
        text = text_of(files.read(upstream.file, MAX_BYTES, follow=False).data)
        with contextlib.suppress(IncludeFault):
            if not parse(text).edited:
                return ""
        try:
            last = text_of(files.read(_last(upstream), MAX_BYTES, follow=False).data.rpartition(LOADED_BY)[0])
        except BalancerError:
            return f"{upstream.file} was edited by hand, and no copy of what lb-sidecar wrote is left. It now reads:\n{text}"
        lines = difflib.unified_diff(
            last.splitlines(keepends=True), text.splitlines(keepends=True), "written by lb-sidecar", str(upstream.file)
        )
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)

    def _adopt(self, pool: str) -> None:
        found, upstream = self._found(pool)
        master = self._master(found)
        seen = self._pool(upstream, master)
        if seen.include is None:
            raise BalancerError(seen.fault)
        if seen.include.fault:
            raise BalancerError(f"{upstream.file} {seen.include.fault}")
        try:
            data = bytes_of(render(seen.include))
        except IncludeFault as error:
            raise BalancerError(f"{upstream.file}: {error}") from error
        if data == seen.data and seen.is_loaded:
            return
        reason = self._load(found, master, {pool: seen}, {pool: data})
        if reason:
            raise BalancerError(f"{upstream.file}: {reason}")


def _last(upstream: layout.Upstream) -> Path:
    return upstream.file.with_name(f".{upstream.file.name}.lb-sidecar-last")
