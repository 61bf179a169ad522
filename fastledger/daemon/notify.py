"""Notifications to systemd about the service's state: sd_notify(3) without a library (SPEC-NODE-131)."""

import os
import socket
from collections.abc import Mapping


class Notifier:
    """Sends states to the service manager; silent where nothing supervises the process."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """Reads ``NOTIFY_SOCKET`` (a leading @ is the abstract namespace) and the watchdog's variables."""
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._watchdog_us = environ.get("WATCHDOG_USEC", "")
        self._watchdog_pid = environ.get("WATCHDOG_PID", "")

    @property
    def watchdog_interval_ms(self) -> int:
        """How often :meth:`watchdog` has to be called, half of the time that the manager waits; 0: never."""
        if not self._watchdog_us.isdigit() or self._watchdog_pid not in ("", str(os.getpid())):
            return 0
        return max(1, int(self._watchdog_us) // 2_000)

    def ready(self) -> bool:
        """Tells that the node serves; returns whether anyone was told."""
        return self._send(f"READY=1\nMAINPID={os.getpid()}")

    def stopping(self) -> bool:
        """Tells that the node drains and will end; returns whether anyone was told."""
        return self._send("STOPPING=1")

    def watchdog(self) -> bool:
        """Tells that the event loop is alive; returns whether anyone was told."""
        return self._send("WATCHDOG=1")

    def status(self, text: str) -> bool:
        """Sends a line for ``systemctl status``, which holds figures only; returns whether anyone was told."""
        return self._send("STATUS=" + text.replace("\n", " "))

    def _send(self, state: str) -> bool:
        if not self._address:
            return False
        # A service must not end because its supervisor does not listen.
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.setblocking(False)
                channel.connect(self._address)
                channel.send(state.encode())
        except OSError:
            return False
        return True
