"""Lint of commit subjects: those that are not yet on origin/main must be shorter than 72 characters.

usage: python .ci/subjects.py [FOLDER]; it checks nothing where there is no git, no checkout or no origin/main.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

LIMIT = 72


def subjects(folder: str) -> list[str]:
    """ "<hash> <subject>" of the new commits, without those from before there was this lint."""
    introduced = log(folder, "--diff-filter=A", "--format=^%H", "HEAD", "--", ".ci/subjects.py")[-1:]
    return log(folder, "--no-merges", "--format=%h %s", "refs/remotes/origin/main..HEAD", *introduced)


def log(folder: str, *words: str) -> list[str]:
    """The lines of `git log`; none where it fails."""
    command = ["git", "-C", folder, "log", *words]
    try:
        found = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return found.stdout.splitlines()


def main(arguments: Sequence[str]) -> int:
    """Print the subjects that are too long; returns 1 if there are any, else 0."""
    long = [line for line in subjects(*arguments or ["."]) if len(line.partition(" ")[2]) >= LIMIT]
    for line in long:
        commit, _, subject = line.partition(" ")
        print(f"{commit}: a subject has under {LIMIT} characters, this one {len(subject)}: {subject}")
    if long:
        print("Shorten it and give the reasons in the body: git commit --amend, or git rebase -i origin/main")
    return int(bool(long))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
