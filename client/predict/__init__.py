"""Class probabilities for images, by a finished study's network or by one of its heads."""

from client.predict.classify import Classified, classify, write
from client.predict.image_files import Unreadable
from client.predict.predictor import Predictor, load

__all__ = ["Classified", "Predictor", "Unreadable", "classify", "load", "write"]
