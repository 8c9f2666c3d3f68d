"""Kind of a DICOM object: an image, or one of the many other objects that an export holds.

An object is an image if its SOP class is one of the standard's image storage classes (PS3.4 B.5) and its modality
is none of those that only other objects have. So a mask that was saved as a secondary capture with the modality
SEG is no image. Without a SOP class, as in old exports, the modality decides alone. What a private
or an unknown SOP class stores is defined nowhere that this software could look it up, pixels or not, so it is no
image either. Labels and overviews of a glass slide show the patient's name and not the tissue.
"""

from pydicom import Dataset
from pydicom.uid import UID

from client.data.decoding.dicom_frame import attribute, text, words

_BY_CLASS = (
    ("PresentationState", "presentation state"),
    ("SegmentAnnotation", "segmentation"),
    ("Segmentation", "segmentation"),
    ("KeyObject", "key object selection"),
    ("SRStorage", "structured report"),
    ("ProcedureLog", "structured report"),
    ("RTDose", "radiotherapy dose"),
    ("RTStructureSet", "radiotherapy structure set"),
    ("RT", "radiotherapy plan or record"),
    ("Radiation", "radiotherapy plan or record"),
    ("Waveform", "waveform"),
    ("Encapsulated", "encapsulated document"),
    ("ParametricMap", "parametric map"),
    ("ThicknessMap", "parametric map"),
    ("TopographyMap", "parametric map"),
    ("Spectroscopy", "spectroscopy"),
    ("RawData", "raw data"),
    ("Registration", "registration"),
    ("Fiducials", "registration"),
    ("RealWorldValue", "real world value mapping"),
    ("SurfaceScan", "surface scan"),
    ("MediaStorageDirectory", "directory of a medium"),
)
"""Part of a SOP class's keyword, and what it stores; the first that fits."""
_BY_MODALITY = {
    "ANN": "annotation",
    "ASMT": "assessment",
    "AU": "waveform",
    "DOC": "encapsulated document",
    "ECG": "waveform",
    "EEG": "waveform",
    "EMG": "waveform",
    "EOG": "waveform",
    "EPS": "waveform",
    "FID": "registration",
    "HD": "waveform",
    "KO": "key object selection",
    "M3D": "encapsulated document",
    "OPM": "parametric map",
    "OSS": "surface scan",
    "PLAN": "radiotherapy plan or record",
    "POS": "waveform",
    "PR": "presentation state",
    "REG": "registration",
    "RESP": "waveform",
    "RTDOSE": "radiotherapy dose",
    "RTINTENT": "radiotherapy plan or record",
    "RTPLAN": "radiotherapy plan or record",
    "RTRAD": "radiotherapy plan or record",
    "RTRECORD": "radiotherapy plan or record",
    "RTSEGANN": "segmentation",
    "RTSTRUCT": "radiotherapy structure set",
    "RWV": "real world value mapping",
    "SEG": "segmentation",
    "SMR": "structured report",
    "SR": "structured report",
    "TEXTUREMAP": "encapsulated document",
}
_NAMELESS = "object that states no class, no modality and no size"
_IMAGES = {"EnhancedUSVolumeStorage"}
"""Image storage classes that are not called so."""
_OF_A_SLIDE = {"LABEL": "label of a slide", "OVERVIEW": "overview of a slide"}


def other_than_image(header: Dataset) -> str | None:
    """What the object is, such as "segmentation"; None for an image. Raises BadImage if its header is broken."""
    stored = UID(text(header, "SOPClassUID") or _of_meta(header))
    modality = text(header, "Modality").upper()
    if stored and not _is_image(stored):
        return _named(stored)
    if modality in _BY_MODALITY:
        return _BY_MODALITY[modality]
    if not stored and not modality and not attribute(header, "Rows"):
        return _NAMELESS
    return _part_of_a_slide(header) if stored.keyword == "VLWholeSlideMicroscopyImageStorage" else None


def with_article(kind: str) -> str:
    """The kind with "a" or "an"."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _of_meta(header: Dataset) -> str:
    return text(getattr(header, "file_meta", Dataset()), "MediaStorageSOPClassUID")


def _is_image(stored: UID) -> bool:
    return not stored.is_private and ("ImageStorage" in stored.keyword or stored.keyword in _IMAGES)


def _named(stored: UID) -> str:
    for part, kind in _BY_CLASS:
        if part in stored.keyword:
            return kind
    if stored.keyword:
        return f"object of the class {stored.name}"
    whose = "private" if stored.is_private else "unknown"
    return f"object of the {whose} class {stored}"


def _part_of_a_slide(header: Dataset) -> str | None:
    return next((_OF_A_SLIDE[word] for word in words(header, "ImageType")[2:3] if word in _OF_A_SLIDE), None)
