import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.config import Columns, CsvData, FoldersData, RowFilter
from client.data.readers import read as readers
from client.data.readers.csv_table import read_csv
from client.data.readers.read import read, survey
from client.data.references import PictureFile
from common.errors import SiteDataError

CLASSES = ("mel", "nv")


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((10, 10, 3), 90, np.uint8)).save(path)


def csv_with(folder: Path, text: str, pictures: tuple[str, ...] = ("a.png", "b.png")) -> CsvData:
    for name in pictures:
        picture(folder / name)
    (folder / "labels.csv").write_text(text)
    return CsvData(labels=folder / "labels.csv")


def test_a_csv_becomes_one_row_per_line_with_its_source(tmp_path):
    config = csv_with(tmp_path, "file,label,lesion\na.png,mel,L1\nb.png,nv,\n")
    config = config.model_copy(update={"columns": Columns(group="lesion")})
    manifest = read(config, CLASSES)
    first, second = manifest.rows
    assert (first.image, first.label, first.group, first.split) == (
        PictureFile(tmp_path / "a.png"),
        "mel",
        "L1",
        None,
    )
    assert first.source == "labels.csv row 2"
    assert second.group is None  # an empty cell is no group, or all such images would be one
    assert manifest.class_counts() == (1, 1)


def test_columns_of_a_csv_name_patient_lesion_and_acquisition(tmp_path):
    config = csv_with(tmp_path, "file,label,who,spot,device\na.png,mel,P1,S1,scope\nb.png,nv,P1,S2,\n")
    columns = Columns(patient="who", lesion="spot", acquisition="device")
    first, second = read(config.model_copy(update={"columns": columns}), CLASSES).rows
    assert (first.patient, first.lesion, first.acquisition) == ("P1", "S1", "scope")
    assert second.acquisition is None
    assert first.group == second.group  # two lesions of one patient


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_a_spreadsheet_saves_is_understood(delimiter, tmp_path):
    lines = [["file", "label"], ["a.png", "mel"], ["", ""], ["b.png", " nv "]]
    text = "\ufeff" + "\r\n".join(delimiter.join(line) for line in lines) + "\r\n"
    rows = read(csv_with(tmp_path, text), CLASSES).rows
    assert [row.label for row in rows] == ["mel", "nv"]
    assert rows[1].source == "labels.csv row 4"  # the empty line is counted, as a spreadsheet does


def test_all_problems_of_a_csv_are_reported_at_once_with_row_numbers(tmp_path):
    config = csv_with(
        tmp_path,
        "file,label\na.png,mel\nmissing.png,nv\nb.png,Mel\na.png,nv\nb.png,\n,nv\nb.png,nv,nv\n",
    )
    with pytest.raises(SiteDataError) as caught:
        read(config, CLASSES)
    text = str(caught.value)
    assert "labels.csv cannot be used as it is: 6 problems" in text
    assert "row 3: " in text
    assert "no image 'missing.png' in" in text
    assert "row 4: class 'Mel' is not in the study (1 image(s)), which has mel, nv; did you mean mel?" in text
    assert "row 6: no label" in text
    assert "row 7: no image file" in text
    assert "row 8: 3 cells under 2 column names" in text


def test_a_file_with_two_labels_is_a_problem_and_a_repeated_row_is_not(tmp_path, caplog):
    config = csv_with(tmp_path, "file,label\na.png,mel\n./a.png,mel\nb.png,nv\n")
    with caplog.at_level(logging.WARNING, "consilium"):
        assert len(read(config, CLASSES).rows) == 2
    assert "1 row(s) repeat another row and count once" in caplog.text
    config = csv_with(tmp_path, "file,label\na.png,mel\na.png,nv\n")
    with pytest.raises(SiteDataError, match=r"row 3: a\.png has label 'nv', but 'mel' in labels\.csv row 2"):
        read(config, CLASSES)


