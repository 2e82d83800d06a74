# mypy: disable-error-code="import-not-found,attr-defined"
"""Stands in for torchvision, which FedLab, ByzFL and gossipy import for data sets that no benchmark uses."""

from torchvision import datasets, transforms

__all__ = ["datasets", "transforms"]
