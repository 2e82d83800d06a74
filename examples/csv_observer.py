"""Writes metrics of every round into a CSV file of the run folder; csv_observer.toml runs it."""

import csv

from fedgen import Observer, Plan, RoundRecord


class CsvObserver(Observer):
    def __init__(self, metrics: tuple[str, ...] = ("accuracy", "loss")) -> None:
        self.metrics = metrics

    def start(self, plan: Plan) -> None:
        self.path = plan.folder / "rounds.csv"
        self.path.write_text(",".join(["round", *self.metrics]) + "\n")
        for record in plan.earlier:  # a resumed run: its last rounds may be played again
            self.round(record)

    def round(self, record: RoundRecord) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([record.round, *(record.metrics.get(name) for name in self.metrics)])