def test_an_unknown_class_is_one_line_with_a_count(tmp_path):
    pictures = tuple(f"{number}.png" for number in range(30))
    text = "file,label\n" + "".join(f"{name},melanoma\n" for name in pictures)
    with pytest.raises(SiteDataError) as caught:
        read(csv_with(tmp_path, text, pictures), CLASSES)
    assert "1 problem:" in str(caught.value)
    assert "(30 image(s))" in str(caught.value)


def test_a_long_list_is_cut_and_counted(tmp_path):
    text = "file,label\n" + "".join(f"{number}.png,mel\n" for number in range(33))
    with pytest.raises(SiteDataError) as caught:
        read(csv_with(tmp_path, text, ()), CLASSES)
    assert "33 problems" in str(caught.value)
    assert "... and 13 more" in str(caught.value)  # 33 - 20


def test_a_missing_column_is_answered_with_those_that_are_there(tmp_path):
    config = csv_with(tmp_path, "image,diagnosis\na.png,mel\n")
    with pytest.raises(SiteDataError, match=r"data\.columns\.image='file', data\.columns\.label='label'"):
        read(config, CLASSES)
    with pytest.raises(SiteDataError, match="it has the columns image, diagnosis"):
        read(config, CLASSES)


def test_only_takes_the_rows_of_one_site_and_ignores_the_others(tmp_path):
    config = csv_with(tmp_path, "file,label,site\na.png,mel,x\ngone.png,odd,y\nb.png,nv,x\n")
    mine = config.model_copy(update={"row_filter": RowFilter(column="site", values=("x",))})
    assert len(read(mine, CLASSES).rows) == 2
    absent = config.model_copy(update={"row_filter": RowFilter(column="site", values=("z",))})
    with pytest.raises(SiteDataError, match=r"no row with site=z; the column holds x \(2\), y \(1\)"):
        read(absent, CLASSES)


def test_rows_that_nearly_name_this_site_or_no_site_are_worth_a_look(tmp_path):
    config = csv_with(
        tmp_path, "file,label,site\na.png,mel,North\nb.png,nv,north\nc.png,nv,\nd.png,nv,south\n"
    )
    mine = config.model_copy(update={"row_filter": RowFilter(column="site", values=("North",))})
    unused = {one.kind: (one.names, one.is_usual) for one in survey(mine, CLASSES).unused}
    assert unused["rows with site 'north', which differs from the YAML's in large letters only"] == (
        ("labels.csv row 3",),
        False,
    )
    assert unused["rows that name no site (column site)"] == (("labels.csv row 4",), False)
    assert unused["rows that the site's YAML leaves to other sites"] == (("labels.csv row 5",), True)


def test_names_of_the_label_map_that_no_image_has_are_said(tmp_path):
    config = csv_with(tmp_path, "file,label\na.png,melanoma\nb.png,nv\n")
    config = config.model_copy(update={"label_map": {"melanoma": "mel", "naevus": "nv"}})
    assert [(one.text, one.is_usual) for one in survey(config, CLASSES).unused][-1] == (
        "not used: 1 names in data.label_map that no image has (naevus)",
        True,
    )


def test_images_that_a_list_leaves_to_other_sites_are_counted(tmp_path):
    config = csv_with(tmp_path, "file,label\na.png,mel\nb.png,nv\n")
    (tmp_path / "mine.csv").write_text(f"image\n{tmp_path / 'a.png'}\n")
    contents = survey(config.model_copy(update={"image_list": tmp_path / "mine.csv"}), CLASSES)
    assert [row.image.name for row in contents.manifest.rows] == ["a.png"]
    assert [(one.text, one.is_usual) for one in contents.unused] == [
        ("not used: 1 images that mine.csv leaves to other sites (labels.csv row 3)", True)
    ]


