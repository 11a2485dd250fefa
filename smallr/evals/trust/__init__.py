"""Measures whether confidence means anything: calibration, risk against coverage, comparison."""
