from pathlib import Path

import pytest

from client.config import CacheConfig, CsvData, FoldersData, NoSplit, SiteConfig, load_site
from common.errors import ConfigError
from tests.places import CONFIGS

EXAMPLE = CONFIGS / "site" / "example.yaml"


def written(folder: Path, text: str) -> Path:
    path = folder / "site.yaml"
    path.write_text(text)
    return path


def test_the_shipped_example_loads_and_names_every_setting():
    site = load_site(EXAMPLE)
    assert site.name == "north"
    assert isinstance(site.data, CsvData)
    assert site.model_fields_set == set(SiteConfig.model_fields)


def test_relative_paths_count_from_the_yaml_and_absolute_ones_stay(tmp_path):
    site = load_site(
        written(
            tmp_path,
            "name: a\ndata: {kind: csv, labels: data/labels.csv}\nstate_dir: /var/state\nsocket: run/trainer.sock\n",
        )
    )
    assert isinstance(site.data, CsvData)
    assert site.data.labels == tmp_path / "data" / "labels.csv"
    assert site.data.image_folder == tmp_path / "data"
    assert site.state_dir == Path("/var/state")
    assert site.socket == tmp_path / "run" / "trainer.sock"
    assert site.weights_dir is None


def test_few_settings_are_enough(tmp_path):
    site = load_site(written(tmp_path, "name: a\ndata: {kind: folders, root: images}\nstate_dir: state\n"))
    assert site.data == FoldersData(root=tmp_path / "images")
    assert site.cache == CacheConfig(memory_mib=256, disk_mib=20480)
    assert site.device == "auto"


def test_a_number_in_row_filter_values_means_the_text_in_the_csv(tmp_path):
    path = written(
        tmp_path,
        "name: a\ndata: {kind: csv, labels: l.csv, row_filter: {column: centre, values: [3]}}\nstate_dir: s\n",
    )
    data = load_site(path).data
    assert isinstance(data, CsvData)
    assert data.row_filter is not None
    assert data.row_filter.values == ("3",)


def test_a_setting_of_an_earlier_version_is_refused_under_its_new_name_beside_all_other_mistakes(tmp_path):
    path = written(
        tmp_path,
        "name: north side\nstate_dir: s\n"
        "data: {kind: csv, labels: l.csv, take: a.csv, only: {column: centre, values: [3]}}\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_site(path)
    _, name, *renamed = str(caught.value).splitlines()
    assert name.startswith("  name: ")
    assert renamed == [
        "  data.take: take is called image_list since version 0.2; rename it",
        "  data.only: only is called row_filter since version 0.2; rename it",
    ]


def test_an_earlier_name_is_explained_only_where_the_setting_exists(tmp_path):
    path = written(tmp_path, "name: a\nstate_dir: s\ndata: {kind: folders, root: i, take: a.csv, only: {}}\n")
    with pytest.raises(ConfigError) as caught:
        load_site(path)
    text = str(caught.value)
    assert "data.take: take is called image_list since version 0.2; rename it" in text
    assert "data.only: no such setting" in text
    assert "row_filter" not in text.splitlines()[2]


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1"])
def test_devices_that_exist_are_accepted(device, tmp_path):
    text = f"name: a\ndata: {{kind: folders, root: i}}\nstate_dir: s\ndevice: {device}\n"
    assert load_site(written(tmp_path, text)).device == device


def test_all_mistakes_are_reported_at_once(tmp_path):
    path = written(
        tmp_path,
        "name: north side\ndata: {kind: folders, rot: images}\nstate_dir: s\ndevice: gpu\n"
        "split: {kind: none, all: validation}\ncache: {memory_gb: 3}\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_site(path)
    text = str(caught.value)
    for field in ("name:", "data.root: missing", "data.rot: no such setting", "device:", "split.all:"):
        assert field in text
    assert "did you mean cache.memory_mib?" in text


def test_a_column_split_needs_a_column_and_a_column_needs_a_column_split(tmp_path):
    data = "name: a\nstate_dir: s\ndata: {kind: csv, labels: l.csv"
    with pytest.raises(ConfigError, match=r"data\.columns\.split names none"):
        load_site(written(tmp_path, data + "}\nsplit: {kind: column}\n"))
    with pytest.raises(ConfigError, match="is not used by"):
        load_site(written(tmp_path, data + ", columns: {split: fold}}\n"))


def test_a_site_may_only_test(tmp_path):
    text = "name: a\ndata: {kind: folders, root: i}\nstate_dir: s\nsplit: {kind: none, all: test}\n"
    assert load_site(written(tmp_path, text)).split == NoSplit(all="test")
