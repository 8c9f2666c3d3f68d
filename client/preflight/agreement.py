"""Findings about a study and this site's own policy: whether the policy would refuse what the study asks for.

The server learns a refusal only when the study runs, and it never learns the limit. The data manager may know both
before. What can only be known from the model, such as its size, is not looked at here.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

from client.config import SiteConfig
from client.data.manifest import Manifest
from client.governance import policy
from client.governance.facts import BuiltStudy, Facts
from client.preflight.findings import Finding
from client.privacy.budget import planned
from common import wire
from common.config import StudyConfig

_PASSING = ("ask", "hours", "max_runs")
"""Rules about this moment, or about what was decided before."""


def findings(study: StudyConfig, site: SiteConfig, used: Manifest) -> Iterator[Finding]:
    """A finding for each rule that refuses the study; `used` are the images that the study may use."""
    if site.name not in study.sites.all:
        return  # another finding says so
    plan = wire.EnrolPlan(plan_id="check", site=site.name, study=study, want_weights=False)
    facts = Facts(
        now=datetime.now(UTC),
        decision="yes",
        rounds_today=0,
        num_bytes=0,
        epsilon=planned(plan, site),
        built=BuiltStudy(train_counts=used.class_counts("train"), layout={}),
    )
    refusals = [one for one in policy.check(plan, site.policy, facts) if one.rule not in _PASSING]
    for one in refusals:
        yield Finding(
            "stops",
            f"the policy refuses study {study.name}: {one.message} (policy.{one.rule}: {one.limit}). Ask the study "
            "operator to change the study, or change the policy if this hospital agrees",
        )
    if not refusals:
        asks = ", once a person here has approved it" if site.policy.ask else ""
        yield Finding("fine", f"the policy allows what study {study.name} asks for{asks}")
