"""A saved workspace of W&B with the charts of a sweep, made with the package wandb-workspaces.

Every panel names what it shows by a typed accessor (`Config`, `SummaryMetric`, `Metric`): wrong ones are accepted in
silence, and show nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Sequence
from typing import Any

from sweeper.config import WandbSettings
from sweeper.errors import ConfigError
from sweeper.records.cell import CellRecord
from sweeper.records.sweep import Sweep
from sweeper.sinks.wandb.rows import cell_row
from sweeper.sinks.wandb.writer import first_line

FIGURES = ("output.rel_l2", "output.equal_fraction", "language.kl_mean", "embedding_cosine.min")
PINNED = ("verdict", "reason", "cause", "worst_layer", "output.rel_l2", "output.equal_fraction", "cost.latency_ms")
_MOST_LINES = 100  # that a line plot of W&B shows


def workspace_of(sweep: Sweep, settings: WandbSettings, entity: str) -> Any:
    """The workspace: curves, texts, axes against figures, error against latency, the table of verdicts, the comparer.

    Raises:
        ConfigError: the package wandb-workspaces is not installed.
    """
    wr, ws = _packages()
    with contextlib.redirect_stderr(io.StringIO()):  # a reminder to log in, where there is nobody to
        workspace = ws.Workspace(
            name=f"sweeper {sweep.description.grid} {sweep.description.sweep}",
            entity=entity,
            project=settings.project,
            sections=_sections(wr, ws, sweep),
            settings=ws.WorkspaceSettings(x_axis="layer", max_runs=_MOST_LINES, group_by_prefix="first"),
            runset_settings=ws.RunsetSettings(
                filters=[ws.Metric("Group") == sweep.description.sweep],
                order=[ws.Ordering(ws.Summary("output.rel_l2"), ascending=False)],
                pinned_columns=["run:displayName", *(f"summary:{name}" for name in PINNED)],
            ),
        )
    # of its own name, so that the same sweep saves the same view again
    named = json.dumps([entity, settings.project, sweep.description.grid, sweep.description.sweep])
    workspace._internal_name = f"nw-{hashlib.sha256(named.encode()).hexdigest()[:11]}-v"
    return workspace


def _packages() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError:
        raise ConfigError(
            "wandb-workspace needs the package wandb-workspaces: pip install 'sweeper[wandb]' (or wandb-workspaces)"
        ) from None
    return reports, workspaces


def _sections(wr: Any, ws: Any, sweep: Sweep) -> list[Any]:
    def section(name: str, *panels: Any, columns: int = 2) -> Any:
        rows = -(-len(panels) // columns)
        layout = ws.SectionLayoutSettings(columns=columns, rows=rows)
        return ws.Section(name=name, panels=list(panels), is_open=True, layout_settings=layout)

    records = sweep.records
    measured = [figure for figure in FIGURES if any(figure in cell_row(record) for record in records)]
    return [
        section("Verdicts", wr.WeavePanelSummaryTable(table_name="cells"), columns=1),
        section(
            "Layers",
            _curve(wr, "layer", "layer/rel_l2", "rel. L2 of each layer's output", log=True),
            _curve(wr, "layer", "layer/max_abs", "largest difference in each layer's output", log=True),
            _curve(wr, "layer", "layer/equal_fraction", "share of equal elements"),
            _curve(wr, "layer", "layer/cosine", "cosine"),
        ),
        section(
            "Texts",
            _curve(wr, "text", "text/embedding_cosine", "cosine of each text's embedding"),
            _curve(wr, "text", "text/output_max_abs", "largest difference of each text's output", log=True),
        ),
        section("Which choice goes with it", _coordinates(wr, sweep.varying, measured), columns=1),
        section("Error against cost", *_scatters(wr, records)),
        section("Cells side by side", wr.RunComparer(diff_only="split"), columns=1),
    ]


def _curve(wr: Any, step: str, metric: str, title: str, *, log: bool = False) -> Any:
    """One line a cell, over each other."""
    return wr.LinePlot(
        title=title,
        x=wr.Metric(step),
        y=[wr.Metric(metric)],
        title_x=step,
        log_y=True if log else None,
        max_runs_to_show=_MOST_LINES,
        ignore_outliers=False,
        smoothing_type="none",
    )


def _coordinates(wr: Any, varying: Sequence[str], measured: Sequence[str]) -> Any:
    column = wr.ParallelCoordinatesPlotColumn
    columns = [column(wr.Config(axis)) for axis in varying]
    columns += [column(wr.SummaryMetric(name), log=True if name.endswith("rel_l2") else None) for name in measured]
    return wr.ParallelCoordinatesPlot(title="from axes to figures", columns=columns)


def _scatters(wr: Any, records: Sequence[CellRecord]) -> list[Any]:
    costs = {"cost.latency_ms": "forward, ms", "cost.peak_memory_gib": "peak memory, GiB"}
    there = [name for name in costs if any(name in cell_row(record) for record in records)]
    return [
        wr.ScatterPlot(
            title=f"rel. L2 against {costs[name]}",
            x=wr.SummaryMetric(name),
            y=wr.SummaryMetric("output.rel_l2"),
            log_y=True,
        )
        for name in there or ["cost.latency_ms"]
    ]


def spec_of(workspace: Any) -> dict[str, Any]:
    """What `save` would send, as plain data."""
    view = workspace._to_model()
    spec: dict[str, Any] = json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))
    return {
        "entityName": view.entity,
        "projectName": view.project,
        "name": view.name,
        "displayName": view.display_name,
        "type": "project-view",
        "spec": spec,
    }


def save(sweep: Sweep, settings: WandbSettings) -> str:
    """Saves the workspace on the server, in place of the one that an earlier call saved. Returns its address.

    Raises:
        ConfigError: nobody is logged in, or the server refuses it.
    """
    import wandb

    _packages()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            entity = settings.entity or wandb.Api().default_entity
            workspace = workspace_of(sweep, settings, entity or "")
            workspace.save()
            return str(workspace.url)
    except (wandb.Error, ValueError, OSError) as error:
        raise ConfigError(f"the workspace could not be saved: {first_line(error)}; --file FILE writes it") from None
