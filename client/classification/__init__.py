"""Classes of images by any classifier, without torch: which files are images, and a line of CSV for each."""

from client.classification.calibrated import PLAIN, Calibrated, Use, calibrated
from client.classification.classify import Classified, Classifier, Judged, classify, decoded, squares, write
from client.classification.image_files import Unreadable

__all__ = [
    "PLAIN",
    "Calibrated",
    "Classified",
    "Classifier",
    "Judged",
    "Unreadable",
    "Use",
    "calibrated",
    "classify",
    "decoded",
    "squares",
    "write",
]
