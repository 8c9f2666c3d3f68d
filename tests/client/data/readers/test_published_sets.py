"""HAM10000, ISIC and Fed-ISIC2019 in their real layouts: drawn here, and the real tables where they lie."""

import tarfile
from collections import Counter
from pathlib import Path

import pytest

from client.config import FedIsic2019Data, GroupedSplit, Ham10000Data, IsicData, NoSplit, SubgroupColumn
from client.data.readers import ham10000, read
from client.data.readers import isic as isic_rows
from client.data.simulation import partition_data
from client.data.simulation.partition import ByAcquisition
from client.data.splitting import split
from common.errors import SiteDataError
from tests.places import DATA

real = pytest.mark.skipif(
    not DATA.exists(), reason="the real tables lie in ../shared/data, which is not here"
)


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


@pytest.fixture
def ham(tmp_path: Path) -> Path:
    """Four images of three lesions, in two parts, from two sources."""
    (tmp_path / "HAM10000_metadata.csv").write_text(
        "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset\n"
        "HAM_1,ISIC_1,bkl,histo,80.0,male,scalp,rosendahl\n"
        "HAM_1,ISIC_2,bkl,histo,80.0,male,scalp,rosendahl\n"
        "HAM_2,ISIC_3,mel,histo,,female,back,vidir_modern\n"
        "HAM_3,ISIC_4,nv,follow_up,30.0,male,back,vidir_modern\n"
    )
    touch(tmp_path / "HAM10000_images_part_1", "ISIC_1.jpg", "ISIC_2.jpg")
    touch(tmp_path / "HAM10000_images_part_2", "ISIC_3.jpg", "ISIC_4.jpg")
    return tmp_path / "HAM10000_metadata.csv"


def test_ham10000_is_read_as_it_is_downloaded(ham: Path) -> None:
    manifest = read.read(Ham10000Data(metadata=ham), ham10000.CLASSES)
    assert [(row.image.path.name, row.label, row.lesion) for row in manifest.rows] == [
        ("ISIC_1.jpg", "bkl", "HAM_1"),
        ("ISIC_2.jpg", "bkl", "HAM_1"),
        ("ISIC_3.jpg", "mel", "HAM_2"),
        ("ISIC_4.jpg", "nv", "HAM_3"),
    ]
    assert manifest.rows[2].source == "HAM10000_metadata.csv row 4"


def test_the_metadata_says_who_is_in_which_subgroup(ham: Path) -> None:
    """An empty cell is no value."""
    columns = {"age": SubgroupColumn(column="age"), "body_site": SubgroupColumn(column="localization")}
    rows = read.read(Ham10000Data(metadata=ham, subgroups=columns), ham10000.CLASSES).rows
    assert [row.attributes for row in rows[1:3]] == [
        {"age": "80.0", "body_site": "scalp"},
        {"body_site": "back"},
    ]
    wrong = {"skin_type": SubgroupColumn(column="fitzpatrick")}
    with pytest.raises(SiteDataError, match=r"no column for data.subgroups.skin_type.column='fitzpatrick'"):
        read.read(Ham10000Data(metadata=ham, subgroups=wrong), ham10000.CLASSES)


def test_one_source_of_ham10000_can_be_a_site(ham: Path) -> None:
    data = Ham10000Data(metadata=ham, sources=("vidir_modern",))
    assert [row.image.path.stem for row in read.read(data, ("mel", "nv")).rows] == ["ISIC_3", "ISIC_4"]
    with pytest.raises(SiteDataError, match=r"no row with dataset=vienna; the column holds rosendahl \(2\)"):
        read.read(Ham10000Data(metadata=ham, sources=("vienna",)), ("mel",))


def test_a_release_of_ham10000_without_sources_says_so(ham: Path) -> None:
    lines = [line.rpartition(",")[0] for line in ham.read_text().splitlines()]
    ham.write_text("\n".join(lines))
    with pytest.raises(SiteDataError, match=r"has no column `dataset`, which data\.sources asks for"):
        read.read(Ham10000Data(metadata=ham, sources=("rosendahl",)), ("bkl",))


