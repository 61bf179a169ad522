"""Where the demonstrations' nodes listen, and how long starting and stopping one may take."""

LOOPBACK = "127.0.0.1"
START_S = 60.0
STOP_S = 120.0
