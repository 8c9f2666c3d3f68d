"""The ClientApp that Flower wants an app to name. No site ever fetches or runs it.

A gateway forwards messages with code of its own (`client/gateway/forward.py`).
"""

from flwr.clientapp import ClientApp

app = ClientApp()
