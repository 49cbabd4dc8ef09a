"""The methods of the book, by name: create one, save it, load it again."""

from uad_core.methods.base import Detector, FeatureDetector
from uad_core.methods.build import PROFILES, create
from uad_core.methods.registry import METHODS, method_class
from uad_core.methods.settings import configure
from uad_core.methods.storage import load, save

__all__ = ["METHODS", "PROFILES", "Detector", "FeatureDetector", "configure", "create", "load", "method_class", "save"]
