"""Class probabilities for images, by a finished study's network or by one of its heads."""

from client.predict.classify import Classified, classify, squares, write
from client.predict.image_classifier import ImageClassifier, load
from client.predict.image_files import Unreadable

__all__ = [
    "Classified",
    "ImageClassifier",
    "Unreadable",
    "classify",
    "load",
    "squares",
    "write",
]
