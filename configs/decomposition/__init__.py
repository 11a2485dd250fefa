"""Configs of decomposition: what students of sub-questions are trained with."""
