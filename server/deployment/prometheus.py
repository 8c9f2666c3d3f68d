"""What a running server tells Prometheus: rounds, sites online, seconds, bytes, loss, balanced accuracy.

Read from the server's folder whenever Prometheus asks, so a study does nothing for it and a restart
loses nothing. Only the study that runs, or ran last, is told, so the number of series stays that of its sites.
Names of sites and of studies are in it, and no figure that is not in `rounds.jsonl`. It listens on loopback
unless told otherwise, for there is no password.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from common.errors import ConsiliumError
from server.deployment import overview, queue, site_keys
from server.deployment.folder import ServerFolder
from server.storage.history import RoundRecord, read_rounds
from server.storage.status import read_status

Family: TypeAlias = GaugeMetricFamily | CounterMetricFamily | InfoMetricFamily

ALL = "all"
"""Stands for all sites together, where a label is a site's name."""


def serve(folder: ServerFolder, host: str, port: int) -> Callable[[], None]:
    """Answer Prometheus on this address until what is returned is called. Raises OSError if it is taken."""
    registry = CollectorRegistry()
    registry.register(FolderCollector(folder))
    server, thread = start_http_server(port, addr=host, registry=registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


class FolderCollector(Collector):
    """Everything that the folder of a server tells."""

    def __init__(self, folder: ServerFolder) -> None:
        self._folder = folder

    def describe(self) -> list[Family]:
        """Nothing is known before it is asked for."""
        return []

    def collect(self) -> Iterator[Family]:
        """Read the folder. What cannot be read now is left out, not made up."""
        yield from _federation(self._folder)
        try:
            name = queue.latest(self._folder)
            if name is not None:
                run_dir = self._folder.runs / name
                yield from _stage(run_dir, self._folder.flwr_home)
                yield from _rounds(name, read_rounds(run_dir))
        except ConsiliumError:
            return


def _federation(folder: ServerFolder) -> Iterator[Family]:
    keys, known = site_keys.enrolled(folder), site_keys.nodes(folder.database)
    online = GaugeMetricFamily(
        "consilium_site_online", "1 while the site's gateway is connected", labels=["site"]
    )
    seen = GaugeMetricFamily(
        "consilium_site_last_seen_timestamp_seconds", "When the site last showed itself", labels=["site"]
    )
    for site, key in keys.items():
        node = known.get(key.pem)
        online.add_metric([site], float(node is not None and node.online))
        if node is not None and node.seen is not None:
            seen.add_metric([site], node.seen.timestamp())
    yield online
    yield seen
    yield GaugeMetricFamily(
        "consilium_studies_waiting", "Studies that wait for their turn", value=len(queue.waiting(folder))
    )
    ends = GaugeMetricFamily(
        "consilium_certificate_ends_timestamp_seconds", "When a certificate ends", labels=["certificate"]
    )
    for path in (folder.identity.ca, folder.identity.certificate):
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        ends.add_metric([path.stem], certificate.not_valid_after_utc.timestamp())
    yield ends


def _stage(run_dir: Path, flwr_home: Path) -> Iterator[Family]:
    status = read_status(run_dir)
    if status is None:
        return
    study, progress = run_dir.name, status.progress
    yield InfoMetricFamily(
        "consilium_study", "The study that runs or ran last", value={"study": study, "stage": status.status}
    )
    running = GaugeMetricFamily("consilium_study_running", "1 while the study runs", labels=["study"])
    running.add_metric([study], float(not status.or_died().is_over))
    yield running
    if progress is not None:
        for name, what, value in (
            ("consilium_round", "The round that is going on, or was last", progress.round),
            ("consilium_rounds", "Rounds that the study has", progress.rounds),
        ):
            family = GaugeMetricFamily(name, what, labels=["study"])
            family.add_metric([study], value)
            yield family
    memory = GaugeMetricFamily("consilium_memory_bytes", "Resident memory by process", labels=["process"])
    for process, mib in overview.memory_mib(flwr_home).items():
        memory.add_metric([process], mib * 2**20)
    yield memory


def _rounds(study: str, records: tuple[RoundRecord, ...]) -> Iterator[Family]:
    if not records:
        return
    last, labels = records[-1], ["study", "site"]
    seconds = GaugeMetricFamily(
        "consilium_round_duration_seconds", "How long the last round took", labels=["study"]
    )
    seconds.add_metric([study], last.seconds)
    yield seconds

    answer = GaugeMetricFamily(
        "consilium_site_answer_seconds", "In which a site answered last", labels=labels
    )
    train = GaugeMetricFamily("consilium_site_train_seconds", "Of its last round, in training", labels=labels)
    loss = GaugeMetricFamily("consilium_train_loss", "Mean training loss of the last round", labels=labels)
    for row in last.sites:
        if row.outcome == "ok":
            answer.add_metric([study, row.site], row.answered_after_s)
            train.add_metric([study, row.site], row.train_s)
            if row.train_loss is not None:
                loss.add_metric([study, row.site], row.train_loss)
    yield from (answer, train, loss)

    down = CounterMetricFamily("consilium_sent_bytes", "Tensors sent to a site", labels=labels)
    up = CounterMetricFamily("consilium_received_bytes", "Tensors received from a site", labels=labels)
    outcomes = CounterMetricFamily(
        "consilium_answers", "Rounds of a site by how they ended for it", labels=[*labels, "outcome"]
    )
    rows = [row for record in records for row in record.sites]
    for site in sorted({row.site for row in rows}):
        mine = [row for row in rows if row.site == site]
        down.add_metric([study, site], sum(row.mib_down for row in mine) * 2**20)
        up.add_metric([study, site], sum(row.mib_up for row in mine) * 2**20)
        for outcome in sorted({row.outcome for row in mine}):
            outcomes.add_metric([study, site, outcome], sum(row.outcome == outcome for row in mine))
    yield from (down, up, outcomes)
    yield from _scores(study, last)


def _scores(study: str, last: RoundRecord) -> Iterator[Family]:
    labels = ["study", "site"]
    families = {
        "loss": GaugeMetricFamily("consilium_test_loss", "Of the last scored weights", labels=labels),
        "accuracy": GaugeMetricFamily("consilium_accuracy", "Of the last scored weights", labels=labels),
        "balanced_accuracy": GaugeMetricFamily(
            "consilium_balanced_accuracy", "Of the last scored weights", labels=labels
        ),
        "auroc_macro": GaugeMetricFamily(
            "consilium_auroc_macro", "Of the last scored weights", labels=labels
        ),
    }
    scored = dict(last.scored) | ({} if last.pooled is None else {ALL: last.pooled})
    for site, score in scored.items():
        for name, family in families.items():
            value = float(getattr(score.figures, name))
            if not math.isnan(value):
                family.add_metric([study, site], value)
    yield from families.values()
