"""Error for a package that is not installed: which one, what needs it, and which extra brings it."""

_EXTRA_OF = {"pandas": "dataframe", "matplotlib": "server", "prometheus_client": "server"}
"""Every other optional package belongs to the extra `trainer`."""


def missing(what: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """The error to raise instead of `error`, which `what` met."""
    package = (error.name or "?").partition(".")[0]
    extra = _EXTRA_OF.get(package, "trainer")
    return ModuleNotFoundError(
        f"{what} needs the package {package}, which is not installed; install it, or install Consilium with its "
        f"extra `{extra}`",
        name=error.name,
    )
