"""What the documents say is true: code blocks run, experiments parse, commands exist, links lead somewhere.

`.venv/bin/python tests/test_docs.py` writes the table of docs/reference/configuration.md anew.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields
from io import StringIO
from pathlib import Path

import pytest

from fedgen import registry
from fedgen.config import parse_experiment, parse_override
from fedgen.errors import SettingError
from fedgen.moved import MOVED
from fedgen.server.cli import parser
from fedgen.server.experiment_file import load_experiment, starter
from fedgen.server.run.result import Result
from fedgen.server.schema import key_table

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
EXAMPLES = sorted(ROOT.glob("examples/*.toml"))
API_EXAMPLE, MODULE_EXAMPLE = ROOT / "examples/python_api.py", ROOT / "examples/own_module.py"
CONFIGURATION = ROOT / "docs/reference/configuration.md"

LANGUAGES = {"console", "json", "python", "sh", "text", "toml"}
FOLDERS = ("benchmarks", "clients", "deploy", "docs", "examples", "fedgen", "server", "tests")
FENCED = re.compile(r"^```(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
TABLE = re.compile(r"(<!-- begin table .*?-->\n).*?(<!-- end table -->)", re.DOTALL)

EXECUTE = """
import json, sys
for name, line, text in json.load(sys.stdin):
    exec(compile("\\n" * line + text, name, "exec", dont_inherit=True), globals())
"""


@dataclass(frozen=True)
class Fence:
    """One fenced block; line: number of its opening fence."""

    language: str
    line: int
    text: str


def fences(text: str, *languages: str) -> list[Fence]:
    """The fenced blocks in these languages, all of them where none is named."""
    found = [Fence(match[1], text.count("\n", 0, match.start()) + 1, match[2]) for match in FENCED.finditer(text)]
    return [fence for fence in found if not languages or fence.language in languages]


def fence_problems(text: str) -> list[str]:
    """Fences that no check would look at."""
    unknown = [
        f"line {each.line}: a block in {each.language!r}" for each in fences(text) if each.language not in LANGUAGES
    ]
    return unknown + (["a block is not closed"] if len(re.findall("^```", text, re.MULTILINE)) % 2 else [])


def execute(name: str, text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """All Python blocks of a document in one process and one namespace, warnings as errors."""
    blocks = [(name, fence.line, fence.text) for fence in fences(text, "python")]
    command = [sys.executable, "-W", "error", "-c", EXECUTE]
    return subprocess.run(command, input=json.dumps(blocks), cwd=folder, capture_output=True, text=True, timeout=300)


def experiment_problems(text: str) -> list[str]:
    """TOML blocks that are no experiment."""
    found = []
    for fence in fences(text, "toml"):
        try:
            parse_experiment(fence.text, f"line {fence.line}")
        except SettingError as error:
            found.append(str(error))
    return found


def commands(text: str) -> Iterator[tuple[int, list[str]]]:
    """(line of the block, words) of every simple command in the shell blocks and in sentences.

    A sentence may name a command without what it needs: then only its name is looked at.
    """
    for fence in fences(text, "console", "sh"):
        lines = fence.text.replace("\\\n", " ").splitlines()
        if fence.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        yield from ((fence.line, words) for line in lines for words in simple_commands(line))
    for span in spans(text):
        if span.startswith(("fedgen ", "make ")):
            ((program, *arguments),) = simple_commands(span)
            bare = program == "fedgen" and len(arguments) == 1
            yield 0, [program, *arguments, *(["--help"] if bare else [])]


def simple_commands(line: str) -> list[list[str]]:
    """`A=1 fedgen run x | cat` -> [[fedgen, run, x], [cat]]."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("();<>|&"):
            found.append([])
        elif found[-1] or not re.match(r"[A-Z_]+=", word):
            found[-1].append(word)
    return [words for words in found if words]


def command_problems(text: str) -> list[str]:
    """Commands of fedgen and make that do not exist or have no such options, keys or files."""
    found = []
    for line, (program, *arguments) in commands(text):
        name = Path(program).name
        check = {"fedgen": fedgen_problem, "make": make_problem}.get(name)
        problem = check(arguments) if check else ""
        if problem:
            found.append(f"line {line}: {shlex.join([name, *arguments])}: {problem}")
    return found


