"""HAM10000 as it is downloaded: `HAM10000_metadata.csv` and the image folders part 1 and part 2.

Classes, in the order of the challenge it was used for: akiec, bcc, bkl, df, mel, nv, vasc; 10,015
dermatoscopic images of 7,470 lesions from four sources in Austria and Australia, which the
column `dataset` names in the release with sources. Images of one lesion are a group.

Tschandl, Rosendahl and Kittler 2018, doi:10.1038/sdata.2018.161; Harvard Dataverse
doi:10.7910/DVN/DBW86T; CC BY-NC 4.0.
"""

from client.config import Ham10000Data
from client.data.manifest import ImageRow
from client.data.readers.lookup import ImageFinder
from client.data.readers.patients import named
from client.data.readers.rows import ReadRows
from client.data.readers.subgroups import attributes, require_subgroups
from client.data.readers.table import CsvTable, of_other_sites, read_table, require_columns, with_values
from client.data.references import BadImage, PictureFile
from common.errors import SiteDataError

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


def read_ham10000(config: Ham10000Data) -> ReadRows:
    """Rows, problems and unused images. Raises SiteDataError if the table or its columns are not there."""
    table = read_table(config.metadata)
    require_columns(table, ("image_id", "dx", "lesion_id"), "expected HAM10000's own metadata")
    require_subgroups(table, config)
    images = ImageFinder(config.images or (config.metadata.parent,))
    rows: list[ImageRow] = []
    lesions: list[str] = []
    problems = list(table.problems)
    chosen = dict(with_values(table, *_sources(config, table)))
    for number, cells in chosen.items():
        source = f"{table.path.name} row {number}"
        try:
            path = images.find(cells.get("image_id", ""))
        except BadImage as bad:
            problems.append(f"{source}: {bad}")
            continue
        acquisition = cells.get("dataset") or None
        rows.append(
            ImageRow(
                PictureFile(path),
                cells.get("dx", ""),
                None,
                None,
                source,
                acquisition=acquisition,
                attributes=attributes(cells, config),
            )
        )
        lesions.append(cells.get("lesion_id", ""))
    rows, placeholders = named(rows, lesions, "lesion")
    others = [cells.get("image_id", "") for number, cells in table.rows if number not in chosen]
    unused = [
        *of_other_sites(table, chosen, *_sources(config, table)),
        *placeholders,
        *images.unused(table.path, others),
    ]
    return ReadRows(rows, problems, unused)


def _sources(config: Ham10000Data, table: CsvTable) -> tuple[str, tuple[str, ...]]:
    if not config.sources:
        return "", ()
    if "dataset" not in table.header:
        raise SiteDataError(
            f"{table.path} has no column `dataset`, which data.sources asks for; take the release of "
            "HAM10000_metadata that names each image's source, or leave data.sources out"
        )
    return "dataset", config.sources