def test_every_image_of_ham10000_that_is_not_there_is_named_at_once(ham: Path) -> None:
    for name in ("1.jpg", "2.jpg"):
        (ham.parent / "HAM10000_images_part_1" / f"ISIC_{name}").unlink()
    with pytest.raises(
        SiteDataError, match=r"(?s)2 problems.*row 2: no image 'ISIC_1'.*row 3: no image 'ISIC_2'"
    ):
        read.read(Ham10000Data(metadata=ham), ham10000.CLASSES)


def test_another_table_is_not_taken_for_ham10000s(ham: Path) -> None:
    ham.write_text("file,label\na.jpg,mel\n")
    with pytest.raises(
        SiteDataError, match="no column image_id, dx, lesion_id; expected HAM10000's own metadata"
    ):
        read.read(Ham10000Data(metadata=ham), ("mel",))


@pytest.fixture
def isic(tmp_path: Path) -> IsicData:
    """Three images, two of one lesion; one has the name of a shrunk file."""
    (tmp_path / "ISIC_2019_Training_GroundTruth.csv").write_text(
        "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\n"
        "ISIC_1,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0\n"
        "ISIC_2_downsampled,1,0,0,0,0,0,0,0,0\n"
        "ISIC_3,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0\n"
    )
    (tmp_path / "ISIC_2019_Training_Metadata.csv").write_text(
        "image,age_approx,anatom_site_general,lesion_id,sex\n"
        "ISIC_1,55,anterior torso,L1,female\nISIC_2_downsampled,55,,L1,\nISIC_3,30,,,\n"
    )
    return IsicData(
        kind="isic2019",
        ground_truth=tmp_path / "ISIC_2019_Training_GroundTruth.csv",
        metadata=tmp_path / "ISIC_2019_Training_Metadata.csv",
        images=touch(tmp_path / "images", "ISIC_1.jpg", "ISIC_2_downsampled.jpg", "ISIC_3.jpg"),
    )


def test_a_one_hot_table_that_excel_saved_with_decimal_commas_is_read(isic: IsicData) -> None:
    text = isic.ground_truth.read_text().replace(",", ";").replace(".0", ",0").replace(";1;", ";TRUE;")
    isic.ground_truth.write_text(text)
    assert [row.label for row in read.read(isic, isic_rows.ISIC2019).rows] == ["NV", "MEL", "SCC"]


def test_isics_metadata_says_who_is_in_which_subgroup_and_without_it_nobody_does(isic: IsicData) -> None:
    columns = {"sex": SubgroupColumn(column="sex"), "age": SubgroupColumn(column="age_approx")}
    rows = read.read(isic.model_copy(update={"subgroups": columns}), isic_rows.ISIC2019).rows
    assert [row.attributes for row in rows] == [{"sex": "female", "age": "55"}, {"age": "55"}, {"age": "30"}]
    with pytest.raises(ValueError, match="subgroups are columns of metadata, which names no table"):
        IsicData(**(isic.model_dump() | {"metadata": None, "subgroups": columns}))


def test_a_table_of_probabilities_is_said_to_be_one(isic: IsicData) -> None:
    isic.ground_truth.write_text(isic.ground_truth.read_text().replace("_1,0.0,1.0", "_1,0.1,0.9"))
    with pytest.raises(
        SiteDataError, match=r"0 classes are marked, expected one with a 1 \(found MEL 0.1, NV 0.9\)"
    ):
        read.read(isic, isic_rows.ISIC2019)


def test_isic_2019_is_read_from_its_one_hot_table(isic: IsicData) -> None:
    manifest = read.read(isic, isic_rows.ISIC2019)
    assert [(row.image.path.stem, row.label, row.lesion) for row in manifest.rows] == [
        ("ISIC_1", "NV", "L1"),
        ("ISIC_2_downsampled", "MEL", "L1"),
        ("ISIC_3", "SCC", None),
    ]


