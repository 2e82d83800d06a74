"""The report: built from whole, half and hostile run folders, and read back as HTML and XML."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgen.server.report import canvas as report_canvas
from fedgen.server.report import figures
from fedgen.server.report import partition as report_partition
from fedgen.server.report.page import write_report
from fedgen.server.report.refusals import by_client, common_text
from fedgen.server.store.parts import METRICS
from fedgen.tracking.record import NOT_FINITE, OUTCOMES, Outcomes, RoundRecord, Traffic

RESOLVED = """[experiment]
name = "{name}"
seed = 1

[data]
dataset = "digits"
clients = {clients}
partition = {{ name = "dirichlet", alpha = 0.3 }}

[model]
name = "mlp"

[training]
method = "sgd"

[federation]
mode = "star"
rounds = {rounds}

[aggregation]
rule = {{ name = "median" }}

[byzantine]
attack = {{ name = "sign_flip" }}
"""
VOID = {"meta", "link", "br", "img", "hr", "input"}


def make_run(
    folder: Path,
    *,
    rounds: int = 30,
    clients: int = 100,
    attackers: int = 10,
    classes: int = 10,
    name: str = "digits-dirichlet",
) -> Path:
    """A run folder as a finished run leaves it, with made-up numbers that are the same in every call."""
    draw = random.Random(7)
    folder.mkdir(parents=True, exist_ok=True)
    config = RESOLVED.format(name=name, clients=clients, rounds=rounds)
    (folder / "resolved.toml").write_text(config)
    (folder / "experiment.toml").write_text('[data]\ndataset = "digits"\n')
    counts = np.random.default_rng(0).dirichlet([0.3] * classes, clients) * np.random.default_rng(1).integers(
        4, 40, (clients, 1)
    )
    byzantine = list(range(attackers))
    write_json(
        folder / "partition.json",
        {
            "classes": [str(k) for k in range(classes)],
            "counts": counts.round().astype(int).tolist(),
            "byzantine": byzantine,
        },
    )
    write_json(folder / "environment.json", environment())
    records, events = [], []
    for number in range(rounds):
        attacker = draw.randrange(attackers) if attackers and number % 3 == 0 else None
        records.append(record(number, draw, rejected=attacker is not None))
        if attacker is not None:
            reason = f"norm {draw.uniform(1e8, 1e9):.3g} is above aggregation.norm_limit 1e+06"
            events.append({"event": "rejected", "round": number, "client": attacker, "reason": reason})
        events.append({"event": "admitted", "round": number, "clients": draw.sample(range(clients), min(9, clients))})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(whole(line)) + "\n" for line in records))
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in events))
    final = dict(records[-1]["metrics"]) if records else {}
    write_json(
        folder / "result.json",
        {
            "run": str(folder),
            "state": "completed",
            "rounds": rounds,
            "metrics": final,
            "sha256": "ab" * 32,
            "client_sha256": None,
            "seconds": 12.3 + rounds,
            "message": "",
        },
    )
    return folder


def record(number: int, draw: random.Random, *, rejected: bool) -> dict[str, Any]:
    reached = 1 - math.exp(-(number + 2) / 9)
    metrics = {"train_loss": 2.3 * math.exp(-number / 8) + 0.04 + draw.uniform(0, 0.05)}
    if number % 2 == 1 or number == 0:
        metrics |= {
            "accuracy": 0.975 * reached + draw.uniform(-0.008, 0.008),
            "validation_accuracy": 0.95 * reached + draw.uniform(-0.01, 0.01),
            "loss": 2.2 * math.exp(-number / 9) + 0.1,
            "validation_loss": 2.2 * math.exp(-number / 9) + 0.16,
        }
    return {
        "round": number,
        "metrics": metrics,
        "clients": {"admitted": 10 - rejected, "rejected": int(rejected), "failed": 0, "late": 0},
        "skipped": False,
        "bytes": {"up": 381_000 - 38_000 * rejected, "down": 420_000},
        "seconds": {
            "train": 0.2 + draw.uniform(0, 0.05),
            "aggregate": 0.01,
            "evaluate": 0.03 * (number % 2),
            "checkpoint": 0.02 * (number % 10 == 0),
        },
    }


def environment() -> dict[str, Any]:
    return {
        "fedgen": "0.1.0",
        "python": "3.11.7",
        "platform": "Linux-6.1-x86_64",
        "cpu": "AMD EPYC",
        "cores": 2,
        "memory_gib": 23.5,
        "packages": {"torch": "2.13.0+cpu", "numpy": "2.4.6"},
        "git": {"commit": "0123abc", "dirty": True},
        "device": "cpu",
        "command": ["fedgen", "run", "my experiment.toml"],
        "started": "2026-01-02T03:04:05+00:00",
        "identity": "cd" * 32,
        "lower_is_better": {
            "accuracy": False,
            "loss": True,
            "validation_accuracy": False,
            "validation_loss": True,
            "train_loss": True,
        },
        "data": {"dataset": "digits", "sha256": "ef" * 32, "training": 1293, "validation": 144, "test": 360},
    }


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


class Page(HTMLParser):
    """A report as a browser reads it: its tags, the text outside of styles, and every address it would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.identifiers: list[str] = []
        self.words: list[str] = []
        self.source = path.read_text()
        self.feed(self.source)
        self.close()

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        self.identifiers += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def report_of(folder: Path) -> Page:
    path = write_report(folder)
    assert path == folder / "report.html"
    page = Page(path)
    assert page.open == []
    for figure in (folder / "figures").glob("*.svg"):
        ElementTree.parse(figure)
    return page


