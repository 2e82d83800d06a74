"""Chooses the pictures of a report, with their names, captions and descriptions."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fedgen.server.report import canvas as report_canvas
from fedgen.server.report import figures
from fedgen.server.report.exhibit_pictures import draw_exhibit
from fedgen.server.report.graph_picture import plot as plot_graph
from fedgen.server.report.partition import draw_partition, partition_sentence
from fedgen.server.report.run_record import NetworkFacts, RunFolder
from fedgen.server.store.parts import EXHIBITS
from fedgen.server.words import (
    OUTCOMES,
    finite,
    human_bytes,
    human_count,
    human_seconds,
    in_round,
    is_share,
    printable,
    split_metric,
)

MOST_METRICS = 6


@dataclass(frozen=True)
class Picture:
    """One figure: SVG, caption, description for screen readers, and a note below it.

    A curve of a single point has the numbers as text instead of an SVG.
    """

    name: str
    svg: str
    caption: str
    description: str
    about_metric: bool = False
    numbers: str = ""
    note: str = ""

    @property
    def standalone(self) -> str:
        return report_canvas.standalone(self.svg, self.description)

    @property
    def inline(self) -> str:
        return report_canvas.inline(self.svg, self.name, self.description)


def draw(run: RunFolder) -> dict[str, Picture]:
    """All pictures for which the folder has numbers, in the order of the report."""
    pictures = _metric_pictures(run)
    if run.records:
        pictures += [_clients_picture(run), *_trust_pictures(run), *_time_pictures(run), *_traffic_pictures(run)]
        pictures += _staleness_pictures(run)
    pictures += _variance_pictures(run)
    if run.network is not None:
        pictures += _network_pictures(run, run.network)
    pictures += _exhibit_pictures(run)
    if run.partition is not None:
        svg = draw_partition(run.partition, run.members)
        sentence = partition_sentence(run.partition, run.members)
        pictures.append(Picture("partition", svg, "Data partition", sentence))
    return {picture.name: picture for picture in pictures}


def _curves(
    name: str,
    caption: str,
    series: Mapping[str, figures.Series],
    label: str,
    *,
    percent: bool = False,
    log: bool = False,
    about_metric: bool = False,
) -> Picture:
    """Curves over the rounds, or text if no curve has a second point."""
    if all(len(rounds) < 2 for rounds, _ in series.values()):
        numbers = [
            f"{kind} {100 * values[0]:.2f} %" if percent else f"{kind} {values[0]:.4g}"
            for kind, (_, values) in series.items()
        ]
        when = in_round(int(next(iter(series.values()))[0][0]))
        return Picture(name, "", caption, "", about_metric, f"{', '.join(numbers)} {when}")
    svg = figures.curves(series, label, percent=percent, log=log)
    return Picture(name, svg, caption, f"{caption} over the rounds: {', '.join(series)}", about_metric)


def _steps(run: RunFolder, name: str, caption: str, svg: Callable[[], str], numbers: Mapping[str, str]) -> Picture:
    """Amounts per round, or text for a single round."""
    if len(run.records) == 1:
        amounts = ", ".join(f"{kind} {amount}" for kind, amount in numbers.items())
        return Picture(name, "", caption, "", numbers=f"{amounts} {in_round(run.rounds[0])}")
    group = -(-len(run.records) // figures.MAX_STEPS)
    steps = f" (each step the mean of {group})" if group > 1 else ""
    return Picture(name, svg(), caption + steps, f"{caption}: {', '.join(numbers)}")


def _metric_pictures(run: RunFolder) -> list[Picture]:
    by_base: dict[str, dict[str, figures.Series]] = defaultdict(dict)
    for name, history in run.histories.items():
        split, base = split_metric(name)
        quantile = next((prefix for prefix in QUANTILES if base.startswith(prefix)), "")
        if not quantile:
            by_base[base][split] = history
        elif split == "test":
            by_base[base.removeprefix(quantile)][QUANTILES[quantile]] = history
    domains = {base: by_base.pop(base) for base in _of_domains(run, by_base)}
    order = sorted(by_base, key=lambda base: (base != "accuracy", base != "loss", base))
    pictures = [_metric_picture(index, base, by_base[base]) for index, base in enumerate(order[:MOST_METRICS])]
    return [*pictures, *([_domains_picture(domains)] if domains else [])]


def _of_domains(run: RunFolder, names: Iterable[str]) -> list[str]:
    """Names of the accuracies of single domains, whose mean is domain_accuracy."""
    if "domain_accuracy" not in run.histories:
        return []
    return [name for name in names if name.endswith("_accuracy") and name != "domain_accuracy"]


def _domains_picture(domains: dict[str, dict[str, figures.Series]]) -> Picture:
    series = {
        printable(base.removesuffix("_accuracy")): splits["test"]
        for base, splits in domains.items()
        if "test" in splits
    }
    return _curves("domains", "Accuracy of each domain", series, "accuracy (%)", percent=True, about_metric=True)


QUANTILES = {"p10_": "10th percentile", "worst_": "worst peer"}


def _variance_pictures(run: RunFolder) -> list[Picture]:
    """Variance of the weights over the rounds, and the factors of variance correction."""
    captions = {
        "variance": "Variance of the weights, mean of the peers",
        "factor": "Factor of the variance correction, mean of the peers",
    }
    pictures = []
    for part, caption in captions.items():
        series = run.measured(part, run.names(part))
        if series:
            pictures.append(_curves(f"weights-{part}", caption, series, part, log=part == "variance"))
    return pictures


def _network_pictures(run: RunFolder, network: NetworkFacts) -> list[Picture]:
    """The graph, with peers coloured by their last accuracy if it is known."""
    if not len(network.edges):
        return []
    by_round = [record.peers for record in run.records if record.peers]
    values = [finite(value) for value in (by_round[-1].get("accuracy") or [] if by_round else [])]
    known = len(values) == network.peers and None not in values
    byzantine = sorted(peer for peer in run.byzantine if peer < network.peers)
    with report_canvas.drawing(560, 460) as figure:
        shares = [100 * value for value in values if value is not None] if known else None
        plot_graph(figure, network.edges, network.peers, shares, "accuracy (%)", byzantine)
        svg = report_canvas.written(figure, "network")
    caption = "Graph of the peers" + (", coloured by accuracy" if known else "")
    caption += "; crosses mark Byzantine peers" if byzantine else ""
    return [Picture("network", svg, caption, f"graph of {network.peers} peers")]


def _metric_picture(index: int, base: str, splits: dict[str, figures.Series]) -> Picture:
    series: dict[str, figures.Series] = {
        split: splits[split] for split in ("test", "validation", "train", *QUANTILES.values()) if split in splits
    }
    words = printable(base).replace("_", " ")
    plain_name = re.sub(r"[^a-z0-9]+", "-", base.lower())[:40]
    name = base if base in ("accuracy", "loss") else f"metric-{index}-{plain_name}"
    percent = is_share(base)
    label = f"{words} (%)" if percent else words
    return _curves(name, words[:1].upper() + words[1:], series, label, percent=percent, about_metric=True)


def _clients_picture(run: RunFolder) -> Picture:
    seen = run.names("clients", OUTCOMES)
    kinds = [name for name in seen if name == "admitted" or any(run.column("clients", name))] or ["admitted"]
    parts = {name: run.column("clients", name) for name in kinds}
    return _steps(
        run,
        "clients",
        f"{run.members.capitalize()} in each round",
        lambda: figures.stacked(run.rounds, parts, run.members, figures.OUTCOME_COLOURS, whole=True),
        {kind: human_count(values[0]) for kind, values in parts.items()},
    )


def _trust_pictures(run: RunFolder) -> list[Picture]:
    """Mean coefficients of honest and Byzantine clients, and the largest variance around the aggregate."""
    pictures = []
    groups = run.measured("aggregation", ("honest", "byzantine"))
    if groups:
        caption = "Trust of the rule: mean coefficient times the number of updates"
        pictures.append(_curves("trust", caption, groups, "share of the aggregate (1: an equal one)"))
    residual = run.measured("aggregation", ("residual",))
    if residual:
        caption = "Largest variance of the updates along one direction around the aggregate (largest eigenvalue)"
        pictures.append(_curves("residual", caption, residual, "largest variance"))
    return pictures


def _exhibit_pictures(run: RunFolder) -> list[Picture]:
    """Pictures of the exhibits; one that cannot be drawn is left out, with a notice."""
    pictures = []
    for shown in run.exhibits:
        try:
            svg = draw_exhibit(shown.exhibit)
        except Exception as error:
            run.notices.append(f"{EXHIBITS}: {shown.exhibit.name!r} cannot be drawn: {printable(error)}.")
            continue
        if svg:
            words = printable(shown.title.lower())
            pictures.append(Picture(shown.figure, svg, shown.title, words, note=shown.exhibit.caption))
    return pictures


def _time_pictures(run: RunFolder) -> list[Picture]:
    parts = run.phase_seconds
    if not parts:
        return []
    return [
        _steps(
            run,
            "time",
            "Seconds in each round",
            lambda: figures.stacked(run.rounds, parts, "seconds", figures.PHASE_COLOURS),
            {phase: human_seconds(values[0]) for phase, values in parts.items()},
        )
    ]


def _traffic_pictures(run: RunFolder) -> list[Picture]:
    up, down = run.column("bytes", "up"), run.column("bytes", "down")
    if not any(up) and not any(down):
        return []
    return [
        _steps(
            run,
            "traffic",
            "Bytes in each round",
            lambda: figures.traffic(run.rounds, up, down, run.members),
            {"up": human_bytes(up[0]), "down": human_bytes(down[0])},
        )
    ]


def _staleness_pictures(run: RunFolder) -> list[Picture]:
    """In virtual time: mean age of the merged messages, in ticks."""
    ages = run.series("staleness")
    if not ages[0]:
        return []
    return [_curves("staleness", "Age of merged messages", {"mean": ages}, "ticks")]
