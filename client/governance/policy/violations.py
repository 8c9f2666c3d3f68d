"""What the rules of a policy have in common: names and patterns, and the refusal of a plan."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from client.config import PolicyConfig
from client.governance.facts import RuleViolation
from common.errors import PolicyRefusal

_MIB = 2**20
_LONGEST_NAME, _LONGEST_REASON = 80, 2000


def raise_if_any(violations: Sequence[RuleViolation]) -> None:
    """Raise PolicyRefusal that names every violation: with the limits for the site, without them for the server."""
    if not violations:
        return
    details = "\n".join(
        f"  {violation.rule}: {violation.message} ({violation.limit})" for violation in violations
    )
    reason = "; ".join(f"{violation.rule}: {violation.message}" for violation in violations)
    raise PolicyRefusal(f"this site's policy refuses the plan:\n{details}", reason[:_LONGEST_REASON])


def matches(name: str, patterns: Sequence[str] | None) -> bool:
    """Whether a name fits one of the patterns; None allows every name."""
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


def quoted(name: str) -> str:
    """A name that came from the server: short, and without line breaks for a log."""
    return repr(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}...")


def listed(patterns: Sequence[str] | None) -> str:
    """Patterns for a person."""
    return ", ".join(patterns or ())


def of_tensors(names: Sequence[str], policy: PolicyConfig) -> Iterator[RuleViolation]:
    """Of the names of what is trained or leaves."""
    refused = [name for name in names if not matches(name, policy.tensors)]
    if refused:
        more = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
        message = f"the study trains {quoted(refused[0])}{more}; train fewer (model.trainable)"
        yield RuleViolation("tensors", message, f"may leave: {listed(policy.tensors)}")


def of_size(rule: str, what: str, size: int, most: float | None) -> Iterator[RuleViolation]:
    """Of the size of a message."""
    if most is not None and size > most * _MIB:
        yield RuleViolation(rule, f"{what} of this study has {size / _MIB:.1f} MiB", f"at most {most:g}")
