"""The private names of Flower 1.39 that Consilium uses, with their signatures.

Flower promises nothing about them. If a test here fails, another version of Flower is installed than the one that
pyproject.toml pins. Either install the pinned one; or look at what became of the name, change the file named beside
it, and then this list. `tests/test_gateway_and_server.py` tries the whole with Flower's own server; run it next, then
`tests/deploy/test_kills.py` and `tests/deploy/test_real_federation.py`. Without the names of `server/transport/` a
federation still works if `server/deployment/flower_superlink.py` starts Flower's SuperLink as it is, but then gateways
cannot connect: they need the calls of `common/wire/gateway_calls.py`.
"""

import importlib
import inspect
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState

from tests.places import ROOT

SIGNATURES = {
    # server/deployment/flower_superlink.py
    "flwr.superlink.cli.flower_superlink:_run_fleet_api_grpc_rere": (
        "address, state_factory, objectstore_factory, enable_supernode_auth, certificates, interceptors"
    ),
    "flwr.superlink.cli.flower_superlink:flower_superlink": "",
    # server/transport/flower_state.py
    "flwr.server.superlink.linkstate.sql_linkstate:SqlLinkState.store_message_and_object_tree": (
        "self, message, object_tree, session_id"
    ),
    "flwr.server.superlink.linkstate.sql_linkstate:SqlLinkState.store_object": (
        "self, run_id, session_id, object_id, object_content"
    ),
    "flwr.server.superlink.linkstate.sql_linkstate:SqlLinkState.delete_node": "self, owner_aid, node_id",
    "flwr.server.superlink.linkstate.sql_linkstate:SqlLinkState._cleanup_push_session": (
        "self, session_id, cleanup_messages"
    ),
    "flwr.server.superlink.linkstate.sql_linkstate:SqlLinkState.session": "self",
    "flwr.supercore.object_store:ObjectStoreFactory.__init__": "self, database",
    "flwr.supercore.utils:uint64_to_int64": "unsigned",
    # server/transport/gateway_calls.py
    "flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor:NodeAuthServerInterceptor.__init__": (
        "self, state_factory"
    ),
    "flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor:"
    "NodeAuthServerInterceptor.intercept_service": "self, continuation, handler_call_details",
    "flwr.server.superlink.linkstate.sql_linkstate:SqlLinkState.get_node_id_by_public_key": "self, public_key",
    # server/transport/hub.py
    "flwr.superlink.servicer.runtime.runtime_handlers:push_messages": "request, state, task",
    "flwr.superlink.servicer.runtime.runtime_handlers:pull_messages": "request, state, task",
    "flwr.superlink.servicer.runtime.runtime_handlers:push_object": "request, state, task",
    "flwr.superlink.servicer.runtime.runtime_handlers:pull_object": "request, state, task",
    "flwr.superlink.servicer.runtime.runtime_handlers:confirm_message_received": "request, state, task",
    "flwr.superlink.servicer.runtime.runtime_handlers:get_nodes": "request, state, task",
    "flwr.server.superlink.linkstate.sql_linkstate:SqlLinkState.get_task_by_token": "self, token",
    # client/gateway/connection.py
    "flwr.client.grpc_rere_client.node_auth_client_interceptor:NodeAuthClientInterceptor.__init__": (
        "self, private_key, public_key"
    ),
    "flwr.app.message:remove_content_from_message": "message",
    "flwr.common.serde:message_from_proto": "message_proto",
    "flwr.common.serde:message_to_proto": "message",
    "flwr.supercore.error:FlowerError.from_json": "value",
    "flwr.supercore.inflatable.inflatable_object:get_all_nested_objects": "obj",
    "flwr.supercore.inflatable.inflatable_object:get_object_tree": "obj",
    "flwr.supercore.inflatable.inflatable_object:iterate_object_tree": "tree",
    "flwr.supercore.inflatable.inflatable_object:no_object_id_recompute": "",
    "flwr.supercore.inflatable.inflatable_protobuf_utils:make_pull_object_fn_protobuf": (
        "pull_object_protobuf, node, run_id"
    ),
    "flwr.supercore.inflatable.inflatable_protobuf_utils:make_push_object_fn_protobuf": (
        "push_object_protobuf, node, run_id, session_id"
    ),
    "flwr.supercore.inflatable.inflatable_utils:inflate_object_from_contents": (
        "object_id, object_contents, keep_object_contents, objects"
    ),
    "flwr.supercore.inflatable.inflatable_utils:pull_objects": (
        "object_ids, pull_object_fn, max_concurrent_pulls, max_time, max_tries_per_object, initial_backoff, "
        "backoff_cap"
    ),
    "flwr.supercore.inflatable.inflatable_utils:push_objects": (
        "objects, push_object_fn, object_ids_to_push, keep_objects, max_concurrent_pushes"
    ),
}