def test_isic_2018_has_other_columns(isic: IsicData) -> None:
    with pytest.raises(SiteDataError, match="no column AKIEC; expected the ground truth of isic2018"):
        read.read(isic.model_copy(update={"kind": "isic2018"}), isic_rows.ISIC2018)


def test_a_row_with_no_class_or_two_is_named(isic: IsicData) -> None:
    text = isic.ground_truth.read_text().replace("ISIC_1,0.0", "ISIC_1,1.0")
    isic.ground_truth.write_text(text + "ISIC_4,0,0,0,0,0,0,0,0,0\n")
    with pytest.raises(
        SiteDataError, match=r"(?s)row 2: 2 classes are marked, expected one.*row 5: 0 classes are marked"
    ):
        read.read(isic, isic_rows.ISIC2019)


def test_class_names_are_mapped_to_the_studys_and_finer_classes_joined(isic: IsicData) -> None:
    data = isic.model_copy(update={"label_map": {"MEL": "malignant", "SCC": "malignant", "NV": "benign"}})
    manifest = read.read(data, ("benign", "malignant"))
    assert [row.label for row in manifest.rows] == ["benign", "malignant", "malignant"]


def test_a_class_without_a_place_in_the_study_is_an_error_with_a_count(isic: IsicData) -> None:
    with pytest.raises(SiteDataError, match=r"class 'SCC' is not in the study \(1 image\(s\)\)"):
        read.read(isic, ("MEL", "NV"))


@pytest.mark.parametrize("how", [{"unknown_labels": "drop"}, {"label_map": {"SCC": None}}])
def test_it_is_left_out_with_a_count_if_the_site_says_so(isic: IsicData, how) -> None:
    contents = read.survey(isic.model_copy(update=how), ("MEL", "NV"))
    assert len(contents.manifest.rows) == 2
    assert [unused.text for unused in contents.unused if "SCC" in unused.kind] == [
        "not used: 1 images of SCC, which the site's YAML leaves out (ISIC_2019_Training_GroundTruth.csv row 4)"
    ]


def test_one_centre_of_fed_isic_comes_with_its_published_split(isic: IsicData, tmp_path: Path) -> None:
    file = tmp_path / "train_test_split.csv"
    file.write_text(
        "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK,target,center,fold,fold2\n"
        "ISIC_1,0.0,1.0,0,0,0,0,0,0,0,1,4,train,train_4\n"
        "ISIC_2,1.0,0.0,0,0,0,0,0,0,0,0,4,test,test_4\n"
        "ISIC_3,0.0,0.0,0,0,0,0,0,1,0,7,2,train,train_2\n"
    )
    data = FedIsic2019Data(split_file=file, center=4, images=isic.images)
    manifest = read.read(data, isic_rows.ISIC2019)
    assert [(row.image.path.stem, row.label, row.split) for row in manifest.rows] == [
        ("ISIC_1", "NV", "train"),
        ("ISIC_2_downsampled", "MEL", "test"),
    ]
    (others,) = read.survey(data, isic_rows.ISIC2019).unused
    assert (
        others.text
        == "not used: 1 rows that the site's YAML leaves to other sites (train_test_split.csv row 4)"
    )
    assert others.is_usual


# --- the real tables -------------------------------------------------------------------------

