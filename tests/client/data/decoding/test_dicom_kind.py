"""Which DICOM objects are images: by SOP class and modality, for every standard class."""

from pathlib import Path

import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from client.data.decoding import dicom
from client.data.decoding.dicom_kind import other_than_image
from client.data.references import BadImage, DicomFrame

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"


def kind(sop_class: str | None, modality: str = "", **values: object) -> str | None:
    header = Dataset()
    if sop_class is not None:
        header.SOPClassUID = sop_class
    header.Modality, header.Rows = modality, 16
    for word, value in values.items():
        setattr(header, word, value)
    return other_than_image(header)


@pytest.mark.parametrize(
    "name",
    [
        "CTImageStorage", "EnhancedCTImageStorage", "LegacyConvertedEnhancedMRImageStorage", "MRImageStorage",
        "EnhancedMRImageStorage", "UltrasoundImageStorage", "UltrasoundMultiFrameImageStorage",
        "EnhancedUSVolumeStorage", "SecondaryCaptureImageStorage", "DigitalMammographyXRayImageStorageForPresentation",
        "BreastTomosynthesisImageStorage", "ComputedRadiographyImageStorage", "PositronEmissionTomographyImageStorage",
        "VLPhotographicImageStorage", "DermoscopicPhotographyImageStorage", "OphthalmicPhotography8BitImageStorage",
        "OphthalmicTomographyImageStorage", "VLWholeSlideMicroscopyImageStorage", "RTImageStorage",
        "NuclearMedicineImageStorage", "XRayAngiographicImageStorage",
        "MultiFrameSingleBitSecondaryCaptureImageStorage",
    ],
)  # fmt: skip
def test_images_are_images(name):
    assert kind(getattr(uid, name)) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SegmentationStorage", "segmentation"),
        ("SurfaceSegmentationStorage", "segmentation"),
        ("RTDoseStorage", "radiotherapy dose"),
        ("RTStructureSetStorage", "radiotherapy structure set"),
        ("RTPlanStorage", "radiotherapy plan or record"),
        ("GrayscaleSoftcopyPresentationStateStorage", "presentation state"),
        ("SegmentedVolumeRenderingVolumetricPresentationStateStorage", "presentation state"),
        ("ComprehensiveSRStorage", "structured report"),
        ("XRayRadiationDoseSRStorage", "structured report"),
        ("MammographyCADSRStorage", "structured report"),
        ("KeyObjectSelectionDocumentStorage", "key object selection"),
        ("TwelveLeadECGWaveformStorage", "waveform"),
        ("EncapsulatedPDFStorage", "encapsulated document"),
        ("ParametricMapStorage", "parametric map"),
        ("RawDataStorage", "raw data"),
        ("MRSpectroscopyStorage", "spectroscopy"),
        ("SpatialRegistrationStorage", "registration"),
        ("RealWorldValueMappingStorage", "real world value mapping"),
        ("TractographyResultsStorage", "object of the class Tractography Results Storage"),
    ],
)
def test_other_objects_are_named(name, expected):
    assert kind(getattr(uid, name)) == expected


def test_no_other_class_of_the_standard_is_taken_for_an_image():
    # Every storage class that pydicom knows, by its keyword.
    classes = [getattr(uid, name) for name in dir(uid) if name.endswith("Storage") or "ImageStorage" in name]
    images = {one.keyword for one in classes if isinstance(one, uid.UID) and kind(one) is None}
    assert {word for word in images if "Image" not in word} == {"EnhancedUSVolumeStorage"}
    assert len(images) > 50


@pytest.mark.parametrize(
    ("modality", "expected"),
    [("SEG", "segmentation"), ("RTDOSE", "radiotherapy dose"), ("SR", "structured report"),
     ("PR", "presentation state"), ("KO", "key object selection"), ("DOC", "encapsulated document")],
)  # fmt: skip
def test_an_image_class_with_the_modality_of_something_else_is_that(modality, expected):
    assert kind(uid.SecondaryCaptureImageStorage, modality) == expected
    assert kind(None, modality.lower()) == expected


def test_a_private_or_unknown_class_is_no_image_whatever_its_modality():
    assert kind("1.3.12.2.1107.5.9.1", "MR") == "object of the private class 1.3.12.2.1107.5.9.1"
    assert (
        kind("1.2.840.10008.5.1.4.1.1.999", "MR") == "object of the unknown class 1.2.840.10008.5.1.4.1.1.999"
    )


def test_without_a_class_the_modality_decides_and_the_files_own_header_may_have_the_class():
    assert kind(None, "MR") is None
    header = Dataset()
    header.Rows = 16
    header.file_meta = FileMetaDataset()
    header.file_meta.MediaStorageSOPClassUID = uid.SegmentationStorage
    assert other_than_image(header) == "segmentation"


def test_what_says_nothing_of_itself_is_no_image():
    assert other_than_image(Dataset()) == "object that states no class, no modality and no size"


@pytest.mark.parametrize(("third", "expected"), [("LABEL", "label of a slide"), ("VOLUME", None)])
def test_the_label_of_a_slide_shows_a_name_and_no_tissue(third, expected):
    found = kind(
        uid.VLWholeSlideMicroscopyImageStorage, "SM", ImageType=["ORIGINAL", "PRIMARY", third, "NONE"]
    )
    assert found == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("liver_1frame.dcm", "is a segmentation and no image; leave it out"),
        ("rtdose.dcm", "is a radiotherapy dose and no image"),
        ("rtplan.dcm", "is a radiotherapy plan or record and no image"),
        ("reportsi.dcm", "is a structured report and no image"),
        ("waveform_ecg.dcm", "is a waveform and no image"),
    ],
)
def test_pydicoms_samples_of_other_objects_are_not_decoded(name, said):
    with pytest.raises(BadImage, match=said):
        dicom.picture(DicomFrame(SAMPLES / name, 0))
