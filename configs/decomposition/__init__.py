"""Configs of decomposition."""
