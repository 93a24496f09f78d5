"""How much the pool asks of a server, what it counts, and what a command's end looks like. Plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds the pool keeps. The defaults stay below what a stock sshd refuses."""

    #: Session channels open at a time on one connection. A stock sshd allows 10, but frees one late: 8 never failed.
    channels: int = 7
    #: Connections to one host. The first is shared; more are opened only when channels stay short.
    connections: int = 4
    #: Handshakes in flight to one address; MaxStartups of a stock sshd drops some from the 10th.
    handshakes: int = 8
    #: Handshakes in flight through one jump host.
    handshakes_through_jump: int = 4
    #: For one connection, name lookup to authentication, when the ssh configuration says nothing.
    connect_timeout_s: float = 20.0
    #: A silent link is asked after so long and declared dead after `keepalive_count` + 1 times that.
    keepalive_interval_s: float = 5.0
    keepalive_count: int = 3
    #: After so long in which this machine was asleep, or this process stopped, every link is asked at once.
    away_s: float = 30.0
    #: Back-off after the n-th failure in a row: a random time up to min(cap, base * 2**n).
    backoff_base_s: float = 0.5
    backoff_cap_s: float = 30.0
    #: A refused login is not tried again before so long: accounts get banned for less.
    auth_retry_s: float = 15.0
    #: Tries of one connection whose handshake the server breaks off (MaxStartups), each after a short back-off.
    handshake_tries: int = 8
    #: A channel wanted for so long with none given back opens a further connection.
    grow_after_s: float = 2.0
    #: A further connection without channels is closed after so long.
    idle_s: float = 30.0
    #: Output of `run` kept per stream, in bytes; the rest is dropped and `truncated` set.
    run_output_bytes: int = 64 << 20
    #: Receive window of a channel, in bytes: the most that is under way to us. At a round trip of 100 ms 2 MiB carried
    #: 10 MB/s, 8 MiB 45, 16 MiB 83; nearby it makes no difference.
    window_bytes: int = 16 << 20


@dataclass(frozen=True)
class Completed:
    """How a command ended."""

    #: None: UNKNOWN (the link died, or we stopped waiting), unless `signal` says which signal ended it.
    exit_status: int | None
    #: "KILL", "TERM", ...; None: not ended by a signal, as far as the server told.
    signal: str | None
    stdout: bytes
    stderr: bytes
    #: Why the outcome is unknown; "" when it is known.
    unknown: str = ""
    #: Output beyond `Limits.run_output_bytes` was dropped.
    truncated: bool = False


@dataclass(frozen=True)
class Counters:
    """What the pool did for one host so far. Handshakes are counted per address: aliases of one machine share them."""

    #: Open connections now, and ever opened.
    connections: int = 0
    connections_total: int = 0
    #: Handshakes ever begun, in flight now, and at most at a time.
    handshakes: int = 0
    handshakes_in_flight: int = 0
    handshakes_peak: int = 0
    #: Channels open now, at most at a time over all connections, at most on one connection, ever.
    channels: int = 0
    channels_peak: int = 0
    channels_peak_on_one: int = 0
    channels_total: int = 0
    #: "open failed" answers of the server, all waited out.
    channels_refused: int = 0
    #: Requests waiting for a channel now, and all that ever had to wait.
    waiting: int = 0
    waited: int = 0
    #: Connections that failed or died, and the latest reason.
    failures: int = 0
    last_error: str = ""
