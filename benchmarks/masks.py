"""What masks cost: seconds at a site and at the server, and bytes, beside the plain mean of the same updates.

The arithmetic of one round in one process, one site after the other, one thread: what a site masks, what the server
adds up and takes off. Nothing is trained and nothing travels. All sites stay, and then one is lost before its answer.
Writes docs/results/masks.md.
"""

import os
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks._page import RESULTS, write_page
from client.masking.session import Masks
from common import wire
from common.config import AdmissionConfig, ClassifierConfig, SecureAggregationConfig, SitesConfig, StudyConfig
from common.masking import roster
from common.weights import Arrays, TensorSpec, num_bytes
from server.aggregation.masked_mean import MaskedMean
from server.aggregation.mean import RunningMean
from server.aggregation.update import AdmittedUpdate
from server.report.text import markdown_table
from server.rounds.masked_round import MaskedRound
from server.rounds.sites import Deadline, Reply

SITES, MEGABYTES, TENSORS = (3, 8, 16), (1, 100), 25
PAGE = RESULTS / "masks.md"
ASKED = "a question"


class Site:
    """The masks of one site, and the seconds that they took."""

    def __init__(self, folder: Path, name: str, study: StudyConfig) -> None:
        self.name = name
        self.identity = Ed25519PrivateKey.generate()
        self.masks = Masks(
            folder / name, name, study.fingerprint, study.mask_threshold, sites=study.sites.train
        )
        self.seconds = 0.0

    def answer(self, plan: wire.MaskPlan, known: Mapping[str, str]) -> wire.MaskAnswer:
        started = time.perf_counter()
        answer = wire.MaskAnswer(plan_id=plan.plan_id, site=self.name, round=plan.round)
        match plan.step:
            case wire.KeysStep():
                answer = answer.model_copy(update={"keys": self.masks.announce(plan.round, self.identity)})
            case wire.SharesStep(announcements=announcements):
                sealed = self.masks.seal(plan.round, announcements, known)
                answer = answer.model_copy(update={"envelopes": sealed})
            case wire.RevealStep(survivors=survivors):
                seeds, keys = self.masks.reveal(plan.round, survivors)
                answer = answer.model_copy(update={"seed_shares": seeds, "key_shares": keys})
        self.seconds += time.perf_counter() - started
        return answer


class AllSites:
    """Sites that are asked one after the other."""

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self.sites = sites
        self.known = {name: roster.public_key(site.identity) for name, site in sites.items()}

    def online(self) -> set[str]:
        return set(self.sites)

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:  # noqa: ARG002
        for name, plan in plans.items():
            assert isinstance(plan, wire.MaskPlan)
            yield Reply(name, self.sites[name].answer(plan, self.known), 0.0)


def main() -> None:
    rows = []
    for megabytes in MEGABYTES:
        for number in SITES:
            for lost in (0, 1):
                rows.append(_row(megabytes, number, lost))
                print("  ".join(rows[-1]), flush=True)
    head = [
        "MB",
        "sites",
        "lost",
        "plain MB up",
        "masked MB up",
        "server, plain s",
        "server, masked s",
        "a site s",
    ]
    lines = markdown_table(head, rows).splitlines()
    load = os.getloadavg()[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    write_page(
        PAGE, "What masks cost", lines, "python -m benchmarks masks",
        f"{os.cpu_count()} cores, one thread, load {load:.1f} at the end, one run each, peak {peak:,.0f} MiB",
    )  # fmt: skip


def _row(megabytes: int, number: int, lost: int) -> list[str]:
    names = tuple(f"site{place:02}" for place in range(number))
    study = StudyConfig(
        name="masks",
        classes=("a", "b"),
        sites=SitesConfig(train=names, required=number - 1 if number > 3 else 2),
        model=ClassifierConfig(encoder="test_convnext", image_size=32),
        rounds=1,
        secure_aggregation=SecureAggregationConfig(threshold=number // 2 + 1),
        admission=AdmissionConfig(max_norm_ratio=None),
    )
    size = megabytes * 10**6 // 4 // TENSORS
    layout = {f"w{place:02}": TensorSpec(shape=(size,), dtype="float32") for place in range(TENSORS)}
    with tempfile.TemporaryDirectory() as folder:
        sites = {name: Site(Path(folder), name, study) for name in names}
        masks = MaskedRound(study, AllSites(sites), 1)
        started = time.perf_counter()
        masks.prepare(names)
        server_s = time.perf_counter() - started - sum(site.seconds for site in sites.values())
        plain, total, plain_s, up = RunningMean(), MaskedMean(layout), 0.0, 0
        for place, name in enumerate(names):
            delta = _delta(place, size)
            started = time.perf_counter()
            masked = sites[name].masks.mask(1, ASKED, masks.envelopes[name], delta, 1000 + place)
            sites[name].seconds += time.perf_counter() - started
            up = num_bytes(masked)
            if place < lost:
                continue
            started = time.perf_counter()
            plain.add(AdmittedUpdate(name, 1000 + place, delta))
            plain_s += time.perf_counter() - started
            started = time.perf_counter()
            total.add(AdmittedUpdate(name, 1000 + place, masked))
            server_s += time.perf_counter() - started
        before = sum(site.seconds for site in sites.values())
        started = time.perf_counter()
        masks.open(total.sites, [total], ASKED)
        found = dict(total.result())
        server_s += time.perf_counter() - started - (sum(site.seconds for site in sites.values()) - before)
        started = time.perf_counter()
        expected = dict(plain.result())
        plain_s += time.perf_counter() - started
        assert all(found[name].tobytes() == expected[name].tobytes() for name in layout), "not the same bits"
        site_s = sum(site.seconds for site in sites.values()) / number
    return [
        str(megabytes), str(number), str(lost), f"{4 * size * TENSORS / 1e6:.0f}", f"{up / 1e6:.0f}",
        f"{plain_s:.2f}", f"{server_s:.2f}", f"{site_s:.2f}",
    ]  # fmt: skip


def _delta(seed: int, size: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {f"w{place:02}": rng.normal(0, 1e-3, size).astype(np.float32) for place in range(TENSORS)}


if __name__ == "__main__":
    main()
