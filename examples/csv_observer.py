"""Write some metrics of every round into a CSV of the run folder; csv_observer.toml names the class."""

import csv

from fedgen import Observer, Plan, RoundRecord


class CsvObserver(Observer):
    def __init__(self, metrics: tuple[str, ...] = ("accuracy", "loss")) -> None:
        self.metrics = metrics

    def start(self, plan: Plan) -> None:
        self.path = plan.folder / "rounds.csv"
        self.path.write_text(",".join(["round", *self.metrics]) + "\n")
        for record in plan.earlier:  # a run that goes on, perhaps from before the last lines that it wrote
            self.round(record)

    def round(self, record: RoundRecord) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([record.round, *(record.metrics.get(name) for name in self.metrics)])
