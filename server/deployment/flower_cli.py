"""Flower's command `flwr` as a module, so that a template can fork it.

    python -m server.deployment.flower_cli flwr's arguments

The module itself is in no template: Python runs no module twice without a warning. What it imports is.
"""

from flwr.cli.app import app

if __name__ == "__main__":
    app()
