"""Calibration of a finished model: its temperature, its conformal sets, and the file that keeps both."""

from common.calibration.record import FILE, Calibration
from common.calibration.temperature import TemperatureFit, fit_temperature

__all__ = ["FILE", "Calibration", "TemperatureFit", "fit_temperature"]
