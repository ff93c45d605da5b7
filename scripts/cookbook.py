"""`python -m scripts.cookbook [FILE.md] [--only WORD]`: runs every command of the cookbook and writes what it printed.

A block that is fenced as `console` holds commands, each behind `$ `; what else stands in it is replaced by what they
print: of a sweep, its answer. A block that is fenced as `python` is run as a file, and what it prints replaces the
`text` block behind it. All run one after another in one empty folder, in a terminal of 100 columns.

- --only: only blocks that hold this word; the others stay as they are.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

COOKBOOK = Path(__file__).parents[1] / "docs" / "cookbook.md"
BLOCK = re.compile(
    r"```console\n(?P<console>.*?)```|```python\n(?P<python>.*?)```\n\n```text\n(?P<text>.*?)```", re.DOTALL
)
ANSWER = "the answer, worst first"
PROMPT = "$ "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=COOKBOOK)
    parser.add_argument("--only", default="")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = asked.file.read_text(encoding="utf-8")
        for block in [found for found in BLOCK.finditer(page) if asked.only in found[0]]:
            page = page.replace(block[0], rerun(block, Path(folder)), 1)
            asked.file.write_text(page, encoding="utf-8")  # each as it comes: Ctrl-C loses one


def commands(console: str) -> list[str]:
    """The commands of a block, without their prompts."""
    return [line.removeprefix(PROMPT) for line in console.splitlines() if line.startswith(PROMPT)]


def rerun(block: re.Match[str], folder: Path) -> str:
    """The block with what its commands print now."""
    if block["python"] is not None:
        return (
            f"```python\n{block['python']}```\n\n```text\n{printed([sys.executable, '-c', block['python']], folder)}```"
        )
    shown = "".join(f"{PROMPT}{command}\n{answer(command, folder)}" for command in commands(block["console"]))
    return f"```console\n{shown}```"


def answer(command: str, folder: Path) -> str:
    """What a command prints; of a sweep, what stands behind its table."""
    words = shlex.split(command)
    text = printed([sys.executable, *words[1:]] if words[0] == "python" else words, folder)
    return text[text.find(ANSWER) :] if ANSWER in text else text


def printed(command: list[str], folder: Path) -> str:
    """Standard output, with the exit code where it is not 0, as `echo $?` would show it."""
    print("+", shlex.join(command)[:120], file=sys.stderr, flush=True)
    root = Path(__file__).parents[1]
    environment = os.environ | {"COLUMNS": "100", "PYTHONPATH": str(root), "WANDB_MODE": "disabled"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
    ended = f"[exit code {done.returncode}]\n" if done.returncode else ""
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()) + "\n" + ended if done.stdout else ended


if __name__ == "__main__":
    main()