def rewrite(path: Path, **changes: object) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


def append(path: Path, *lines: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(whole(line) if path.name == METRICS else line) + "\n" for line in lines)


def whole(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl with those fields, and nothing in all others."""
    return RoundRecord(0, False, {}, Outcomes(), False, Traffic(), {}).to_json() | line


def test_a_whole_run_is_told_in_order(tmp_path: Path) -> None:
    page = report_of(make_run(tmp_path / "run"))
    told = [
        "digits-dirichlet",
        "Completed",
        "test accuracy",
        "Accuracy",
        "Loss",
        "Clients in each round",
        "Data partition",
        "Time and traffic",
        "Bytes in each round",
        "Who was rejected, and why",
        "Events",
        "Configuration",
        "Environment",
        "Reproduce",
    ]
    places = [page.text.find(words) for words in told]
    assert -1 not in places
    assert places == sorted(places)
    assert {path.stem for path in (tmp_path / "run/figures").iterdir()} == {
        "accuracy", "loss", "clients", "time", "traffic", "partition",
    }  # fmt: skip
    assert page.tags.count("svg") == 6


def test_the_numbers_are_those_of_the_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=4, clients=3, attackers=1)
    records = [
        {"round": number, "metrics": {"accuracy": accuracy}, "clients": {"admitted": 2, "rejected": number % 2},
         "bytes": {"up": 1000, "down": 2500}, "seconds": {"train": 3.0, "evaluate": 1.0}}
        for number, accuracy in enumerate((0.5, 0.75, 0.95, 0.9))
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(whole(line)) + "\n" for line in records))
    rewrite(folder / "result.json", metrics={"accuracy": 0.9}, seconds=200.0)
    rewrite(folder / "partition.json", counts=[[1, 0], [2, 3], [0, 9]], classes=["cat", "dog"])
    text = report_of(folder).text
    assert "test accuracy 90.00 % rounds" in text, "without a validation set the final value stands alone"
    assert "95.00 %" not in text, "the best of the test values is told nowhere"
    assert "3 min 20 s" in text
    assert "14.0 kB 4.0 kB up, 10.0 kB down" in text
    assert (
        "3 clients with 15 samples in all: 1 to 9 (median 5) samples each, from 1 to 2 (median 1) of 2 classes." in text
    )
    # 4 rounds of 3 s and 1 s in a run of 200 s: 6 %, 2 %, and 92 % outside the rounds.
    assert re.search(r"train 6\.0 % 12 s .* evaluate 2\.0 % 4\.0 s .* outside rounds 92\.0 % 3 min 04 s", text)
    assert "admitted 8 80.0 % 4" in text
    assert "rejected 2 20.0 % 2" in text


def test_domains_share_one_picture(tmp_path: Path) -> None:
    """One curve a domain; their mean keeps a picture of its own."""
    folder = make_run(tmp_path / "run", rounds=3)
    for number in range(3):
        metrics = {"accuracy": 0.5, "webcam_accuracy": 0.4, "dslr_accuracy": 0.6, "domain_accuracy": 0.5}
        append(folder / "metrics.jsonl", {"round": 10 + number, "metrics": metrics})
    page = report_of(folder)
    assert "Accuracy of each domain" in page.text
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert "domains" in names
    assert not any("webcam" in name for name in names)
    svg = (folder / "figures/domains.svg").read_text()
    assert "webcam" in svg
    assert "dslr" in svg


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    page = report_of(make_run(tmp_path / "run", clients=500))
    assert page.addresses
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not {"script", "iframe", "object", "img"} & set(page.tags)
    assert "http" not in page.source
    assert "@import" not in page.source
    assert re.findall(r"url\((?!#)", page.source) == []


def test_references_inside_the_page_meet_one_identifier_each(tmp_path: Path) -> None:
    page = report_of(make_run(tmp_path / "run"))
    assert len(page.identifiers) == len(set(page.identifiers))
    wanted = {address[1:] for address in page.addresses if address.startswith("#")} | set(
        re.findall(r"url\(#([^)]*)\)", page.source)
    )
    assert wanted <= set(page.identifiers)


def test_pictures_follow_the_page_and_stand_alone(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", clients=10)
    page = report_of(folder)
    pictures = "".join(re.findall(r"<svg.*?</svg>", page.source, flags=re.DOTALL))
    assert set(re.findall(r"(?:fill|stroke): (#\w+)", pictures)) == set()
    style = page.source[: page.source.index("</style>")]
    light, dark = style.split("prefers-color-scheme: dark")
    for role in set(re.findall(r"var\(--([a-z0-9]+)\)", page.source)):
        assert f"--{role}:" in light
        assert f"--{role}:" in dark
    assert "var(" not in (folder / "figures/partition.svg").read_text()


def test_light_variables_are_the_colours_of_the_files() -> None:
    style = (Path(report_canvas.__file__).parent / "templates/report.css").read_text().split("@media")[0]
    light = dict(re.findall(r"--(\w+): (#\w+)", style))
    # Muted text on a page needs a little more contrast than in a picture.
    assert {role: light[role] for role in report_canvas.COLOURS if role != "muted"} == {
        role: colour for role, colour in report_canvas.COLOURS.items() if role != "muted"
    }


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", clients=500)
    page = write_report(folder).read_bytes()
    pictures = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert write_report(folder).read_bytes() == page
    assert {path.name: path.read_bytes() for path in (folder / "figures").iterdir()} == pictures


HOSTILE = "<script>alert('&\"')</script></pre></svg>"


def test_everything_a_run_says_is_escaped(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=6, clients=8, classes=3)
    (folder / "resolved.toml").write_text(f'[experiment]\nname = """{HOSTILE}"""\n')
    (folder / "experiment.toml").write_text(f"# {HOSTILE}\n")
    append(folder / "events.jsonl", {"event": "rejected", "round": 1, "client": 3, "reason": HOSTILE})
    append(folder / "events.jsonl", {"event": HOSTILE, "round": 2, "reason": HOSTILE, HOSTILE: HOSTILE})
    append(
        folder / "metrics.jsonl",
        {"round": 6, "metrics": {HOSTILE: 1.0}, "clients": {HOSTILE: 1}, "seconds": {HOSTILE: 1}},
    )
    rewrite(folder / "partition.json", classes=[HOSTILE, 'style="font-family: x', "$x$"])
    rewrite(
        folder / "environment.json",
        cpu=HOSTILE,
        packages={HOSTILE: HOSTILE},
        command=["fedgen", HOSTILE],
        identity=HOSTILE,
    )
    rewrite(folder / "result.json", state=HOSTILE, message=HOSTILE, sha256=HOSTILE)
    page = report_of(folder)
    assert "script" not in page.tags
    assert HOSTILE in page.text
    assert "<script" not in page.source.lower()
    assert all("<script" not in path.read_text() for path in (folder / "figures").iterdir())


PARTS = ["experiment.toml", "environment.json", "partition.json", "metrics.jsonl", "events.jsonl", "result.json"]


@pytest.mark.parametrize("part", PARTS)
def test_any_optional_part_may_be_missing(tmp_path: Path, part: str) -> None:
    folder = make_run(tmp_path / "run", rounds=3)
    (folder / part).unlink()
    page = report_of(folder)
    assert "digits-dirichlet" in page.text
    assert ("Running" in page.text) == (part == "result.json")


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    for part in PARTS:
        (folder / part).unlink()
    text = report_of(folder).text
    assert "Running" in text
    assert "No round has been evaluated yet" in text
    assert "partition.json is missing" in text
    assert "fedgen resume" in text


def test_zero_rounds(tmp_path: Path) -> None:
    assert "No round has ended yet" in report_of(make_run(tmp_path / "run", rounds=0)).text


def test_a_log_cut_short_by_a_kill_is_read_up_to_there(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=5)
    whole = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(whole[:-30])
    (folder / "result.json").unlink()
    text = report_of(folder).text
    assert "The last line of metrics.jsonl is cut short" in text
    assert "rounds 4 of 5 planned" in text


@pytest.mark.parametrize("part", ["metrics.jsonl", "events.jsonl"])
def test_a_log_damaged_in_the_middle_is_an_error_that_names_it(tmp_path: Path, part: str) -> None:
    folder = make_run(tmp_path / "run", rounds=5)
    lines = (folder / part).read_text().splitlines()
    (folder / part).write_text("\n".join([lines[0], lines[1][:20], *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match=rf"{part}, line 2"):
        write_report(folder)


@pytest.mark.parametrize("content", [None, b"[experiment\n", b"\xff\xfe"])
def test_without_a_readable_configuration_the_error_names_it(tmp_path: Path, content: bytes | None) -> None:
    folder = make_run(tmp_path / "run", rounds=5)
    if content is None:
        (folder / "resolved.toml").unlink()
    else:
        (folder / "resolved.toml").write_bytes(content)
    with pytest.raises(ValueError, match=r"resolved\.toml"):
        write_report(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff", b'{"counts": 3}', b'{"counts": [[1, 2], [3]], "data": 7, "packages": 1}']
)
@pytest.mark.parametrize("part", ["environment.json", "partition.json", "result.json"])
def test_a_damaged_optional_part_is_left_out(tmp_path: Path, part: str, content: bytes) -> None:
    folder = make_run(tmp_path / "run", rounds=0)
    (folder / part).write_bytes(content)
    text = report_of(folder).text
    assert "digits-dirichlet" in text
    if part == "partition.json":
        assert "partition.json" in text
        assert "samples in all" not in text


@pytest.mark.parametrize(
    ("state", "word"),
    [("completed", "Completed"), ("degraded", "Degraded"), ("failed", "Failed"), ("stopped", "Stopped")],
)
def test_the_end_state_is_said_in_words(tmp_path: Path, state: str, word: str) -> None:
    folder = make_run(tmp_path / "run", rounds=3)
    rewrite(folder / "result.json", state=state, message="because of this")
    page = report_of(folder)
    assert word in page.text
    assert "because of this" in page.text
    assert ("fedgen resume" in page.text) == (state != "completed")


def test_rejections_are_grouped_by_reason_and_by_client(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=0, attackers=2)
    events = [
        {"event": "rejected", "round": number, "client": number % 3, "reason": f"norm {number + 1}e+09 is above 1e+06"}
        for number in range(9)
    ]
    events.append({"event": "failed", "round": 9, "clients": [7, 8], "reason": "RuntimeError: no"})
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in events))
    text = report_of(folder).text
    assert "9 updates were rejected and 2 client runs failed, of 5 clients; 2 of the 2 Byzantine clients and" in text
    assert "rejected norm 1e+09 to 9e+09 is above 1e+06 9 0, 1, 2 0 to 8" in text
    assert "failed RuntimeError: no 2 7, 8 9" in text
    assert "0 Byzantine 3 norm 1e+09 to 7e+09 is above 1e+06 0 to 6" in text
    assert "2 3 norm 3e+09 to 9e+09" in text


def test_clients_of_a_failed_block_are_among_the_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=0, attackers=2)
    append(
        folder / "events.jsonl",
        {"event": "block_failed", "round": 3, "block": 1, "clients": [0, 5], "reason": "the worker died"},
    )
    text = report_of(folder).text
    assert "2 client runs failed, of 2 clients; 1 of the 2 Byzantine clients and 1 honest are among them" in text
    assert "failed the worker died 2 0, 5 3" in text
    assert "3 block failed the worker died; block 1; clients [0, 5]" in text


def test_the_failure_of_a_run_is_an_event_and_no_refusal(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=0)
    append(folder / "events.jsonl", {"event": "failed", "reason": "disk full"})
    text = report_of(folder).text
    assert "No update was rejected and no client failed" in text
    assert "failed disk full" in text


def test_the_command_to_run_again_has_what_the_command_line_set(tmp_path: Path) -> None:
    assert f"fedgen run {tmp_path}/run/resolved.toml" in report_of(make_run(tmp_path / "run", rounds=0)).text


def test_unknown_events_are_shown_with_all_they_say(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=2)
    append(folder / "events.jsonl", {"event": "checkpoint_fell_back", "round": 1, "reason": "torn file"})
    append(
        folder / "events.jsonl",
        {"event": "moon_phase", "round": 1, "phase": "full", "nights": [3, 4]},
        {"strange": None},
    )
    text = report_of(folder).text
    assert "1 checkpoint fell back torn file" in text
    assert "1 moon phase phase full; nights [3, 4]" in text
    assert "event strange null" in text


def test_other_metrics_get_their_own_curve(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=0)
    append(
        folder / "metrics.jsonl",
        *({"round": number, "evaluated": True, "metrics": {"mean_squared_error": 9.0 - number}} for number in range(5)),
    )
    (folder / "result.json").unlink()
    text = report_of(folder).text
    assert "Mean squared error" in text
    assert "test mean squared error 5 rounds 5" in text


def test_a_resumed_round_that_was_written_twice_counts_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=3)
    append(folder / "metrics.jsonl", {"round": 2, "evaluated": True, "metrics": {"accuracy": 0.123}})
    (folder / "result.json").unlink()
    text = report_of(folder).text
    assert "12.30 %" in text
    assert "rounds 3 of 3 planned" in text


@pytest.mark.parametrize(
    ("clients", "classes"), [(1, 1), (30, 10), (31, 10), (400, 3), (401, 3), (300, 77), (10_000, 10)]
)
def test_who_holds_what_for_any_number_of_clients(tmp_path: Path, clients: int, classes: int) -> None:
    page = report_of(make_run(tmp_path / "run", rounds=2, clients=clients, classes=classes, attackers=1))
    assert f"{clients:,} client{'s' * (clients > 1)} with" in page.text
    assert (tmp_path / "run/figures/partition.svg").stat().st_size < 150_000


def test_a_long_run_with_many_clients_stays_small(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=1000, clients=10_000, attackers=400)
    lines = (
        {"event": "failed", "round": k % 1000, "client": k, "reason": f"client {k}: {'a' * 600}"} for k in range(10_000)
    )
    append(folder / "events.jsonl", *lines)
    append(folder / "events.jsonl", *({"event": "retried", "round": k, "reason": "worker died"} for k in range(3000)))
    page = report_of(folder)
    assert len(page.source) < 1_500_000
    assert "The first 300 of" in page.text
    assert page.text.count("worker died") == 300


def test_class_names_in_any_script_are_drawn(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=0, clients=4, classes=2)
    rewrite(folder / "partition.json", classes=["猫", "\U00029a41"])
    assert {"猫", "\U00029a41"} <= set(report_of(folder).text.split())


def test_names_that_xml_cannot_hold_are_no_error(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=0, clients=4, classes=2)
    append(folder / "metrics.jsonl", {"round": 0, "metrics": {"a\x03": 1.0}, "seconds": {"b\x00\ud800": 1.0}})
    report_of(folder)


def test_columns_of_the_partition_map_hold_every_client_once() -> None:
    counts = np.random.default_rng(3).integers(0, 9, (1003, 4))
    columns = report_partition.client_columns(counts)
    assert len(columns) == report_partition.MAX_COLUMNS
    clients = np.concatenate(columns)
    assert sorted(clients.tolist()) == list(range(1003))
    main = counts.argmax(axis=1)[clients]
    assert (np.diff(main) >= 0).all()


def test_clients_refused_equally_often_are_in_order_of_their_number() -> None:
    refused: list[dict[str, Any]] = [{"event": "failed", "client": client} for client in (None, 90, 9, 13, 90)]
    assert list(by_client(refused)) == [90, 9, 13, None]


def test_texts_that_differ_in_numbers_become_one() -> None:
    assert common_text(["norm 9 is above 5"]) == "norm 9 is above 5"
    assert common_text(["norm 9 is above 5", "norm -7.5 is above 5"]) == "norm -7.5 to 9 is above 5"
    assert (
        common_text(["norm inf of layer1.weight", "norm 1e+40 of layer1.weight"])
        == "norm 1e+40 to inf of layer1.weight"
    )


def test_a_report_needs_neither_torch_nor_ray(tmp_path: Path) -> None:
    make_run(tmp_path / "run", rounds=2)
    code = (
        "import sys; from pathlib import Path; from fedgen.server.report.page import write_report;"
        "write_report(Path(sys.argv[1])); assert not {'torch', 'ray', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NUMBERS = st.dictionaries(
    st.sampled_from(["accuracy", "loss", "train_loss", "up", "admitted", "train", "odd"]) | st.text(max_size=8),
    st.none() | st.integers(-(10**18), 10**18) | st.floats(allow_subnormal=False) | st.sampled_from(NOT_FINITE),
    max_size=4,
)
COUNTS = st.integers(0, 2**53)
RECORDS = st.fixed_dictionaries(
    {"round": st.integers(-3, 10**6)},
    optional={
        **dict.fromkeys(("metrics", "seconds", "aggregation", "variance", "factor"), NUMBERS),
        "clients": st.dictionaries(st.sampled_from(OUTCOMES), COUNTS),
        "bytes": st.dictionaries(st.sampled_from(["up", "down"]), COUNTS),
        "skipped": st.booleans(),
        "peers": st.dictionaries(st.just("accuracy"), st.lists(st.floats(0, 1, allow_subnormal=False), max_size=4)),
        "messages": COUNTS,
        "staleness": st.floats(0, 1e6, allow_subnormal=False),
    },
)
EVENTS = st.dictionaries(st.sampled_from(["round", "client", "clients", "reason", "odd"]), JSON, max_size=4).flatmap(
    lambda event: st.sampled_from(["admitted", "rejected", "failed", "retried", "odd"]).map(
        lambda kind: {"event": kind, **event}
    )
)


RESULTS = st.dictionaries(
    st.sampled_from(["run", "state", "rounds", "metrics", "sha256", "seconds", "message"]), JSON, max_size=4
)


@settings(max_examples=15, deadline=None)
@given(records=st.lists(RECORDS, max_size=4), events=st.lists(EVENTS, max_size=4), result=RESULTS)
def test_no_record_event_or_result_breaks_the_report(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[dict[str, Any]],
    events: list[dict[str, Any]],
    result: dict[str, Any],
) -> None:
    folder = make_run(tmp_path_factory.mktemp("run"), rounds=0, clients=3, classes=2)
    append(folder / "metrics.jsonl", *records)
    append(folder / "events.jsonl", *events)
    write_json(folder / "result.json", result)
    assert "digits-dirichlet" in report_of(folder).text


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(
        st.floats(-1e30, 1e30, allow_subnormal=False, exclude_min=True, exclude_max=True), min_size=1, max_size=6
    )
)
def test_any_curve_can_be_drawn(values: list[float]) -> None:
    svg = figures.curves({"test": (range(len(values)), values)}, "loss")
    ElementTree.fromstring(svg)


def test_axes_of_powers_have_plain_numbers(tmp_path: Path) -> None:
    """Text stays text in the pictures, so that formulas would stay formulas."""
    from fedgen.server.report.figures import curves

    for values in ([0.017, 0.042], [1e-6, 1.0]):
        drawn = curves({"weight": ([0, 1], values)}, "variance", log=True)
        assert "$" not in drawn
    assert ">0.01<" in curves({"weight": ([0, 1], [0.001, 1.0])}, "variance", log=True)


def test_what_every_peer_of_gossip_sends_and_how_old_it_is(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=3, clients=4)
    records = [
        {"round": number, "metrics": {"accuracy": 0.5}, "bytes": {"up": 4000 * sent, "down": 4000 * sent},
         "messages": 4 * sent, **({"staleness": age} if age else {})}
        for number, sent, age in ((0, 0, None), (1, 2, 1.5), (2, 4, 3.0))
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(whole(line)) + "\n" for line in records))
    page = report_of(folder)
    assert "messages 24 8 16" in page.text
    assert "messages of a peer 6.0 2.0 4.0" in page.text
    assert "up, of a peer 6.0 kB 2.0 kB 4.0 kB" in page.text
    assert "Age of merged messages" in page.text
    assert (folder / "figures" / "staleness.svg").exists()


def told(folder: Path, *records: dict[str, Any], **changes: Any) -> Page:
    """The report of a run whose log holds just these records, and whose result says no more than they do."""
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(whole({"evaluated": True} | line)) + "\n" for line in records)
    )
    rewrite(folder / "result.json", metrics=records[-1]["metrics"], **changes)
    return report_of(folder)


def test_the_headline_is_the_final_test_value_and_what_validation_chose(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=3)
    values = enumerate(((0.9, 0.5), (0.6, 0.8), (0.7, 0.7)))
    records = [{"round": k, "metrics": {"accuracy": test, "validation_accuracy": held}} for k, (test, held) in values]
    page = told(folder, *records)
    assert "test accuracy 70.00 % 60.00 % in round 1, chosen by validation accuracy" in page.text
    assert "test accuracy 70.00 % 60.00 % in round 1 validation" in page.text, "the table tells the same"
    assert "validation accuracy 70.00 % 80.00 % in round 1" in page.text
    assert "90.00 %" not in page.text


def test_a_metric_that_declares_no_way_has_no_best(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=2)
    rewrite(folder / "environment.json", lower_is_better={"validation_x": False})
    values = ((0.25, 0.5), (0.125, 0.0625))
    records = [{"round": k, "metrics": {"validation_x": a, "validation_loss": b}} for k, (a, b) in enumerate(values)]
    text = told(folder, *records).text
    assert "validation x 0.125 0.25 in round 0" in text
    assert re.search(r"validation loss 0\.0625 (?!0)", text)


def test_the_report_tells_apart_what_is_no_number(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=2)
    early = {"round": 0, "metrics": {"accuracy": 0.5, "loss": "Infinity", "rare": 1.0, "train_loss": 0.5}}
    last = {"round": 1, "metrics": {"accuracy": 0.6, "loss": "NaN", "train_loss": None}}
    text = told(folder, early, last, state="degraded").text
    assert "test loss not finite (NaN)" in text
    assert "train loss undefined" in text
    assert "test rare not evaluated" in text
    assert "Not finite: test loss in round 0 and 1 later one." in text
    assert "a number was not finite" in text


def test_a_curve_of_one_dot_is_a_number(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=0)
    one = {"accuracy": 0.875, "validation_accuracy": 0.75, "loss": 0.5}
    record = {"round": -1, "metrics": one, "clients": {"admitted": 9}, "seconds": {"train": 2.0},
              "bytes": {"up": 1000, "down": 2500}, "aggregation": {"honest": 1.25, "residual": 0.5}}  # fmt: skip
    page = told(folder, record)
    assert "Accuracy test 87.50 %, validation 75.00 % before training" in page.text
    assert "Loss test 0.5 before training" in page.text
    assert "Clients in each round admitted 9 before training" in page.text
    assert "Bytes in each round up 1.0 kB, down 2.5 kB before training" in page.text
    assert "Trust of the rule: mean coefficient times the number of updates honest 1.25 before training" in page.text
    assert {path.stem for path in (folder / "figures").iterdir()} == {"partition"}


def test_rounds_before_training_are_called_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=3, attackers=0)
    append(folder / "events.jsonl", {"event": "retried", "round": -1, "reason": "x"},
           {"event": "rejected", "round": -1, "client": 1, "reason": "why"},
           {"event": "rejected", "round": 2, "client": 1, "reason": "why"})  # fmt: skip
    metrics = {"accuracy": 0.5, "validation_accuracy": 0.9}
    later = [{"round": k, "metrics": {"accuracy": 0.6, "validation_accuracy": 0.8}} for k in range(3)]
    page = told(folder, {"round": -1, "metrics": metrics}, *later)
    assert "50.00 % before training, chosen by validation accuracy" in page.text
    assert "before training retried x" in page.text
    assert "why 2 1 before training to 2" in page.text
    assert ">before<" in (folder / "figures/accuracy.svg").read_text()
    assert "round -1" not in page.text


def test_a_broken_bound_is_said_where_the_state_is(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=3, attackers=0)
    (folder / "events.jsonl").write_text("")
    assert "Nothing out of the ordinary happened" in report_of(folder).text
    for number in range(3):
        reason = "5 of 9 clients are Byzantine"
        event = {"event": "bound_broken", "round": number, "reason": reason, "byzantine": 5 + number, "f": 2}
        append(folder / "events.jsonl", event)
    page = report_of(folder)
    state = re.search(r'<p class="state.*?</p>', page.source, flags=re.DOTALL)
    assert state
    assert "in 3 rounds more clients were Byzantine than aggregation.f = 2, up to 7" in state[0]
    assert "Nothing out of the ordinary happened" not in page.text
    assert "0 bound broken 5 of 9 clients are Byzantine; byzantine 5; f 2, and in 2 more rounds" in page.text


def test_peers_are_called_peers(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=3, clients=40, attackers=2)
    config = folder / "resolved.toml"
    config.write_text(config.read_text().replace('mode = "star"', 'mode = "gossip"'))
    (folder / "experiment.toml").unlink()
    page = report_of(folder)
    text = page.text[: page.text.index("Configuration")]
    assert "client" not in text.lower()
    assert "40 peers with" in text
    assert "peers" in (folder / "figures/traffic.svg").read_text()


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_edges_of_a_graph_can_be_seen_in_light_and_dark(tmp_path: Path) -> None:
    """WCAG asks of what must be seen a contrast of 3 : 1 with the page."""
    folder = make_run(tmp_path / "run", rounds=2, clients=4)
    write_json(folder / "network.json", {"peers": 4, "edges": [[0, 1], [1, 2], [2, 3]], "facts": {"a": "b"}})
    source = report_of(folder).source
    graph = re.search(r"<svg[^>]*graph of 4 peers.*?</svg>", source, flags=re.DOTALL)
    assert graph
    assert graph[0].count("stroke: var(--edge)") >= 1
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in source.split("prefers-color-scheme: dark"))
    for theme in (light, dark):
        low, high = sorted((luminance(theme["edge"]), luminance(theme["paper"])))
        assert (high + 0.05) / (low + 0.05) >= 3


def test_wide_figures_show_that_they_scroll(tmp_path: Path) -> None:
    """The shade at the side lies behind the figure, which therefore covers nothing."""
    source = report_of(make_run(tmp_path / "run", rounds=2)).source
    wide = re.search(r'<div class="scroll wide" tabindex="0"><svg.*?</svg>', source, flags=re.DOTALL)
    assert wide
    assert "var(--paper)" not in wide[0]
