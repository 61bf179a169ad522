"""TCP proxies on loopback whose links can be cut and healed: the network of a demo or a test."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from fastledger.cli.demo.waits import LOOPBACK

T = TypeVar("T")
START_S = 30.0


class _Pipe(asyncio.Protocol):
    """One end of a proxied connection; bytes that arrive here go to the other end."""

    def __init__(self, pair: "_Pair") -> None:
        self._pair = pair
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._pair.joined(self)

    def data_received(self, data: bytes) -> None:
        self._pair.forward(self, data)

    def pause_writing(self) -> None:
        self._pair.pause(self, paused=True)

    def resume_writing(self) -> None:
        self._pair.pause(self, paused=False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pair.close()


class _Pair:
    """The two ends of one proxied connection: the caller and the called."""

    def __init__(self, proxy: "Proxy") -> None:
        self._proxy = proxy
        self.caller = _Pipe(self)
        self.called = _Pipe(self)
        self._early: list[bytes] = []
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def joined(self, pipe: _Pipe) -> None:
        if pipe is self.called:
            for data in self._early:
                self.forward(self.caller, data)
            return
        self._proxy.pairs.add(self)
        if self._proxy.is_cut:
            self.close()
            return
        self._task = asyncio.get_running_loop().create_task(self._dial())

    async def _dial(self) -> None:
        try:
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: self.called, LOOPBACK, self._proxy.target)
        except OSError:
            self.close()

    def forward(self, source: _Pipe, data: bytes) -> None:
        sink = self.called if source is self.caller else self.caller
        if sink.transport is None:
            self._early.append(data)
            return
        self._proxy.byte_count += len(data)
        if not sink.transport.is_closing():
            sink.transport.write(data)

    def pause(self, sink: _Pipe, *, paused: bool) -> None:
        source = self.called if sink is self.caller else self.caller
        if source.transport is not None and not source.transport.is_closing():
            (source.transport.pause_reading if paused else source.transport.resume_reading)()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._proxy.pairs.discard(self)
        for pipe in (self.caller, self.called):
            if pipe.transport is not None:
                pipe.transport.abort()


class Proxy:
    """Passes connections to ``port`` on to ``target``, until it is cut."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.is_cut = False
        self.byte_count = 0
        self.pairs: set[_Pair] = set()

    async def start(self) -> None:
        """Listens on a free port."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Pair(self).caller, LOOPBACK, 0)
        self.port = server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Ends the connections that are open and takes no new ones."""
        self.is_cut = True
        for pair in list(self.pairs):
            pair.close()

    def heal(self) -> None:
        """Takes connections again."""
        self.is_cut = False


class Wires:
    """A thread that runs proxies; :meth:`between` makes one for a pair of names."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()
        self._proxies: dict[tuple[str, str], Proxy] = {}

    def _call(self, work: Callable[[], T]) -> T:
        async def run() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(START_S)

    def between(self, caller: str, called: str, target: int) -> int:
        """Makes a proxy and returns the port on which ``caller`` reaches ``called``, which listens on ``target``."""
        proxy = self._proxies[caller, called] = Proxy(target)
        asyncio.run_coroutine_threadsafe(proxy.start(), self._loop).result(START_S)
        return proxy.port

    def part(self, *groups: set[str]) -> None:
        """Cuts every wire between names of different groups."""

        def cut() -> None:
            for (caller, called), proxy in self._proxies.items():
                if not any(caller in group and called in group for group in groups):
                    proxy.cut()

        self._call(cut)

    def heal(self) -> None:
        """Makes every proxy take connections again."""

        def heal() -> None:
            for proxy in self._proxies.values():
                proxy.heal()

        self._call(heal)

    @property
    def byte_count(self) -> int:
        """How many bytes the proxies carried, both ways, TLS included."""
        return sum(proxy.byte_count for proxy in self._proxies.values())

    def close(self) -> None:
        """Ends the proxies and their thread."""
        if not self._thread.is_alive():
            return

        async def end() -> Any:
            for proxy in self._proxies.values():
                proxy.cut()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(START_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_S)