def fedgen_problem(arguments: list[str]) -> str:
    said = StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            parsed = parser().parse_args(arguments)
    except SystemExit as end:
        return said.getvalue() if end.code else ""
    try:
        parse_experiment(starter(), overrides=dict(map(parse_override, getattr(parsed, "set", []))))
    except SettingError as error:
        return str(error)
    file = Path(getattr(parsed, "file", ""))
    return f"{file} does not exist" if file.parts[:1] == ("examples",) and not (ROOT / file).exists() else ""


def make_problem(arguments: list[str]) -> str:
    known = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    unknown = [word for word in arguments if "=" not in word and word not in known]
    return f"no target {unknown}" if unknown else ""


def spans(text: str) -> list[str]:
    """`code` in sentences."""
    return re.findall(r"`([^`\n]+)`", FENCED.sub("", text))


def link_problems(text: str, home: Path) -> list[str]:
    """Relative links, anchors and files of the repository named in a sentence that do not exist."""
    found = []
    for target in LINK.findall(re.sub(r"`[^`\n]*`", "", FENCED.sub("", text))):
        path, _, anchor = target.partition("#")
        file = home / path if path else None
        if "://" in target:
            continue
        if file is not None and not file.exists():
            found.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(file.read_text() if file else text):
            found.append(f"{target}: no such heading")
    for span in spans(text):
        if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./-]+\.\w+", span) and not (ROOT / span).exists():
            found.append(f"{span}: no such file")
    return found


