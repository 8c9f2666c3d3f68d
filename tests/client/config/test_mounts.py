"""Everything that a site names is mounted, once, where the trainer looks for it; what cannot be gets a sentence."""

from pathlib import Path

import pytest
import yaml

from client.config import SiteConfig, mounts
from common.errors import ConfigError
from common.formats import yaml_text
from common.settings import parse_settings

KIT = Path("/opt/kit")
KINDS = {
    "folders": ("{kind: folders, root: /d/i}", ["/d/i"]),
    "csv": ("{kind: csv, labels: /t/l.csv, images: /d/i}", ["/d/i", "/t/l.csv"]),
    "csv without images": ("{kind: csv, labels: /t/l.csv}", ["/t"]),
    "ham10000, both parts": (
        "{kind: ham10000, metadata: /t/m.csv, images: [/d/part_1, /e/part_2]}", ["/d/part_1", "/e/part_2", "/t/m.csv"]
    ),
    "ham10000 beside its table": ("{kind: ham10000, metadata: /t/m.csv}", ["/t"]),
    "isic2018": (
        "{kind: isic2018, ground_truth: /d/GroundTruth/g.csv, images: /d/Input, metadata: /m/LesionGroupings.csv}",
        ["/d/GroundTruth/g.csv", "/d/Input", "/m/LesionGroupings.csv"],
    ),
    "isic2019": ("{kind: isic2019, ground_truth: /g/g.csv, images: /d/i}", ["/d/i", "/g/g.csv"]),
    "fed_isic2019": (
        "{kind: fed_isic2019, split_file: /f/s.csv, center: 0, images: /d/i, metadata: /m/m.csv}",
        ["/d/i", "/f/s.csv", "/m/m.csv"],
    ),
    "brats": ("{kind: brats, root: /d/b}", ["/d/b"]),
    "brain_mri": ("{kind: brain_mri, root: /d/b}", ["/d/b"]),
    "dicom": ("{kind: dicom, root: /d/pacs, labels: /t/l.csv}", ["/d/pacs", "/t/l.csv"]),
    "medmnist": ("{kind: medmnist, archive: /d/pathmnist.npz}", ["/d/pathmnist.npz"]),
    "an image list": ("{kind: folders, root: /d/i, image_list: /l/north.csv}", ["/d/i", "/l/north.csv"]),
}  # fmt: skip


def site(data: str, more: str = "") -> SiteConfig:
    text = f"name: north\nstate_dir: state\nweights_dir: weights\nsocket: link/trainer.sock\ndata: {data}\n{more}"
    return parse_settings(text, SiteConfig, "site", "site.yaml")


