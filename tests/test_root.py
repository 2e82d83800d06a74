"""Rules that trust an update of the server's own, from samples that are held back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedgen import Experiment, Result
from fedgen.errors import SettingError
from fedgen.federation import Federation

Tiny = Callable[..., Experiment]


def trusting(tiny: Tiny, **tables: dict[str, Any]) -> Experiment:
    rule = {"name": "fltrust", "root_samples": 40}
    return tiny(**{"aggregation": {"rule": rule, "f": 1, "slice": 64}, "training": {"steps": 3}} | tables)


def test_root_samples_are_held_back_and_validate_nothing(tiny: Tiny) -> None:
    federation, plain = Federation(trusting(tiny)), Federation(tiny())
    assert federation.root is not None
    assert len(federation.root) == 40
    together = torch.cat([federation.root, federation.validation]).sort().values
    assert torch.equal(together, plain.validation)
    assert not torch.isin(federation.root, torch.cat(federation.shards)).any()
    block = federation.block(federation.server, torch.zeros(federation.learner.model.layout.size), {}, 0)
    assert torch.equal(block.y[0], federation.dataset.y[federation.root])


def test_a_rule_without_root_data_leaves_everything_as_it_was(federation: Federation) -> None:
    assert federation.root is None
    assert len(federation.counts) == federation.experiment.data.clients


def test_most_clients_may_lie_where_the_server_trusts_itself(tiny: Tiny, run_in: Callable[..., Result]) -> None:
    lying = {"attack": {"name": "sign_flip", "scale": 10.0}, "clients": 7}
    chosen = trusting(tiny, federation={"rounds": 30, "cohort": 1.0}, byzantine=lying)
    assert run_in(chosen.replace(aggregation={"f": 7}), "root").metrics["accuracy"] > 0.7
    assert run_in(chosen.replace(aggregation={"rule": "median"}), "median").metrics["accuracy"] < 0.2


@pytest.mark.slow
def test_one_hash_on_workers(tiny: Tiny, run_in: Callable[..., Result], cluster: None) -> None:
    chosen = trusting(tiny, byzantine={"attack": {"name": "alie", "optimize": True}, "clients": 2})
    expected = run_in(chosen.replace(aggregation={"wrappers": ["arc"]}), "serial").sha256
    spread = chosen.replace(aggregation={"wrappers": ["arc"]}, runtime={"backend": "ray", "workers": 2})
    assert run_in(spread, "ray").sha256 == expected


def test_too_few_held_back_samples_are_refused(tiny: Tiny) -> None:
    with pytest.raises(SettingError, match=r"root_samples = 40 .* data.validation = 0.01 holds back 14"):
        Federation(trusting(tiny, data={"validation": 0.01}))
