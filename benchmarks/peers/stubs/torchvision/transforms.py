"""Transforms that are built at import and never applied."""

from typing import Any


class Transform:
    def __init__(self, *arguments: Any, **settings: Any) -> None:
        pass


Compose = Normalize = RandomCrop = RandomHorizontalFlip = ToTensor = Transform
