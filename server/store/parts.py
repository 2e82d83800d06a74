"""Names of the files in a run folder."""

from __future__ import annotations

EXPERIMENT, RESOLVED, ENVIRONMENT, PARTITION = "experiment.toml", "resolved.toml", "environment.json", "partition.json"
METRICS, EVENTS = "metrics.jsonl", "events.jsonl"
CHECKPOINTS = "checkpoints"
RESULT, MODEL = "result.json", "model.safetensors"
EXHIBITS = "exhibits.jsonl"
NETWORK = "network.json"
REPORT, FIGURES = "report.html", "figures"

ALL = (
    *(EXPERIMENT, RESOLVED, ENVIRONMENT, PARTITION, METRICS, EVENTS),
    *(CHECKPOINTS, RESULT, MODEL, EXHIBITS, NETWORK, REPORT, FIGURES),
)
