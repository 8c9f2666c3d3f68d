"""The Helm charts, as helm renders them: who sees what, what each container may do, and what is refused.

No cluster is asked. Without helm on this machine (PATH, or the variable HELM) only the values are looked at.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from client.config import SiteConfig
from client.config.site import load_site
from client.gateway.settings import GatewayConfig
from common import release
from common.settings import load_settings
from tests.places import ROOT

CHARTS = ROOT / "deploy" / "helm"
KIT = ROOT / "server" / "provisioning" / "kit"
HELM = os.environ.get("HELM") or shutil.which("helm")
with_helm = pytest.mark.skipif(HELM is None, reason="helm is not installed")

SERVER = ["--set", "federationSecretName=skin-federation"]
BOTH = pytest.mark.parametrize("chart", ["consilium-site", "consilium-server"])

Object = dict[str, Any]


def kit_file(name: str, **changes: str) -> str:
    """A file of the start-up kit of the site north, with lines changed by their key."""
    text = (KIT / name).read_text(encoding="utf-8")
    text = (
        text.replace("@SITE@", "north")
        .replace("@SERVER@", "fl.example.org:9092")
        .replace("@VERSION@", "0.2.0")
    )
    for key, value in {"root": "/data", **changes}.items():
        text = re.sub(rf"^(\s*){key}: .*$", lambda line: f"{line[1]}{key}: {value}", text, flags=re.MULTILINE)  # noqa: B023
    return text


@pytest.fixture
def site(tmp_path: Path) -> list[str]:
    """What the site's chart must be given."""
    return of_site(tmp_path, kit_file("gateway.yaml"), kit_file("site.yaml"))


def of_site(folder: Path, gateway: str, site: str) -> list[str]:
    (folder / "gateway.yaml").write_text(gateway)
    (folder / "site.yaml").write_text(site)
    files = [f"settings.gateway={folder / 'gateway.yaml'}", f"settings.site={folder / 'site.yaml'}"]
    values = ["secretName=north-key", "wayOut.address=203.0.113.5"]
    return [
        *(word for file in files for word in ("--set-file", file)),
        *(word for value in values for word in ("--set", value)),
    ]