SITES = {
    "rosendahl": (295, 296, 490, 30, 342, 803, 3),
    "vidir_modern": (32, 211, 475, 51, 680, 1832, 82),
    "vidir_molemax": (0, 2, 124, 30, 24, 3720, 54),
    "vienna_dias": (0, 5, 10, 4, 67, 350, 3),
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("isic")
    with tarfile.open(DATA / "isic2019-metadata.tar") as archive:
        archive.extractall(folder, filter="data")
    return next(folder.rglob("ISIC_2019_Training_GroundTruth.csv")).parent


def images_of(table: Path, column: int, folder: Path) -> Path:
    """Empty files under the names of a table: rows are read without opening one."""
    names = [line.split(",")[column] for line in table.read_text().splitlines()[1:]]
    return touch(folder, *[f"{name}.jpg" for name in names])


@real
def test_all_of_ham10000_with_the_classes_of_each_source(tables: Path, tmp_path: Path) -> None:
    metadata = tables / "HAM10000_metadata_with_dataset_column.csv"
    images = (images_of(metadata, 1, tmp_path / "images"),)
    whole = read.read(Ham10000Data(metadata=metadata, images=images), ham10000.CLASSES)
    assert len(whole.rows) == 10_015
    assert len({row.group for row in whole.rows}) == 7_470
    for source, counts in SITES.items():
        data = Ham10000Data(metadata=metadata, images=images, sources=(source,))
        assert read.read(data, ham10000.CLASSES).class_counts() == counts, source
    # lesions are never torn, and each class is near its fifth
    drawn = split.split(whole, GroupedSplit())
    sides: dict[str | None, set[str | None]] = {}
    for row in drawn.rows:
        sides.setdefault(row.group, set()).add(row.split)
    assert {len(found) for found in sides.values()} == {1}
    for test, both in zip(drawn.class_counts("test"), drawn.class_counts(), strict=True):
        assert test == pytest.approx(both / 5, abs=6)  # the largest lesion has six images


@real
def test_ham10000_is_shared_out_by_source_without_tearing_a_lesion(tables: Path, tmp_path: Path) -> None:
    metadata = tables / "HAM10000_metadata_with_dataset_column.csv"
    images = (images_of(metadata, 1, tmp_path / "images"),)
    data = Ham10000Data(metadata=metadata, images=images)
    whole = partition_data.Source(data, NoSplit(all="train"), state_dir=None)
    sites = partition_data.partition(whole, ByAcquisition(), seed=0, classes=ham10000.CLASSES)
    for source, counts in SITES.items():
        # Nine images of lesions that two sources have are where most of their lesion's are.
        assert sites[source].class_counts() == pytest.approx(counts, abs=9), source
    owners = [{row.group for row in site.rows} for site in sites.values()]
    assert sum(map(len, owners)) == len(set[str | None]().union(*owners)) == 7_470


@real
def test_all_of_isic_2019(tables: Path, tmp_path: Path) -> None:
    truth = tables / "ISIC_2019_Training_GroundTruth.csv"
    data = IsicData(
        kind="isic2019", ground_truth=truth, metadata=tables / "ISIC_2019_Training_Metadata.csv",
        images=images_of(truth, 0, tmp_path / "images"),
    )  # fmt: skip
    manifest = read.read(data, isic_rows.ISIC2019)
    assert len(manifest.rows) == 25_331
    assert manifest.class_counts() == (4522, 12875, 3323, 867, 2624, 239, 253, 628, 0)
    assert sum(row.group is None for row in manifest.rows) == 2_084


@real
def test_the_six_centres_of_fed_isic_2019(tables: Path, tmp_path: Path) -> None:
    file = tables / "flamby_fed_isic2019_train_test_split.csv"
    images = images_of(file, 0, tmp_path / "images")
    found = []
    for center in range(6):
        rows = read.read(
            FedIsic2019Data(split_file=file, center=center, images=images), isic_rows.ISIC2019
        ).rows
        sides = Counter(row.split for row in rows)
        found.append((len(rows), sides["train"], sides["test"]))
    assert [number for number, _, _ in found] == [12413, 3954, 3363, 2259, 819, 439]
    assert [(train, test) for _, train, test in found] == [
        (9930, 2483), (3163, 791), (2691, 672), (1807, 452), (655, 164), (351, 88),
    ]  # fmt: skip
