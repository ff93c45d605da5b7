"""Makes a tiny folder of every architecture in architectures.yaml, runs grids on each, and writes docs/checkpoints.md.

    python scripts/architectures.py                              all of them, both grids
    python scripts/architectures.py --only falcon_alibi bert     some
    python scripts/architectures.py --check-bits                 and loads a model for every ok cell by itself, with the
                                                                 plain call: its output must have the same bits
    python scripts/architectures.py --write docs/checkpoints.md  the table

Random weights from seed 0. Token ids are given, so no tokenizer is needed; image and audio models read arrays.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from safetensors.torch import save_file

from sweeper.checkpoints.folder import no_progress_bars
from sweeper.cli.compose import arrange
from sweeper.cli.run import config_folder
from sweeper.comparator.forwards import run_forwards, side_of
from sweeper.config import Cell, LoadStrategy, parse
from sweeper.environment import environment
from sweeper.planning.grid import expand
from sweeper.planning.plan import make_plan
from sweeper.sweep import bare
from sweeper.sweep.run import run

DATA = Path(__file__).with_name("architectures.yaml")
GRIDS = ("bf16_vs_fp32", "padding_vs_packing")
LENGTHS = (9, 5)  # of the two texts: the shorter one has pads beside it
FIRST_ID = 5  # behind the special tokens
MARKS = ("<!-- made by scripts/architectures.py -->", "<!-- end -->")
SPREAD = 0.2  # of the weights: with transformers' own 0.02 every attention would be uniform at this width


@dataclass(frozen=True)
class Architecture:
    """An entry of architectures.yaml."""

    name: str
    model_type: str
    kind: str
    family: str
    config: dict[str, Any]
    reads: tuple[int, ...] | None = None
    ci: bool = False


def architectures() -> list[Architecture]:
    """All entries."""
    entries = yaml.safe_load(DATA.read_text())["architectures"]
    return [
        Architecture(
            name=entry.get("name", entry["model_type"]),
            model_type=entry["model_type"],
            kind=entry["class"],
            family=entry["family"],
            config=entry["config"],
            reads=tuple(entry["reads"]) if "reads" in entry else None,
            ci=entry.get("ci", False),
        )
        for entry in entries
    ]


def save(architecture: Architecture, folder: Path) -> None:
    """Draws the weights and saves the model, as its user would."""
    torch.manual_seed(0)
    config_class = transformers.models.auto.configuration_auto.CONFIG_MAPPING[architecture.model_type]
    model = getattr(transformers, architecture.kind)(config_class(**architecture.config))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=SPREAD, generator=generator)
    with no_progress_bars():
        model.save_pretrained(folder)


def inputs(architecture: Architecture, folder: Path) -> list[str]:
    """What the command line says of the inputs: token ids, or a file of arrays."""
    generator = torch.Generator().manual_seed(1)
    if architecture.reads is not None:
        array = torch.randn(len(LENGTHS), *architecture.reads, generator=generator)
        save_file({"array": array}, folder / "inputs.safetensors")
        return ["inputs=arrays", f"inputs.arrays={folder / 'inputs.safetensors'}"]
    highest = architecture.config["vocab_size"]
    ids = [torch.randint(FIRST_ID, highest, (length,), generator=generator).tolist() for length in LENGTHS]
    return ["inputs=token_ids", "inputs.name=two_texts", f"inputs.token_ids={json.dumps(ids)}"]


def run_grid(grid: str, arguments: Sequence[str]) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The records of all cells, and the axes that were dropped."""
    overrides = [word for word in arrange([f"+grid={grid}", *arguments]) if word != "--multirun"]
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", overrides, run_mode=RunMode.MULTIRUN)
        request = expand(loader, master, list(master.hydra.overrides.task))
    run(request)
    cells = Path(request.settings.output_dir).glob(f"{grid}/*/cells/*/cell.json")
    return [json.loads(path.read_text()) for path in cells], make_plan(request, environment("cpu")).dropped


