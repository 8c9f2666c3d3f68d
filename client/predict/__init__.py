"""Class probabilities for images, by a finished study's network or by one of its heads."""

from client.classification import Classified, Unreadable, classify, squares, write
from client.predict.image_classifier import ImageClassifier, load

__all__ = [
    "Classified",
    "ImageClassifier",
    "Unreadable",
    "classify",
    "load",
    "squares",
    "write",
]
