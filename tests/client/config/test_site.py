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


@pytest.mark.parametrize("devices", ["[cuda:0, cuda:1]", "[cpu, cpu]", "[cuda:3]"])
def test_several_devices_of_one_kind_are_accepted(devices, tmp_path):
    text = f"name: a\ndata: {{kind: folders, root: i}}\nstate_dir: s\ndevice: {devices}\n"
    assert load_site(written(tmp_path, text)).devices == tuple(devices.strip("[]").split(", "))


@pytest.mark.parametrize(
    ("devices", "why"),
    [
        ("[cuda, cuda:0]", "a GPU is named twice"),
        ("[cpu, cuda:0]", "a CPU would make a GPU wait"),
        ("[auto, cuda:1]", "auto finds one device"),
        ("[]", "at least 1"),
    ],
)
def test_devices_that_cannot_share_a_batch_are_refused_with_the_reason(devices, why, tmp_path):
    text = f"name: a\ndata: {{kind: folders, root: i}}\nstate_dir: s\ndevice: {devices}\n"
    with pytest.raises(ConfigError, match=why):
        load_site(written(tmp_path, text))


def test_all_mistakes_are_reported_at_once(tmp_path):
    path = written(
        tmp_path,
        "name: north side\ndata: {kind: folders, rot: images}\nstate_dir: s\ndevice: gpu\n"
        "split: {kind: none, all: both}\ncache: {memory_gb: 3}\n",
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


# --- values of a table, as they were written -------------------------------------------------

CELLS = """\
name: a
state_dir: s
data:
  kind: csv
  labels: l.csv
  row_filter: {column: centre, values: VALUES}
  label_map:
    KEY: nv
"""


@pytest.mark.parametrize(
    "word", ["3", "007", "1.10", "1e3", "1_000", "0x1F", "12:30", "2020-01-01", "'NO'", '"~"', "Ja"]
)
def test_a_value_of_a_table_is_the_text_that_stands_in_the_file(word, tmp_path):
    data = load_site(written(tmp_path, CELLS.replace("VALUES", f"[{word}]").replace("KEY", word))).data
    assert isinstance(data, CsvData)
    assert data.row_filter is not None
    assert data.row_filter.values == (word.strip("'\""),)
    assert data.label_map == {word.strip("'\""): "nv"}


@pytest.mark.parametrize("word", ["NO", "yes", "on", "~", "null", "True"])
def test_a_truth_value_or_nothing_is_no_value_of_a_table_and_needs_quotes(word, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_site(written(tmp_path, CELLS.replace("VALUES", f"[a, {word}]").replace("KEY", word)))
    _, key, value = str(caught.value).splitlines()
    assert key.startswith(f"  data.label_map: the key {word} (line 8) is read as ")
    assert value.startswith(f"  data.row_filter.values.1: {word} (line 6) is read as ")
    assert key.endswith(f'; it needs quotes: "{word}"')
    assert value.endswith(f'; it needs quotes: "{word}"')


@pytest.mark.parametrize("word", ["no", "0", "1e3", "2020-01-01"])
def test_the_studys_class_in_a_label_map_needs_quotes_and_its_key_is_named(word, tmp_path):
    text = CELLS.replace("VALUES", "[a]").replace("KEY: nv", f"melanoma: {word}")
    with pytest.raises(
        ConfigError, match=rf'data\.label_map\.melanoma: {word} \(line 8\) .* needs quotes: "{word}"'
    ):
        load_site(written(tmp_path, text))


def test_a_class_without_a_word_behind_it_is_not_left_out_silently(tmp_path):
    text = CELLS.replace("VALUES", "[a]").replace("KEY: nv", "melanoma:")
    with pytest.raises(ConfigError, match=r"data\.label_map\.melanoma: nothing stands after it \(line 8\)"):
        load_site(written(tmp_path, text))
    data = load_site(written(tmp_path, text.replace("melanoma:", "melanoma: null"))).data
    assert data.label_map == {"melanoma": None}


@pytest.mark.parametrize(("one", "other"), [("1", '"1"'), ("no", '"no"'), ("1.10", "'1.10'"), ("nv", "nv")])
def test_two_keys_of_a_label_map_that_are_one_name_are_an_error(one, other, tmp_path):
    text = CELLS.replace("VALUES", "[a]").replace("KEY: nv", f"{one}: nv\n    {other}: mel")
    with pytest.raises(ConfigError, match=r"data\.label_map\.\S+ stands twice, in line 8 and line 9"):
        load_site(written(tmp_path, text))


def test_a_policy_that_stands_twice_does_not_lose_its_first_half(tmp_path):
    text = (
        "name: a\nstate_dir: s\ndata: {kind: folders, root: i}\n"
        "policy: {encoders: [convnext_t], max_rounds_per_day: 0, ask: true}\npolicy: {min_cell: 5}\n"
    )
    with pytest.raises(ConfigError, match="policy stands twice, in line 4 and line 5"):
        load_site(written(tmp_path, text))


@pytest.mark.parametrize(
    ("word", "expected"), [("yes", True), ("on", True), ("true", True), ("no", False), ("off", False)]
)
def test_where_yes_or_no_is_asked_each_spelling_of_it_is_taken(word, expected, tmp_path):
    text = f"name: a\nstate_dir: s\ndata: {{kind: folders, root: i}}\npolicy: {{ask: {word}}}\n"
    assert load_site(written(tmp_path, text)).policy.ask is expected


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("|\n    images", r"the path 'images\n' has a line break in it; write it in one line"),
        ('"ima\\0ges"', r"the path 'ima\x00ges' has the control character U+0000 in it"),
        ("~nobody-has-this-name/images", "begins with ~, and this machine does not know that home"),
    ],
)  # fmt: skip
def test_a_path_that_cannot_be_one_is_named(tmp_path, root, said):
    with pytest.raises(ConfigError) as caught:
        load_site(written(tmp_path, f"name: a\nstate_dir: state\ndata:\n  kind: folders\n  root: {root}\n"))
    assert said in str(caught.value)


@pytest.mark.parametrize("dash", ["-", "\u2013", "\u2014", "\u2212", " - "])
def test_hours_may_have_the_dash_that_a_word_processor_makes(tmp_path, dash):
    text = f"name: a\nstate_dir: s\ndata: {{kind: folders, root: i}}\npolicy: {{hours: '19:00{dash}07:00'}}\n"
    site = load_site(written(tmp_path, text))
    assert site.policy.model_dump()["hours"] == "19:00-07:00"
