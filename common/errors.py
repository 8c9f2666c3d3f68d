"""The error tree, by who acts on an error.

ConsiliumError
├── ConfigError       the person who wrote the YAML
├── SiteDataError     the data manager at the site
├── PolicyRefusal     the operator and the site, who must agree
├── WireError         the developers: the two sides disagree on a message
├── UpdateRejected    no one at once; the round goes on without this site
├── QuorumNotMet      the study operator
├── StorageError      the administrator of the disk, on the side that raised it
├── LaunchError       the person who starts the processes on this machine
├── DeviceLost        no one at once; the site's next round starts the device's process again
└── SiteFailure       the data manager, who finds the details in the site's own log

A message names the value, what was expected and what to do. Messages of errors raised
under `client/` may name files; `client/governance/failure_report.py` keeps them at the site.
"""


class ConsiliumError(Exception):
    """Base of every error that is meant for a person."""


class ConfigError(ConsiliumError):
    """A settings file is wrong; the message lists every mistake in it."""


class SiteDataError(ConsiliumError):
    """A site's images, labels or weights file cannot be used as they are."""


class PolicyRefusal(ConsiliumError):
    """A plan asks for what this hospital did not agree to.

    `reason` is the part that may leave the site: rules by name and the study's own values. The
    message may also hold the policy's limits, which are the hospital's business.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class WireError(ConsiliumError):
    """A message does not follow its schema."""


class WeightsMissing(ConsiliumError):
    """A site does not hold the weights that a change is of."""


class UpdateRejected(ConsiliumError):
    """One site's update may not touch the model."""


class QuorumNotMet(ConsiliumError):
    """Too few sites answered for the study to go on."""


class StorageError(ConsiliumError):
    """Something could not be written, and nothing already written was lost."""


class LaunchError(ConsiliumError):
    """A process of the federation could not be started or died."""


class DeviceLost(ConsiliumError):
    """A further device of a site, or the process that computes on it, has gone."""


class SiteFailure(ConsiliumError):
    """A site could not do what a plan asked; details are in that site's log."""