def test_notes_on_a_sites_own_rows_are_kept_where_a_list_leaves_others_out(tmp_path):
    config = csv_with(tmp_path, "file,label,patient\na.png,mel,unknown\nb.png,nv,unknown\n")
    config = config.model_copy(update={"columns": Columns(patient="patient")})
    (tmp_path / "mine.csv").write_text(f"image\n{tmp_path / 'a.png'}\n")
    contents = survey(config.model_copy(update={"image_list": tmp_path / "mine.csv"}), CLASSES)
    assert [one.names for one in contents.unused if "placeholder" in one.kind] == [("labels.csv row 2",)]


def test_sites_in_one_process_read_the_data_that_their_lists_share_once(tmp_path, monkeypatch):
    config = csv_with(tmp_path, "file,label\na.png,mel\nb.png,nv\n")
    lists = {}
    for name in ("a", "b"):
        lists[name] = config.model_copy(update={"image_list": tmp_path / f"{name}.csv"})
        (tmp_path / f"{name}.csv").write_text(f"image\n{tmp_path / name}.png\n")
    calls = []
    monkeypatch.setattr(readers, "read_csv", lambda config: calls.append(config) or read_csv(config))
    with readers.reading_once():
        names = [row.image.name for site in lists.values() for row in survey(site, CLASSES).manifest.rows]
    assert (names, len(calls)) == (["a.png", "b.png"], 1)
    survey(lists["a"], CLASSES)  # a hospital's trainer reads what is there now
    assert len(calls) == 2


@pytest.mark.parametrize("content", [b"", b"\n", b"file,file,label\n", b"file,label\nM\xfcller.png,mel\n"])
def test_a_csv_that_is_none_is_refused(content, tmp_path):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(SiteDataError, match=r"labels\.csv"):
        read(CsvData(labels=tmp_path / "labels.csv"), CLASSES)


def test_a_csv_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SiteDataError, match="No such file"):
        read(CsvData(labels=tmp_path / "labels.csv"), CLASSES)


def test_a_site_with_no_images_of_any_class_is_refused(tmp_path):
    with pytest.raises(SiteDataError, match=r"no image of any class; the study has the classes mel, nv"):
        read(csv_with(tmp_path, "file,label\n"), CLASSES)
    (tmp_path / "images" / "mel").mkdir(parents=True)
    with pytest.raises(SiteDataError, match="no image of any class"):
        read(FoldersData(root=tmp_path / "images"), CLASSES)


def test_folders_are_classes_and_other_files_are_passed_over(tmp_path):
    for name in ("mel/1.png", "nv/2.JPG", "nv/deeper/3.png", "nv/.hidden/4.png"):
        picture(tmp_path / name)
    (tmp_path / "nv" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "README.txt").write_text("x")
    rows = read(FoldersData(root=tmp_path), CLASSES).rows
    assert [(row.label, row.source) for row in rows] == [
        ("mel", "mel/1.png"),
        ("nv", "nv/2.JPG"),
        ("nv", "nv/deeper/3.png"),
    ]
    assert {row.split for row in rows} == {None}


def test_train_and_test_folders_are_a_split(tmp_path):
    for name in ("train/mel/1.png", "val/nv/2.png", "test/nv/3.png"):
        picture(tmp_path / name)
    rows = read(FoldersData(root=tmp_path), CLASSES).rows
    assert [(row.label, row.split) for row in rows] == [("nv", "test"), ("mel", "train"), ("nv", "val")]


def test_a_folder_of_an_unknown_class_is_a_problem(tmp_path):
    for name in ("mel/1.png", "naevi/2.png", "naevi/3.png"):
        picture(tmp_path / name)
    with pytest.raises(SiteDataError, match=r"naevi/2\.png: class 'naevi' is not in the study \(2 image"):
        read(FoldersData(root=tmp_path), CLASSES)


def test_a_root_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(SiteDataError, match="is not a folder"):
        read(FoldersData(root=tmp_path / "nowhere"), CLASSES)