def anchors(text: str) -> set[str]:
    """Headings as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def with_table(text: str) -> str:
    """docs/reference/configuration.md with the table as the code has it now."""
    renewed, count = TABLE.subn(lambda match: f"{match[1]}\n{key_table()}\n{match[2]}", text)
    assert count == 1, f"the two marker comments of the table are not in {CONFIGURATION}"
    return renewed


def code_lines(text: str) -> int:
    """Lines that are neither blank nor a comment nor the docstring."""
    code = re.sub(r'\A""".*?"""\n', "", text, flags=re.DOTALL)
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in code.splitlines())


def names(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


@pytest.mark.parametrize("document", DOCUMENTS, ids=names(DOCUMENTS))
def test_python_blocks_run(document: Path, tmp_path: Path) -> None:
    text = document.read_text()
    if fences(text, "python"):
        done = execute(document.name, text, tmp_path)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=names(DOCUMENTS))
def test_document_is_true(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(MODULE_EXAMPLE.parent)  # as if the experiments were files there
    text = document.read_text()
    problems = [
        *fence_problems(text),
        *experiment_problems(text),
        *command_problems(text),
        *link_problems(text, document.parent),
    ]
    assert problems == []


def test_documents_and_examples_are_there() -> None:
    expected = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"}
    expected |= {f"docs/{name}.md" for name in ("start", "design", "reference/configuration", "reference/run-folder")}
    assert expected <= set(names(DOCUMENTS))
    assert "examples/quickstart.toml" in names(EXAMPLES)


def test_every_document_is_reached_from_the_readme() -> None:
    """Through any number of links."""
    reached, left = set[Path](), [ROOT / "README.md"]
    while left:
        document = left.pop()
        if document not in reached:
            reached.add(document)
            paths = [target.partition("#")[0] for target in LINK.findall(FENCED.sub("", document.read_text()))]
            left += [(document.parent / path).resolve() for path in paths if re.fullmatch(r"[\w./-]+\.md", path)]
    assert set(DOCUMENTS) - reached == set()


def test_changelog_has_the_table_of_moved_keys() -> None:
    rows = re.findall(r"^\| `(federation\.\w+)` \| `([\w.]+)` \|$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert dict(rows) == MOVED
    assert len(rows) == len(MOVED)


def test_configuration_table_is_current() -> None:
    text = CONFIGURATION.read_text()
    assert text == with_table(text), "the table is stale; write it anew with: .venv/bin/python tests/test_docs.py"


def test_json_object_has_the_fields_of_a_result() -> None:
    (fence,) = fences((ROOT / "docs/reference/run-folder.md").read_text(), "json")
    assert set(json.loads(fence.text)) == {field.name for field in fields(Result)} - {"folder", "records", "report"} | {
        "run"
    }


@pytest.mark.parametrize("example", EXAMPLES, ids=names(EXAMPLES))
def test_example_experiment_is_valid(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(example.parent)
    assert load_experiment(example).experiment.name


def printed(example: Path, folder: Path) -> str:
    """What an example prints, warnings as errors."""
    command = [sys.executable, "-W", "error", example]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_python_example_runs_in_ten_lines(tmp_path: Path) -> None:
    assert code_lines(API_EXAMPLE.read_text()) <= 10
    output = printed(API_EXAMPLE, tmp_path)
    accuracy = re.search(r"accuracy (0\.\d+)", output)
    assert accuracy, output
    assert float(accuracy[1]) > 0.8


def test_own_module_example_runs_in_forty_lines(tmp_path: Path) -> None:
    """Its metric is measured each round, and it learns."""
    assert len(MODULE_EXAMPLE.read_text().splitlines()) <= 40
    histories = {
        name: list(map(float, values))
        for name, *values in map(str.split, printed(MODULE_EXAMPLE, tmp_path).splitlines())
    }
    assert {len(values) for values in histories.values()} == {10}
    assert histories["own_module:top_two"][-1] > 0.8
    assert histories["train_loss"][-1] < histories["train_loss"][0]


def test_readme_shows_python_in_ten_lines() -> None:
    (fence,) = fences((ROOT / "README.md").read_text(), "python")
    assert code_lines(fence.text) <= 10


def test_readme_counts_the_parts_that_are_registered() -> None:
    """The attack "none" and the topology "file" are named apart."""
    counts = {"aggregation rules": ("rule", 0), "attacks": ("attack", 1), "topologies": ("topology", 1)}
    for words, (kind, apart) in counts.items():
        (count,) = re.findall(rf"(\d+) {words}", (ROOT / "README.md").read_text())
        assert int(count) == len(registry.members(kind)) - apart, kind


FORMS = {
    r"\.\.\.": r".*",
    r"\d{8}-\d{6}": r"\d{8}-\d{6}",
    r"\d[\d.,]* (?:ms|s|B|kB|MB)\b": r"\d[\d.,]* (?:ms|s|min \d+ s|B|kB|MB)",
    r"\d+(?:[.,]\d+)*": r"\d+(?:[.,]\d+)*",
}
"""What differs from run to run, as a sample has it and as it may be: omissions, times of day, amounts, numbers."""


def shape_of(line: str) -> str:
    """A pattern of what a command prints, whatever its numbers."""
    shape, at = "", 0
    for found in re.finditer("|".join(f"({form})" for form in FORMS), line):
        assert found.lastindex is not None
        shape += re.escape(line[at : found.start()]) + list(FORMS.values())[found.lastindex - 1]
        at = found.end()
    return shape + re.escape(line[at:])


def sample(command: str) -> list[str]:
    """What README.md shows of a command's output."""
    (fence,) = [each for each in fences((ROOT / "README.md").read_text(), "console") if f"$ {command}\n" in each.text]
    return [line for line in fence.text.splitlines()[1:] if line not in ("...", "")]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the quickstart prints."""
    command = [sys.executable, "-m", "fedgen.server", "run", ROOT / "examples/quickstart.toml"]
    folder = tmp_path_factory.mktemp("quickstart")
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_readme_shows_what_make_run_prints(quickstart: list[str]) -> None:
    """Every line has the form of one that is printed; the last ones have their numbers too, to a per cent."""
    shown, first = sample("make run"), "fedgen run examples/quickstart.toml"
    assert shown[0] == f".venv/bin/{first}" in (ROOT / "Makefile").read_text().replace("$(BIN)", ".venv/bin")
    assert re.fullmatch(shape_of(shown[1]), quickstart[0]), quickstart[0]
    for line in shown[2:]:
        assert any(re.fullmatch(shape_of(line), printed) for printed in quickstart), f"nothing printed is like: {line}"
    for line, printed in zip(shown[-2:], quickstart[-2:], strict=True):
        told, real = (float(re.search(r"accuracy (\d+\.\d+) %", each)[1]) for each in (line, printed))  # type: ignore[index]
        assert abs(told - real) < 1, printed


def test_readme_shows_what_make_test_prints() -> None:
    """The commands of the target, in order, and what each says when all is well, however many files there are."""
    from mypy.util import FancyFormatter

    alone = {"PATH": os.environ["PATH"]}  # a make that runs the tests hands its variables on, DATA and SLOW too
    make = subprocess.run(
        ["make", "-n", "-o", "setup", "test"], cwd=ROOT, capture_output=True, text=True, check=True, env=alone
    )
    commands = [line.strip() for line in make.stdout.splitlines() if ".venv/bin/" in line]
    shown = sample("make test")
    assert [line for line in shown if line.startswith(".venv/bin/")] == commands
    said = [line for line in shown if not line.startswith(".venv/bin/")]
    checks = [["ruff", "check", "."], ["ruff", "format", "--check", "."]]
    real = [subprocess.run([sys.executable, "-m", *each], cwd=ROOT, capture_output=True, text=True).stdout.strip()
            for each in checks]  # fmt: skip
    real.append(FancyFormatter(sys.stdout, sys.stderr, False).format_success(84, use_color=False).strip())
    assert len(said) == len(real)
    for line, printed in zip(said, real, strict=True):
        assert re.fullmatch(shape_of(line), printed), printed


@pytest.mark.parametrize(
    ("line", "printed", "alike"),
    [
        ("1/9 rounds | 33 ms a round", "12/100 rounds | 1.5 s a round", True),
        ("1/9 rounds (best 3 %)", "12/100 rounds (chosen 3 %)", False),
        ("... files already formatted", "191 files already formatted", True),
        ("Success: no issues found in 84 source files", "Success: no issues found in 191 source files", True),
        ("runs/quickstart-20261125-004726/report.html", "runs/quickstart-20270101-000000/report.html", True),
        ("All checks passed!", "Found 1 error.", False),
    ],
)
def test_a_sample_is_compared_by_its_shape(line: str, printed: str, alike: bool) -> None:
    assert bool(re.fullmatch(shape_of(line), printed)) is alike


@pytest.mark.parametrize(
    "text",
    [
        "```py\nraise ValueError\n```\n",
        "```\nfedgen nonsense\n```\n",
        "text\n```sh\nfedgen run x.toml\n",
        "```toml\n[data]\nclient = 3\n```\n",
        "```toml\nnot TOML\n```\n",
        "```console\n$ fedgen nonsense\n```\n",
        "```sh\nfedgen run x.toml --jsonn\n```\n",
        "```sh\nfedgen run\n```\n",
        "```sh\nX=1 .venv/bin/fedgen run \\\n  x.toml --set training.epoch=2 | cat\n```\n",
        "```sh\nfedgen run examples/nonsense.toml\n```\n",
        "```sh\ncd x && make nonsense\n```\n",
        "Type `fedgen nonsense`.",
        "See [this](nonsense.md).",
        "![picture](docs/images/nonsense.png)",
        "See [this](#nonsense).",
        "See [this](README.md#nonsense).",
        "See `fedgen/nonsense.py`.",
    ],
)
def test_a_false_document_is_found(text: str) -> None:
    checks = [fence_problems(text), experiment_problems(text), command_problems(text), link_problems(text, ROOT)]
    assert sum(map(len, checks)) == 1


def test_a_true_document_passes() -> None:
    text = (
        "# A heading, and more\n\n[up](#a-heading-and-more) [out](https://example.org/x) `fedgen list rule`\n\n"
        "```console\n$ A=1 fedgen run x.toml --set training.epochs=2 | tail -1\nfedgen nonsense\n```\n"
        '```toml\n[aggregation]\nrule = "median"\n```\n'
    )
    checks = [fence_problems(text), experiment_problems(text), command_problems(text), link_problems(text, ROOT)]
    assert checks == [[], [], [], []]


def test_python_blocks_share_a_namespace_and_fail_aloud(tmp_path: Path) -> None:
    assert execute("x.md", "```python\na = 1\n```\n\n```python\nassert a == 1\n```\n", tmp_path).returncode == 0
    assert 'File "x.md", line 4' in execute("x.md", "\n\n```python\nraise ValueError\n```\n", tmp_path).stderr
    assert execute("x.md", "```python\nimport warnings\nwarnings.warn('x')\n```\n", tmp_path).returncode != 0


def test_a_stale_table_is_found() -> None:
    text = CONFIGURATION.read_text()
    assert with_table(text.replace("| `rounds` |", "| `round` |")) != text.replace("| `rounds` |", "| `round` |")


if __name__ == "__main__":
    CONFIGURATION.write_text(with_table(CONFIGURATION.read_text()))
