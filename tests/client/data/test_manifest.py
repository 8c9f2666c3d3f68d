"""What belongs together stays together, through patients and through lesions."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from client.data.manifest import ImageRow, grouped
from client.data.references import PictureFile


def rows(*owners: tuple[str | None, str | None]) -> list[ImageRow]:
    """From (patient, lesion) of each image."""
    return [
        ImageRow(PictureFile(Path(f"{n}.png")), "mel", None, None, f"row {n}", patient=patient, lesion=lesion)
        for n, (patient, lesion) in enumerate(owners)
    ]


def groups(*owners: tuple[str | None, str | None]) -> list[str | None]:
    return [row.group for row in grouped(rows(*owners))]


def test_all_lesions_of_a_patient_are_one_group():
    assert groups(("P", "1"), ("P", "2"), ("Q", "3")) == ["lesion 1", "lesion 1", "lesion 3"]


def test_a_lesion_that_is_filed_under_two_patients_joins_them():
    # P - 1 - Q - 2: one group, although the first and the last image share nothing
    assert len(set(groups(("P", "1"), ("Q", "1"), ("Q", "2"), ("R", "3")))) == 2


def test_an_image_without_a_patient_belongs_to_its_lesion():
    first, second, third = groups((None, "1"), ("P", "1"), ("P", None))
    assert first == second == third


def test_nothing_known_is_no_group_and_a_patient_is_no_lesion_of_the_same_name():
    assert groups((None, None), ("", "")) == [None, None]
    assert groups(("1", None), (None, "1")) == ["patient 1", "lesion 1"]


def test_a_group_that_the_data_names_counts_too():
    one, two = rows(("P", None), ("Q", None))
    both = [ImageRow(**{**vars(row), "group": "box 7"}) for row in (one, two)]
    assert [row.group for row in grouped(both)] == ["box 7", "box 7"]


owners = st.tuples(st.sampled_from([None, *"ABCDEF"]), st.sampled_from([None, *"123456"]))


@given(st.lists(owners, max_size=40), st.randoms(use_true_random=False))
@settings(derandomize=True, deadline=None)
def test_no_patient_and_no_lesion_is_in_two_groups_in_whatever_order_rows_come(found, chance):
    done = grouped(rows(*found))
    for kind in ("patient", "lesion"):
        for name in {getattr(row, kind) for row in done} - {None}:
            assert len({row.group for row in done if getattr(row, kind) == name}) == 1
    shuffled = rows(*found)
    chance.shuffle(shuffled)
    assert {row.image: row.group for row in grouped(shuffled)} == {row.image: row.group for row in done}
