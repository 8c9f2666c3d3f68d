import subprocess
import sys
from pathlib import Path

import pytest

from client.config import ColumnSplit, CsvData, FoldersData, GroupedSplit
from client.data.simulation.discover import discover
from common.errors import SiteDataError
from tests.places import ROOT


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


@pytest.mark.parametrize("column", ["site", "domain", "centre"])
def test_a_csv_with_a_site_column_is_a_federation(column, tmp_path):
    (tmp_path / "labels.csv").write_text(
        f"file,label,{column},lesion_id\na.jpg,nv,south,1\nb.jpg,mel,north,2\nc.jpg,nv,north,3\n"
    )
    found = discover(tmp_path)
    assert found.classes == ("mel", "nv")
    assert [(site.name, site.num_images) for site in found.sites] == [("north", 2), ("south", 1)]
    data = found.sites[0].data
    assert isinstance(data, CsvData)
    assert data.row_filter is not None
    assert (data.row_filter.column, data.row_filter.values, data.columns.group) == (
        column,
        ("north",),
        "lesion_id",
    )
    assert found.sites[0].split == GroupedSplit()
    assert found.has_groups


def test_lesions_that_two_sites_photographed_are_counted(tmp_path):
    (tmp_path / "labels.csv").write_text(
        "file,label,site,lesion_id\na,x,n,1\nb,y,n,2\nc,x,s,1\nd,y,s,3\ne,y,s,\nf,y,n,\n"
    )
    assert discover(tmp_path).num_shared_groups == 1  # lesion 1; an empty cell is no lesion


def test_a_split_column_is_used(tmp_path):
    (tmp_path / "labels.csv").write_text("file,label,site,split\na,x,n,train\nb,y,n,test\n")
    found = discover(tmp_path)
    assert found.sites[0].split == ColumnSplit()
    assert isinstance(found.sites[0].data, CsvData)
    assert found.sites[0].data.columns.split == "split"
    assert not found.has_groups


def test_a_folder_per_site_is_a_federation(tmp_path):
    touch(
        tmp_path,
        "b/nv/1.jpg",
        "b/mel/2.jpg",
        "a/train/nv/3.jpg",
        "a/test/mel/4.jpg",
        "docs/readme.txt",
        "x.txt",
    )
    found = discover(tmp_path)
    assert found.classes == ("mel", "nv")
    assert [site.name for site in found.sites] == ["a", "b"]
    assert found.sites[0].data == FoldersData(root=tmp_path / "a")
    assert [site.split for site in found.sites] == [ColumnSplit(), GroupedSplit()]


def test_a_site_gets_a_name_that_is_safe_in_file_names(tmp_path):
    touch(tmp_path, "St. Mary (east)/nv/1.jpg", "St. Mary (east)/mel/1.jpg")
    assert [site.name for site in discover(tmp_path).sites] == ["St.-Mary-east"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "holds nothing"),
        (["one.jpg", "mel/2.jpg"], "holds mel/, one.jpg"),
        (["a/nv/1.jpg"], "has 1 class"),
        (["a/no tumour/1.jpg", "a/nv/1.jpg"], "'no tumour'"),
        (["a b/nv/1.jpg", "a-b/mel/1.jpg"], "would share one name"),
    ],
)
def test_another_layout_is_answered_with_what_was_found(files, said, tmp_path):
    touch(tmp_path, *files)
    with pytest.raises(SiteDataError, match=said):
        discover(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,label\na,b\n", "has the columns file, label"),
        ("file,label,site\na,b,\n", r"1 row\(s\) without a site"),
        ("file,label,site\n", "has 0 class"),
    ],
)
def test_a_csv_without_sites_is_refused(text, said, tmp_path):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(SiteDataError, match=said):
        discover(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SiteDataError, match="is not a folder"):
        discover(tmp_path / "nowhere")


def test_finding_a_federation_needs_no_torch():
    code = "import sys, client.data.simulation.discover; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