@dataclass(frozen=True)
class Result:
    """What a grid gave for an architecture."""

    architecture: Architecture
    grid: str
    counts: Counter[str]
    reasons: Counter[str]
    seconds: float
    unlike: list[str]


def run_all(
    chosen: Iterable[Architecture], grids: Sequence[str], check_bits: bool, more: list[str]
) -> Iterator[Result]:
    """Runs the grids, architecture by architecture; prints a line each."""
    for architecture in chosen:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / architecture.name
            folder.mkdir()
            save(architecture, folder)
            arguments = ["checkpoint=folder", f"checkpoint.path={folder}", f"checkpoint.name={architecture.name}"]
            arguments += [*inputs(architecture, folder), "device=cpu", "verdict=false", "latency_repeats=0"]
            arguments += ["wandb.mode=disabled", f"output_dir={scratch}/outputs", *more]
            for grid in grids:
                started = time.monotonic()
                records, dropped = run_grid(grid, arguments)
                counts = Counter(record["status"] for record in records)
                reasons = Counter(record["reason"] for record in records if record["status"] != "ok")
                unlike = unlike_plain(records, folder, architecture) if check_bits else []
                result = Result(architecture, grid, counts, reasons, time.monotonic() - started, unlike)
                _print(result, records, dropped)
                yield result


def _print(result: Result, records: list[dict[str, Any]], dropped: Sequence[str]) -> None:
    counts = ", ".join(f"{count} {status}" for status, count in result.counts.items())
    print(f"{result.architecture.name:30} {result.grid:20} {result.seconds:5.1f} s  {counts}", flush=True)
    for reason, count in result.reasons.items():
        print(f"    {count} x {reason}")
    useless = Counter(f"{axis}: {why}" for record in records for axis, why in record["without_effect"].items())
    for reason, count in useless.items():
        print(f"    {count} x without effect: {reason}")
    for sentence in dropped:
        print(f"    {sentence}")
    for line in result.unlike:
        print(f"    NOT THE BITS OF THE PLAIN CALL: {line}")
    failed = next((record for record in records if record["status"] == "failed"), None)
    if failed is not None:
        print("        " + "\n        ".join((failed["traceback"] or failed["reason"]).splitlines()[-12:]))


TITLES = {
    "causal": "Causal language models",
    "masked": "Masked language models, and classifiers of texts",
    "embedding": "Embedding models",
    "encoder_decoder": "Encoder-decoders",
    "vision": "Vision",
    "audio": "Audio",
}


def table(results: Sequence[Result], command: str) -> str:
    """The middle of docs/checkpoints.md: a row an architecture, and why what did not run did not."""
    reasons: dict[str, int] = {}
    lines = [f"`{command}`, transformers {transformers.__version__}, torch {torch.__version__}."]
    for family, title in TITLES.items():
        chosen = [result for result in results if result.architecture.family == family]
        if not chosen:
            continue
        lines += ["", f"### {title}", "", f"| architecture | class | {' | '.join(GRIDS)} | why not |"]
        lines += [f"|---|---|{'---|' * len(GRIDS)}---|"]
        for architecture in dict.fromkeys(result.architecture.name for result in chosen):
            lines.append(_row([result for result in chosen if result.architecture.name == architecture], reasons))
    lines += ["", "### Why not", ""]
    return "\n".join([*lines, *(f"{number}. {reason}" for reason, number in reasons.items())])


def _row(results: Sequence[Result], reasons: dict[str, int]) -> str:
    counts = {result.grid: ", ".join(f"{count} {status}" for status, count in _sorted(result)) for result in results}
    kind = results[0].architecture.kind
    why = [reason.replace(kind, "the class") for result in results for reason in result.reasons]
    why = [reason.replace(results[0].architecture.name, "it") for reason in why]
    numbers = sorted({reasons.setdefault(reason, len(reasons) + 1) for reason in why})
    cells = [
        results[0].architecture.name,
        kind,
        *(counts.get(grid, "") for grid in GRIDS),
        ", ".join(map(str, numbers)),
    ]
    return f"| {' | '.join(cells)} |"