def helm(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    assert HELM is not None
    return subprocess.run(
        [HELM, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


def render(chart: str, *arguments: str) -> list[Object]:
    done = helm("template", "skin", CHARTS / chart, *arguments)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def of_kind(objects: list[Object], kind: str) -> Object:
    (found,) = [one for one in objects if one["kind"] == kind]
    return found


def pod_of(objects: list[Object]) -> Object:
    spec: Object = of_kind(objects, "StatefulSet")["spec"]["template"]["spec"]
    return spec


def containers(pod: Object) -> dict[str, Object]:
    return {one["name"]: one for one in [*pod["initContainers"], *pod["containers"]]}


def volumes_of(pod: Object, container: str) -> set[str]:
    return {mount["name"] for mount in containers(pod)[container]["volumeMounts"]}


# --- without helm ----------------------------------------------------------------------------------


@BOTH
def test_a_chart_has_the_programs_version_and_its_values_fit_their_schema(chart: str) -> None:
    about = yaml.safe_load((CHARTS / chart / "Chart.yaml").read_text())
    assert about["version"] == about["appVersion"] == release.version()
    schema = json.loads((CHARTS / chart / "values.schema.json").read_text())
    values = yaml.safe_load((CHARTS / chart / "values.yaml").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    wrong = {
        ".".join(map(str, error.path)) for error in jsonschema.Draft7Validator(schema).iter_errors(values)
    }
    required = {"settings.gateway", "settings.site", "secretName", "wayOut.address"}
    assert wrong == (required if chart == "consilium-site" else {"federationSecretName"})


@BOTH
def test_every_value_is_used_and_every_value_that_is_used_is_there(chart: str) -> None:
    values = yaml.safe_load((CHARTS / chart / "values.yaml").read_text())
    text = "".join(path.read_text() for path in (CHARTS / chart / "templates").iterdir())
    used = set(re.findall(r"\.Values\.(\w+)", text))
    assert used == values.keys()


# --- both charts -----------------------------------------------------------------------------------


@with_helm
@BOTH
def test_a_chart_is_linted_without_a_warning(chart: str, site: list[str]) -> None:
    done = helm("lint", "--strict", CHARTS / chart, *(site if chart == "consilium-site" else SERVER))
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout + done.stderr


@with_helm
@BOTH
def test_no_container_has_rights_or_a_file_of_its_image_to_write_or_an_account(
    chart: str, site: list[str]
) -> None:
    pod = pod_of(render(chart, *(site if chart == "consilium-site" else SERVER)))
    assert pod["automountServiceAccountToken"] is False
    assert not any(pod[name] for name in ("hostNetwork", "hostPID", "hostIPC"))
    assert pod["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001,
        "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    for container in containers(pod).values():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
        }
        assert "memory" in container["resources"]["limits"]


@with_helm
@BOTH
def test_large_numbers_of_users_stay_whole_numbers(chart: str, site: list[str]) -> None:
    # OpenShift gives numbers like this one; a template's float would print 1.00068e+09
    given = [
        *(site if chart == "consilium-site" else SERVER),
        "--set",
        "runAs.user=1000680000,runAs.group=1000680000",
    ]
    context = pod_of(render(chart, *given))["securityContext"]
    assert (context["runAsUser"], context["fsGroup"]) == (1000680000, 1000680000)


@with_helm
@BOTH
@pytest.mark.parametrize(
    ("value", "named"),
    [("runAs.user=0", "user"), ("no.such=1", "no"), ("tmpSize=lots", "tmpSize")],
)
def test_root_an_unknown_value_and_a_size_without_a_unit_are_refused(
    chart: str, value: str, named: str, site: list[str]
) -> None:
    done = helm("template", CHARTS / chart, *(site if chart == "consilium-site" else SERVER), "--set", value)
    assert done.returncode != 0
    assert named in done.stderr


# --- a site ----------------------------------------------------------------------------------------


@with_helm
def test_the_gateway_sees_the_key_and_no_image_and_the_trainer_images_and_no_key(site: list[str]) -> None:
    pod = pod_of(render("consilium-site", *site))
    assert volumes_of(pod, "gateway") == {"gateway", "link", "gateway-tmp"}
    assert volumes_of(pod, "trainer") == {
        "trainer", "trainer-settings", "state", "link", "trainer-tmp", "data-images"
    }  # fmt: skip
    assert {name for name in containers(pod) if "secret" in volumes_of(pod, name)} == {"key"}
    shared = volumes_of(pod, "gateway") & volumes_of(pod, "trainer")
    assert shared == {"link"}
    mounts = {one["name"]: one for one in containers(pod)["trainer"]["volumeMounts"]}
    assert mounts["data-images"]["readOnly"] is True
    assert pod["shareProcessNamespace"] is False


@with_helm
def test_the_trainer_gives_up_the_network_that_the_pod_has(site: list[str]) -> None:
    pod = containers(pod_of(render("consilium-site", *site)))
    assert pod["trainer"]["args"][-1] == "--no-network"
    assert "--no-network" not in pod["gateway"]["args"]


@with_helm
def test_the_pod_may_call_the_server_alone_and_asks_no_name_server(site: list[str]) -> None:
    objects = render("consilium-site", *site)
    policy = of_kind(objects, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == []
    assert policy["egress"] == [
        {"to": [{"ipBlock": {"cidr": "203.0.113.5/32"}}], "ports": [{"protocol": "TCP", "port": 9092}]}
    ]
    labels = of_kind(objects, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"] == labels
    pod = pod_of(objects)
    assert pod["dnsPolicy"] == "None"
    assert pod["hostAliases"] == [{"ip": "203.0.113.5", "hostnames": ["fl.example.org"]}]
    # 9092 is 2384 in hexadecimal, as /proc/net/tcp has it
    assert containers(pod)["gateway"]["readinessProbe"]["exec"]["command"][2] == " [0-9A-F]+:2384 01 "


@with_helm
@pytest.mark.parametrize(
    ("server", "proxy", "address", "cidr", "port", "names"),
    [
        (
            "fl.example.org:9092",
            "http://u:p@proxy.local:3128",
            "10.0.0.7",
            "10.0.0.7/32",
            3128,
            ["proxy.local"],
        ),
        ("203.0.113.5:9092", "", "203.0.113.5", "203.0.113.5/32", 9092, None),
        ("'[2001:db8::5]:443'", "", "2001:db8::5", "2001:db8::5/128", 443, None),
        ("fl.example.org:443", "", "2001:db8::5", "2001:db8::5/128", 443, ["fl.example.org"]),
    ],
)
def test_the_way_out_is_the_server_or_the_proxy_of_gateway_yaml(
    tmp_path: Path, server: str, proxy: str, address: str, cidr: str, port: int, names: list[str] | None
) -> None:
    text = kit_file("gateway.yaml", server=server) + (f"\nproxy: {proxy}\n" if proxy else "")
    given = of_site(tmp_path, text, kit_file("site.yaml"))
    objects = render("consilium-site", *given, "--set-string", f"wayOut.address={address}")
    (rule,) = of_kind(objects, "NetworkPolicy")["spec"]["egress"]
    assert rule["to"] == [{"ipBlock": {"cidr": cidr}}]
    assert rule["ports"] == [{"protocol": "TCP", "port": port}]
    aliases = pod_of(objects).get("hostAliases")
    assert (aliases and aliases[0]["hostnames"]) == names


@with_helm
def test_the_settings_arrive_as_they_were_and_load(site: list[str], tmp_path: Path) -> None:
    maps = [one["data"] for one in render("consilium-site", *site) if one["kind"] == "ConfigMap"]
    assert maps == [{"gateway.yaml": kit_file("gateway.yaml")}, {"site.yaml": kit_file("site.yaml")}]
    (tmp_path / "out.yaml").write_text(maps[0]["gateway.yaml"])
    assert load_settings(tmp_path / "out.yaml", GatewayConfig, "gateway").site == "north"
    (tmp_path / "site.yaml").write_text(maps[1]["site.yaml"])
    loaded: SiteConfig = load_site(tmp_path / "site.yaml")
    assert loaded.state_dir == tmp_path / "state"


@with_helm
@pytest.mark.parametrize(
    ("gateway", "site", "named"),
    [
        ({"site": "south"}, {}, "settings.site is of site north and settings.gateway of south"),
        ({"server": "fl.example.org"}, {}, "fl.example.org without a port"),
        ({}, {"state_dir": "/elsewhere"}, "write `state`"),
        ({"server": ""}, {}, "names no site or no server"),
        ({"server": "[a: b"}, {}, "settings.gateway is not YAML"),
    ],
)
def test_files_of_two_sites_and_paths_outside_the_container_are_refused_with_what_to_do(
    tmp_path: Path, gateway: dict[str, str], site: dict[str, str], named: str
) -> None:
    given = of_site(tmp_path, kit_file("gateway.yaml", **gateway), kit_file("site.yaml", **site))
    done = helm("template", CHARTS / "consilium-site", *given)
    assert done.returncode != 0
    assert named in done.stderr


@with_helm
@pytest.mark.parametrize("value", ["fl.example.org", "203.0.113.0/24", "0.0.0.0/0", "10.0.0.1, 10.0.0.2"])
def test_a_way_out_that_is_no_single_address_is_refused(site: list[str], value: str) -> None:
    done = helm("template", CHARTS / "consilium-site", *site, "--set-literal", f"wayOut.address={value}")
    assert done.returncode != 0
    assert "address" in done.stderr


@with_helm
def test_images_may_lie_on_several_volumes_beside_a_gpu_and_weights(site: list[str], tmp_path: Path) -> None:
    more: Object = {
        "data": [
            {"name": "images", "mountPath": "/data", "source": {"nfs": {"server": "pacs", "path": "/out"}}},
            {"name": "scans", "mountPath": "/scans", "source": {"hostPath": {"path": "/srv/scans"}}},
        ],
        "weights": {"persistentVolumeClaim": {"claimName": "weights"}},
        "gpus": {"count": 2},
    }
    pod = pod_of(render("consilium-site", *site, *in_file(tmp_path, more)))
    mounts = {one["mountPath"]: one for one in containers(pod)["trainer"]["volumeMounts"]}
    assert all(mounts[place]["readOnly"] for place in ("/data", "/scans", "/site/weights"))
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert volumes["data-scans"] == {"name": "data-scans", "hostPath": {"path": "/srv/scans"}}
    assert volumes_of(pod, "gateway") == {"gateway", "link", "gateway-tmp"}
    limits = {name: one["resources"]["limits"] for name, one in containers(pod).items()}
    assert limits["trainer"] == {"memory": "64Gi", "nvidia.com/gpu": 2}
    assert limits["gateway"] == {"memory": "8Gi"}


@with_helm
@pytest.mark.parametrize("place", ["/site/state", "/link", "/venv/lib", "data"])
def test_images_are_not_mounted_where_the_program_has_its_own(
    site: list[str], tmp_path: Path, place: str
) -> None:
    images = {"name": "images", "mountPath": place, "source": {"hostPath": {"path": "/srv"}}}
    done = helm("template", CHARTS / "consilium-site", *site, *in_file(tmp_path, {"data": [images]}))
    assert done.returncode != 0
    assert "mountPath" in done.stderr


def in_file(folder: Path, values: Object) -> list[str]:
    (folder / "values.yaml").write_text(yaml.safe_dump(values))
    return ["--values", str(folder / "values.yaml")]


# --- the server ------------------------------------------------------------------------------------


@with_helm
def test_the_server_calls_no_machine_and_its_console_is_on_loopback_alone() -> None:
    objects = render("consilium-server", *SERVER)
    policy = of_kind(objects, "NetworkPolicy")["spec"]
    assert policy["egress"] == []
    assert policy["ingress"] == [{"ports": [{"protocol": "TCP", "port": 9092}]}]
    server = containers(pod_of(objects))["server"]
    assert server["args"] == ["up", "/server", "--console"]
    assert [port["containerPort"] for port in server["ports"]] == [9092]
    assert [port["port"] for port in of_kind(objects, "Service")["spec"]["ports"]] == [9092]


@with_helm
def test_metrics_are_read_by_named_peers_alone() -> None:
    peer = "metrics.from[0].podSelector.matchLabels.app=prometheus"
    objects = render("consilium-server", *SERVER, "--set", "metrics.enabled=true", "--set", peer)
    ingress = of_kind(objects, "NetworkPolicy")["spec"]["ingress"]
    assert ingress[1] == {
        "ports": [{"protocol": "TCP", "port": 9464}],
        "from": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
    }
    closed = render("consilium-server", *SERVER, "--set", "metrics.enabled=true")
    assert len(of_kind(closed, "NetworkPolicy")["spec"]["ingress"]) == 1


@with_helm
def test_an_earlier_servers_authority_comes_from_a_secret_that_the_server_itself_does_not_see() -> None:
    pod = pod_of(render("consilium-server", *SERVER, "--set", "authoritySecretName=skin-ca"))
    assert {name for name in containers(pod) if "authority" in volumes_of(pod, name)} == {"folder"}
    assert "install -m 0600 /authority/ca.key" in containers(pod)["folder"]["command"][2]
    assert {name for name in containers(pod) if "federation" in volumes_of(pod, name)} == {"provision"}
