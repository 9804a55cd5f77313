"""The API's certificate: loaded into one context, and again when its files change, so that renewals need no restart."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl

from sidecar.web.options import TlsOptions

CHECK_S = 30.0
log = logging.getLogger("sidecar.web")


class Certificate:
    """Owns the server's TLS context. New connections get the newest pair that could be loaded."""

    def __init__(self, options: TlsOptions, check_s: float = CHECK_S) -> None:
        self._options = options
        self._check_s = check_s
        self._loaded: tuple[float, ...] = ()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.set_alpn_protocols(["http/1.1"])
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> ssl.SSLContext:
        """Load the pair and watch it from now on. OSError (ssl.SSLError is one) if it cannot be used."""
        self._load()
        self._watch()
        return self._context

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._check_s, self._look)

    def _look(self) -> None:
        try:
            if self._times() != self._loaded:
                self._load()
                log.info("the API's certificate was loaded again")
        except OSError as error:
            log.warning("the API's new certificate cannot be used, the old one stays: %s", error)
        self._watch()

    def _load(self) -> None:
        times = self._times()
        # a broken pair would otherwise leave the live context without any
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._options.cert, self._options.key)
        self._context.load_cert_chain(self._options.cert, self._options.key)
        self._loaded = times

    def _times(self) -> tuple[float, ...]:
        return tuple(os.stat(path).st_mtime for path in (self._options.cert, self._options.key))


__all__ = ["Certificate"]
