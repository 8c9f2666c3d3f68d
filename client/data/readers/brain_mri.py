"""The brain-tumour MRI folders that circulate on Kaggle, under one set of names.

Layout: `Training/CLASS/*.jpg` and `Testing/CLASS/*.jpg`. Classes: glioma, meningioma, notumor, pituitary;
M. Nickparvar's set (7,023 slices, CC0) calls them so, S. Bhuvaji's (3,264 slices, MIT) writes
`glioma_tumor` and `no_tumor`. Most of both come from figshare's 3,064 slices of 233 patients (Cheng
et al. 2015, doi:10.1371/journal.pone.0140381, CC BY 4.0).

No file says whose head it is. The published split, and any other, has slices of one patient on
both sides, and the sets overlap: figures on them are too optimistic, and a site that tests on one
and trains on another tests on images that it has seen.
"""

from dataclasses import replace

from client.config import BrainMriData, FoldersData
from client.data.readers.folders import read_folders
from client.data.readers.rows import ReadRows

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")


def read_brain_mri(config: BrainMriData) -> ReadRows:
    """Rows under the four names; other folders keep theirs. Raises SiteDataError."""
    contents = read_folders(FoldersData(root=config.root))
    return contents._replace(rows=[replace(row, label=_class(row.label)) for row in contents.rows])


def _class(folder: str) -> str:
    name = folder.casefold().removesuffix("_tumor").replace("_", "").replace(" ", "")
    name = "notumor" if name in ("no", "notumour", "healthy") else name
    return name if name in CLASSES else folder