def targets(config: SiteConfig) -> list[str]:
    return [mount.target for mount in mounts.mounts(config, KIT)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_gets_every_folder_and_table_that_it_needs(kind):
    data, needed = KINDS[kind]
    found = mounts.mounts(site(data), KIT)
    assert [mount.target for mount in found] == [mount.source for mount in found] == needed
    assert not any(mount.writable for mount in found)


def test_every_kind_of_data_is_tried_here():
    tried = {site(data).data.kind for data, _ in KINDS.values()}
    choices = SiteConfig.model_json_schema()["properties"]["data"]["discriminator"]["mapping"]
    assert tried == set(choices)


def test_a_folder_in_another_and_one_that_is_named_twice_are_mounted_once():
    assert targets(site("{kind: ham10000, metadata: /d/m.csv, images: [/d/p1, /d/p1, /d]}")) == ["/d"]
    assert targets(site("{kind: ham10000, metadata: /d/./m.csv, images: [/d/x/../p1, /d/p1]}")) == [
        "/d/m.csv",
        "/d/p1",
    ]
    assert targets(site("{kind: csv, labels: /data2/l.csv, images: /data}")) == ["/data", "/data2/l.csv"]


def test_relative_paths_lie_beside_site_yaml_outside_and_inside():
    found = mounts.mounts(site("{kind: csv, labels: tables/l.csv, images: ../images}"), KIT)
    assert [(mount.source, mount.target) for mount in found] == [
        ("/opt/images", "/images"),
        ("/opt/kit/tables/l.csv", "/site/tables/l.csv"),
    ]


def test_weights_secret_and_state_that_lie_elsewhere_are_mounted_and_only_state_may_be_written():
    text = "name: north\ndata: {kind: folders, root: /d}\nstate_dir: /var/north\n"
    text += "weights_dir: /w\noverlap_secret: /s/o\n"
    found = mounts.mounts(parse_settings(text, SiteConfig, "site", "site.yaml"), KIT)
    assert [(mount.target, mount.writable) for mount in found] == [
        ("/d", False), ("/s/o", False), ("/var/north", True), ("/w", False),
    ]  # fmt: skip


def test_state_in_a_folder_of_images_may_be_written_and_images_in_the_kits_state_may_not():
    text = "name: north\nstate_dir: /d/state\ndata: {kind: csv, labels: state/l.csv, images: /d}\n"
    found = mounts.mounts(parse_settings(text, SiteConfig, "site", "site.yaml"), KIT)
    assert [(mount.target, mount.writable) for mount in found] == [
        ("/d", False), ("/d/state", True), ("/site/state/l.csv", False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("~/images", "~ is another folder in a container; write the whole path, from / on"),
        ("/", "/ would hide / of the container"),
        ("/usr/local", "/usr/local would hide /usr/local of the container"),
        ("/tmp", "/tmp would hide /tmp of the container"),
        ("/proc/1/root/images", "would hide /proc/1/root/images of the container"),
        (".", ". would hide /site of the container"),
        ("../usr/lib", "../usr/lib would hide /usr/lib of the container"),
        ("/opt/kit", "/opt/kit holds this kit with its private key, which the trainer must not see"),
        ("/opt", "/opt would hide /opt of the container"),
        ("link/images", "link/images lies in link/, which the gateway sees"),
        ("/opt/kit/link", "/opt/kit/link lies in link/, which the gateway sees"),
        ('"/d/a\\nb"', "has a control character or letters that are not UTF-8"),
    ],
)
def test_a_path_that_no_container_can_have_gets_a_sentence(root, said):
    with pytest.raises(ConfigError) as caught:
        mounts.mounts(site(f"{{kind: folders, root: {root}}}"), KIT)
    first, line = str(caught.value).splitlines()
    assert first == "site.yaml does not fit this kit:"
    assert line.startswith("  data.root: ")
    assert said in line


def test_state_in_the_very_folder_of_the_images_is_refused():
    text = "name: north\nstate_dir: /d\ndata: {kind: folders, root: /d}\n"
    with pytest.raises(
        ConfigError, match=r"state_dir: it is the folder of data\.root, which may not be written to"
    ):
        mounts.mounts(parse_settings(text, SiteConfig, "site", "site.yaml"), KIT)


def test_everything_that_does_not_fit_the_kit_is_said_at_once():
    config = parse_settings(
        "name: south\nstate_dir: state\nsocket: run/t.sock\n"
        "data: {kind: ham10000, metadata: ~/m.csv, images: [/, /d]}\n",
        SiteConfig,
        "site",
        "site.yaml",
    )
    with pytest.raises(ConfigError) as caught:
        mounts.mounts(config, KIT, "north")
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == [
        "name", "socket", "data.metadata", "data.images.0",
    ]  # fmt: skip


ODD = [
    "/d/my images", "/d/Bilder Köln", "/d/it's", '/d/"so"', "/d/$HOME", "/d/a:b", "/d/a,b", "/d/100%", "/d/a\\b",
    "/d/#1", "/d/{a}", "/d/ends ", "/d/画像", "/d/a'b \"c\" $d: e",
]  # fmt: skip


@pytest.mark.parametrize("path", ODD)
def test_any_letter_of_a_path_survives_into_composes_file(path):
    config = site(yaml_text.dump({"kind": "folders", "root": path}).replace("\n", "\n  ").join(("\n  ", "")))
    text = mounts.compose(config, mounts.mounts(config, KIT))
    (volume,) = yaml.safe_load(text)["services"]["trainer"]["volumes"]
    # compose itself reads $$ as $
    assert volume["source"].replace("$$", "$") == volume["target"].replace("$$", "$") == path
    assert "$" not in volume["source"].replace("$$", "")
    assert volume == volume | {"type": "bind", "read_only": True, "bind": {"create_host_path": False}}
    assert f"# needs: {path}\n" in text


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1"])
def test_the_device_stands_in_a_line_of_its_own(device):
    config = site("{kind: folders, root: /d}", f"device: '{device}'   # ours\n")
    assert f"\n# device: {device}\n" in mounts.compose(config, mounts.mounts(config, KIT))


def test_the_trainers_unit_gets_every_folder_and_the_gateways_none_of_them():
    text = "name: north\ndata: {kind: folders, root: '/d/a \"b\" 5%'}\nstate_dir: /var/north\n"
    found = mounts.mounts(parse_settings(text, SiteConfig, "site", "site.yaml"), KIT)
    assert mounts.trainer_unit(found).splitlines()[1:] == [
        "[Service]", 'BindReadOnlyPaths="-/d/a \\"b\\" 5%%"', 'BindPaths="-/var/north"',
    ]  # fmt: skip
    assert mounts.gateway_unit(found).splitlines()[1:] == [
        "[Service]", 'InaccessiblePaths="-/d/a \\"b\\" 5%%"', 'InaccessiblePaths="-/var/north"',
    ]  # fmt: skip