ATTRIBUTES = (
    "flwr.superlink.grid.http_grid:HttpGrid._runtime_client",
    "flwr.supercore.state.schema.linkstate_models:MessageIns.delivered_at",
    "flwr.supercore.state.schema.linkstate_models:MessageIns.dst_node_id",
    "flwr.supercore.state.schema.linkstate_models:MessageIns.message_id",
    "flwr.supercore.state.schema.linkstate_models:MessageRes.reply_to_message_id",
    "flwr.supercore.state.schema.linkstate_models:Node.node_id",
    "flwr.supercore.state.schema.linkstate_models:Node.status",
    "flwr.supercore.state.schema.linkstate_models:Node.last_deactivated_at",
    "flwr.supercore.constant:NodeStatus.ONLINE",
    "flwr.supercore.constant:NodeStatus.OFFLINE",
    "flwr.supercore.constant:FLWR_IN_MEMORY_DB_NAME",
    "flwr.supercore.inflatable.inflatable_utils:ObjectPullError",
    "flwr.supercore.inflatable.inflatable_utils:ObjectPushError",
    "flwr.supercore.error:ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED",
    "flwr.supercore.error:ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED",
    "flwr.supercore.error:ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL",
    "flwr.common.constant:PUBLIC_KEY_HEADER",
    "flwr.common.constant:SIGNATURE_HEADER",
    "flwr.common.constant:TIMESTAMP_HEADER",
    "flwr.common.constant:ErrorCode.CLIENT_APP_RAISED_EXCEPTION",
    "flwr.proto.fleet_pb2_grpc:FleetServicer",
)

USERS = (
    "client/gateway/connection.py",
    "client/gateway/reasons.py",
    "server/deployment/flower_superlink.py",
    "server/transport/flower_state.py",
    "server/transport/gateway_calls.py",
    "server/transport/hub.py",
)
PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.superlink", "flwr.superlink.cli"}
"""Flower's public modules. Those of `flwr.proto` are made of its protocol and are not listed either."""


def found(name: str) -> object:
    module, _, path = name.partition(":")
    place: object = importlib.import_module(module)
    if module == "flwr.superlink.cli.flower_superlink" or not hasattr(place, path.partition(".")[0]):
        place = importlib.sys.modules[module]  # type: ignore[attr-defined]
    for part in path.split("."):
        place = inspect.getattr_static(place, part) if inspect.isclass(place) else getattr(place, part)
    return place


def test_the_pinned_version_of_flower_is_installed() -> None:
    assert f'"flwr=={version("flwr")}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_private_function_of_flower_takes_what_consilium_gives_it(name: str) -> None:
    function = found(name)
    if isinstance(function, staticmethod | classmethod):
        function = function.__func__
    assert callable(function)
    assert ", ".join(inspect.signature(function).parameters) == SIGNATURES[name]


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_private_name_of_flower_exists(name: str) -> None:
    assert found(name) is not None


def test_flowers_state_is_kept_by_the_class_that_consilium_changes(tmp_path: Path) -> None:
    from flwr.server.superlink.linkstate import LinkStateFactory
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.superlink.federation import NoOpFederationManager

    states = LinkStateFactory(str(tmp_path / "db"), NoOpFederationManager(), ObjectStoreFactory())
    assert type(states.state()) is SqlLinkState


@pytest.mark.parametrize("file", USERS)
def test_every_private_module_that_is_imported_is_listed(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    imported = set(re.findall(r"^\s*(?:from|import) (flwr[\w.]*)", text, re.MULTILINE))
    private = {name for name in imported - PUBLIC if not name.startswith("flwr.proto")}
    listed = {name.partition(":")[0] for name in (*SIGNATURES, *ATTRIBUTES)}
    listed |= {name.rpartition(".")[0] for name in listed}  # `from flwr.a import b`
    assert private <= listed