def _sorted(result: Result) -> list[tuple[str, int]]:
    return [(status, result.counts[status]) for status in ("ok", "unsupported", "failed") if result.counts[status]]


def write(path: Path, results: Sequence[Result], command: str) -> None:
    """Puts the table between the two marks of the page."""
    page = path.read_text(encoding="utf-8")
    before, _, rest = page.partition(f"{MARKS[0]}\n")
    after = rest.partition(MARKS[1])[2]
    path.write_text(f"{before}{MARKS[0]}\n{table(results, command)}\n{MARKS[1]}{after}", encoding="utf-8")


def unlike_plain(records: list[dict[str, Any]], folder: Path, architecture: Architecture) -> list[str]:
    """The ok cells whose output is not, bit for bit, that of a model loaded for them alone, by the plain calls."""
    ok = [parse(Cell, record["choices"]) for record in records if record["status"] == "ok"]
    return [f"{cell.axes()}" for cell in ok if not torch.equal(SEEN[cell], plain_output(cell, folder, architecture))]


SEEN: dict[Cell, torch.Tensor] = {}
"""The output of every cell of the grid that ran last, as the runner had it."""


def spy_on_outputs() -> None:
    """Keeps the outputs that the runner hands on to be timed; a record has only a corner of each."""
    measure = bare.measure_cost

    def keep(cell: Cell, model: Any, batch: Any, output_NF: torch.Tensor, **options: Any) -> Any:
        SEEN[cell] = output_NF.clone()
        return measure(cell, model, batch, output_NF, **options)

    bare.measure_cost = keep


def plain_output(cell: Cell, folder: Path, architecture: Architecture) -> torch.Tensor:
    """What a user's own calls give: from_pretrained of the class that was saved, the cast, the forward."""
    dtype = getattr(torch, cell.dtype)
    at_load = {
        LoadStrategy.DTYPE_AT_LOAD: dtype,
        LoadStrategy.DEVICE_MAP: dtype,
        LoadStrategy.AUTO_THEN_CAST: "auto",
    }.get(cell.load_strategy, torch.float32)
    place = {"device_map": "cpu"} if cell.load_strategy is LoadStrategy.DEVICE_MAP else {}
    with no_progress_bars():
        model = getattr(transformers, architecture.kind).from_pretrained(
            folder, dtype=at_load, attn_implementation=cell.attention.value, **place
        )
    if not cell.load_strategy.startswith(("dtype_at_load", "device_map", "autocast")):
        model = model.to(dtype)
    model.eval()
    lengths = [[0]] * len(LENGTHS) if cell.inputs.arrays else [list(ids) for ids in cell.inputs.token_ids]
    batch = side_of(cell, model, lengths, [range(len(lengths))]).calls
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=cell.load_strategy is LoadStrategy.AUTOCAST):
        return run_forwards(model, batch)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these architectures")
    parser.add_argument("--ci", action="store_true", help="the telling few that CI runs")
    parser.add_argument("--grids", nargs="+", default=GRIDS)
    parser.add_argument("--check-bits", action="store_true")
    parser.add_argument("--write", type=Path, metavar="FILE")
    parser.add_argument("more", nargs="*", help="further overrides, behind --")
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if asked.check_bits:
        spy_on_outputs()
    chosen = [a for a in architectures() if (not asked.only or a.name in asked.only) and (not asked.ci or a.ci)]
    results = list(run_all(chosen, asked.grids, asked.check_bits, asked.more))
    if asked.write:
        write(asked.write, results, f"python {' '.join(sys.argv)}")
    return int(any(result.counts["failed"] or result.unlike for result in results))


if __name__ == "__main__":
    sys.exit(main())
