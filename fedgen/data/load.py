"""The data set that an experiment names."""

from __future__ import annotations

from fedgen import registry
from fedgen.config import Experiment
from fedgen.data.dataset import Dataset, Source
from fedgen.data.folder import data_folder
from fedgen.errors import SettingError
from fedgen.own_code import explained


def loaded(experiment: Experiment) -> Dataset:
    """As its files have it, not standardised.

    Raises SettingError where it cannot be loaded, or lacks what the partition needs.
    """
    choice = experiment.data.dataset
    partition = experiment.data.partition
    source: Source = registry.build("dataset", choice.name, choice.params)
    source.check_partition(partition.name, partition.params)
    try:
        dataset = source.load(data_folder(experiment.runtime.data_dir))
    except SettingError:
        raise
    except Exception as error:
        if ":" not in choice.name:
            raise
        raise SettingError(f"data.dataset {choice.name!r} could not be loaded ({explained(error)})") from error
    if not isinstance(dataset, Dataset):
        raise SettingError(
            f"data.dataset {choice.name!r}: load must return a fedgen.data.dataset.Dataset; it returned "
            f"{type(dataset).__name__}"
        )
    return dataset
