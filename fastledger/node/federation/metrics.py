"""The metrics of peers, forks and mining for Prometheus (SPEC-FED-14).

Kinds of messages and reasons of refusals are closed sets; organisations are no labels, since their number is not
ours.
"""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fastledger.node.federation.figures import Figures

DEPTH_BUCKETS = (1, 2, 3, 5, 10, 20, 50, 100)


class FederationMetrics:
    """The metrics of a federation, counted as things happen or set at a scrape; in the node's registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.peers = self._gauge("peers", "Links whose handshake is done, by who opened them.", "direction")
        self.bans = self._gauge("bans", "Organisations and addresses that are shut out.")
        self.tip_height = self._gauge("tip_height", "Height of the best chain's newest block.")
        self.final_height = self._gauge("final_height", "Height of the newest final block.")
        self.work = self._gauge("tip_work", "Work of the best chain, in expected hashes.")
        self.mempool = self._gauge("mempool_transactions", "Transactions that wait for a block.")
        self.sync_lag = self._gauge("sync_lag_blocks", "Blocks that peers have proven and this node lacks.")
        self.syncing = self._gauge("syncing", "1 while the node catches up with its peers.")
        self.left_behind = self._gauge(
            "peers_left_behind", "Peers whose release lacks the rule set that is scheduled, or in force."
        )
        self.hash_rate = self._gauge("hash_rate", "Hashes a second of this node's miner; 0 while it is off.")
        self.clock_offset = self._gauge(
            "clock_offset_seconds", "Median of the peers' clocks before this node's."
        )
        self.mined = self._counter("blocks_mined", "Blocks that this node found.")
        self.reorganisations = self._counter("reorganisations", "Changes to a branch with more work.")
        self.depth = Histogram(
            "fastledger_federation_reorganisation_depth",
            "Blocks that left the best chain at a reorganisation.",
            buckets=DEPTH_BUCKETS,
            registry=registry,
        )
        self.stale = self._counter("stale_blocks", "Blocks that left the best chain.")
        self.forks = self._counter("forks", "Blocks that were stored beside the best chain.")
        self.conflicts = self._counter(
            "finality_conflicts", "Branches with more work that part below the newest final block."
        )
        self.wrong_hints = self._counter("wrong_hints", "Good blocks that came with wrong hints.")
        self.banned = self._counter("banned", "Bans that began.")
        self.refused = self._counter("links_refused", "Connections refused, by reason.", "reason")
        self.received = self._counter("received_bytes", "Bytes of peers' messages.")
        self.sent = self._counter("sent_bytes", "Bytes of messages given to be sent, by kind.", "kind")
        self.tls_reloads = self._counter("tls_reloads", "Reloads of the peers' certificates.", "result")
        self._seen: dict[tuple[str, ...], int] = {}

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"fastledger_federation_{name}", text, labels, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"fastledger_federation_{name}", text, labels, registry=self._registry)

    def set_figures(self, figures: Figures, hash_rate: float, mined: int) -> None:
        """Sets the state of chain, network and miner, at a scrape."""
        ready = [peer for peer in figures.peers if peer.ready]
        inbound = sum(peer.inbound for peer in ready)
        self.peers.labels("inbound").set(inbound)
        self.peers.labels("outbound").set(len(ready) - inbound)
        self.bans.set(len(figures.bans))
        self.tip_height.set(figures.tip_height)
        self.final_height.set(figures.final_height)
        self.work.set(float(figures.work))
        self.mempool.set(figures.mempool)
        self.sync_lag.set(figures.lag)
        self.syncing.set(figures.sync.syncing)
        self.left_behind.set(len(figures.left_behind))
        self.clock_offset.set(figures.sync.clock_offset_ms / 1000)
        self.hash_rate.set(hash_rate)
        self._grow(("mined",), mined, self.mined)

    def set_links(self, refused: Mapping[str, int], received: int, sent: Mapping[str, int]) -> None:
        """Sets the counters of the links, at a scrape: refusals, bytes received, bytes given to be sent by kind."""
        for reason, count in refused.items():
            self._grow(("refused", reason), count, self.refused.labels(reason))
        self._grow(("received",), received, self.received)
        for kind, count in sent.items():
            self._grow(("sent", kind), count, self.sent.labels(kind))

    def _grow(self, key: tuple[str, ...], count: int, counter: Counter) -> None:
        counter.inc(max(0, count - self._seen.get(key, 0)))
        self._seen[key] = count
