"""Prometheus metrics of a server: rounds, sites online, seconds, bytes, loss, balanced accuracy.

They are read from the server's folder at every scrape. So a study does no extra work, and a restart
loses nothing. Only the study that runs, or ran last, is shown; this keeps the number of series
proportional to its sites. The metrics hold names of sites and studies, and only figures that are also in
`rounds.jsonl`. The endpoint has no password, so it listens on loopback by default.

A file that cannot be read leaves its own figures out and no others. `consilium_unreadable` counts such
files, and the log names each one once.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from common import log
from common.errors import ConfigError, ConsiliumError
from server.deployment import overview, queue, site_keys
from server.deployment.folder import ServerFolder
from server.storage.history import RoundRecord, read_rounds
from server.storage.status import INCOMPLETE, read_status

Family: TypeAlias = GaugeMetricFamily | CounterMetricFamily | InfoMetricFamily

ALL = "all"
"""Label value for all sites together, where a label is a site's name."""


def serve(folder: ServerFolder, host: str, port: int) -> Callable[[], None]:
    """Serve metrics on this address until the returned function is called. Raises OSError if it is taken."""
    registry = CollectorRegistry()
    registry.register(FolderCollector(folder))
    server, thread = start_http_server(port, addr=host, registry=registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


class FolderCollector(Collector):
    """All metrics of one server's folder."""

    def __init__(self, folder: ServerFolder) -> None:
        self._folder = folder
        self._logged: frozenset[str] = frozenset()

    def describe(self) -> list[Family]:
        """Empty: the families are not known before a scrape."""
        return []

    def collect(self) -> Iterator[Family]:
        """Read the folder, part by part; a part that cannot be read is left out."""
        folder, problems = self._folder, _Problems()
        files = site_keys.read_key_files(folder)
        problems.add("site_key", *files.unreadable.values())
        yield from problems.guard("database", lambda: _sites(folder, files.keys))
        yield from problems.guard("queue", lambda: _queue(folder))
        yield from _certificates(folder, problems)
        name: str | None = None
        try:
            name = queue.latest(folder)
        except OSError as error:
            problems.add("status", f"{folder.runs} cannot be listed: {error.strerror}")
        if name is not None:
            run_dir = folder.runs / name
            yield from problems.guard("status", lambda: _stage(run_dir, folder.flwr_home))
            yield from problems.guard("rounds", lambda: _rounds(run_dir.name, read_rounds(run_dir)))
        yield problems.family()
        for message in sorted(problems.messages - self._logged):
            log.warn(f"a file is missing from the metrics: {message}")
        self._logged = problems.messages


class _Problems:
    """Files that could not be read during one scrape."""

    def __init__(self) -> None:
        self._messages: dict[str, list[str]] = {
            kind: [] for kind in ("site_key", "database", "queue", "certificate", "status", "rounds")
        }

    def add(self, kind: str, *messages: str) -> None:
        """Count one file per message."""
        self._messages[kind] += messages

    def guard(self, kind: str, read: Callable[[], Iterator[Family]]) -> list[Family]:
        """The families that `read` yields; none if it fails, which is counted."""
        try:
            return list(read())
        except (ConsiliumError, OSError) as error:
            self.add(kind, str(error))
            return []

    @property
    def messages(self) -> frozenset[str]:
        """What is wrong, one message per file."""
        return frozenset(message for messages in self._messages.values() for message in messages)

    def family(self) -> Family:
        """The number of unreadable files by kind; 0 for a kind without any."""
        unreadable = GaugeMetricFamily(
            "consilium_unreadable", "Files that could not be read for these metrics", labels=["kind"]
        )
        for kind, messages in self._messages.items():
            unreadable.add_metric([kind], len(messages))
        return unreadable


def _sites(folder: ServerFolder, keys: dict[str, site_keys.Key]) -> Iterator[Family]:
    nodes = site_keys.nodes(folder.database)
    online = GaugeMetricFamily(
        "consilium_site_online", "1 while the site's gateway is connected", labels=["site"]
    )
    seen = GaugeMetricFamily(
        "consilium_site_last_seen_timestamp_seconds", "When the site was last connected", labels=["site"]
    )
    for site, key in keys.items():
        node = nodes.get(key.pem)
        online.add_metric([site], float(node is not None and node.online))
        if node is not None and node.seen is not None:
            seen.add_metric([site], node.seen.timestamp())
    yield online
    yield seen


def _queue(folder: ServerFolder) -> Iterator[Family]:
    yield GaugeMetricFamily(
        "consilium_studies_waiting", "Studies in the queue", value=len(queue.waiting(folder))
    )


def _certificates(folder: ServerFolder, problems: _Problems) -> Iterator[Family]:
    ends = GaugeMetricFamily(
        "consilium_certificate_ends_timestamp_seconds", "When a certificate expires", labels=["certificate"]
    )
    for path in (folder.identity.ca, folder.identity.certificate):
        try:
            ends.add_metric([path.stem], _expiry(path))
        except ConfigError as error:
            problems.add("certificate", str(error))
    yield ends


def _expiry(path: Path) -> float:
    """When a certificate expires, in seconds since 1970. Raises ConfigError."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is not a readable certificate; run `consilium-server provision`"
        ) from error


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
        for name, help_text, value in (
            ("consilium_round", "Number of the current or last round", progress.round),
            ("consilium_rounds", "Number of rounds of the study", progress.rounds),
        ):
            family = GaugeMetricFamily(name, help_text, labels=["study"])
            family.add_metric([study], value)
            yield family
    absent = GaugeMetricFamily(
        "consilium_site_absent", "1 for a site of the study that did not enrol", labels=["study", "site"]
    )
    for site in status.absent:
        absent.add_metric([study, site], 1.0)
    yield absent
    incomplete = GaugeMetricFamily(
        "consilium_study_incomplete", "1 if the final model lacks the score of a site", labels=["study"]
    )
    incomplete.add_metric([study], float(status.status == INCOMPLETE))
    yield incomplete
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
        "consilium_site_answer_seconds", "Seconds until the site answered in the last round", labels=labels
    )
    train = GaugeMetricFamily(
        "consilium_site_train_seconds", "Seconds of training in the last round", labels=labels
    )
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
        "consilium_answers", "Rounds of a site by outcome", labels=[*labels, "outcome"]
    )
    rows = [row for record in records for row in record.sites]
    for site in sorted({row.site for row in rows}):
        of_site = [row for row in rows if row.site == site]
        down.add_metric([study, site], sum(row.mib_down for row in of_site) * 2**20)
        up.add_metric([study, site], sum(row.mib_up for row in of_site) * 2**20)
        for outcome in sorted({row.outcome for row in of_site}):
            outcomes.add_metric([study, site, outcome], sum(row.outcome == outcome for row in of_site))
    yield from (down, up, outcomes)
    yield from _scores(study, last)


def _scores(study: str, last: RoundRecord) -> Iterator[Family]:
    labels = ["study", "site"]
    families = {
        "loss": GaugeMetricFamily(
            "consilium_test_loss", "Test loss of the last scored weights", labels=labels
        ),
        "accuracy": GaugeMetricFamily(
            "consilium_accuracy", "Accuracy of the last scored weights", labels=labels
        ),
        "balanced_accuracy": GaugeMetricFamily(
            "consilium_balanced_accuracy", "Balanced accuracy of the last scored weights", labels=labels
        ),
        "auroc_macro": GaugeMetricFamily(
            "consilium_auroc_macro", "Macro AUROC of the last scored weights", labels=labels
        ),
    }
    model = last.test if last.test is not None and last.closing else last.validation or last.test
    scored = {} if model is None else {**model.sites, ALL: model.pooled}
    for site, score in scored.items():
        for name, family in families.items():
            value = float(getattr(score.figures, name))
            if not math.isnan(value):
                family.add_metric([study, site], value)
    yield from families.values()
