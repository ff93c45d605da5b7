"""What belongs to the sweep and not to a cell; who runs the cells, a class a launcher."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sweeper.config.words import FolderName, Frozen, Plain
from sweeper.errors import did_you_mean


class WandbSettings(Frozen):
    """Weights & Biases: `disabled` works without the package; `online` needs a login."""

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: Plain = "sweeper"
    entity: Plain | None = None
    tags: tuple[str, ...] = ()


class InlineLauncherSettings(Frozen):
    """This process, one cell after another."""

    name: Literal["inline"] = "inline"


class GpusLauncherSettings(Frozen):
    """A worker process a GPU of this machine.

    Attributes:
        workers: how many; None is one for every `gpus_a_worker` of the GPUs that CUDA_VISIBLE_DEVICES shows, and on a
            machine without any, one.
        gpus_a_worker: how many GPUs each sees: several for a model that is larger than one. None is one, or with
            `weights=spread` all.
    """

    name: Literal["gpus"] = "gpus"
    workers: int | None = Field(default=None, ge=1)
    gpus_a_worker: int | None = Field(default=None, ge=1)


class RayLauncherSettings(Frozen):
    """A Ray task a unit. Needs the extra `ray`, the same packages on all nodes, and checkpoints that they can read.

    Attributes:
        address: `local` starts a cluster on this machine; else as `ray.init` takes it, `auto` for the one that runs.
        workers: how many tasks are submitted at once; None is as many as the cluster has room for.
        cpus_a_worker: that a task reserves; None is `threads`.
        gpus_a_worker: that a task reserves, where a cell runs on a GPU. None is one; `weights=spread` has to say.
        threads: of torch in each worker, which is part of a cell's id; None is as many as torch has here.
    """

    name: Literal["ray"] = "ray"
    address: str = "local"
    workers: int | None = Field(default=None, ge=1)
    cpus_a_worker: int | None = Field(default=None, ge=1)
    gpus_a_worker: float | None = Field(default=None, gt=0)
    threads: int | None = Field(default=None, ge=1)


class SlurmLauncherSettings(Frozen):
    """Array jobs of units, through submitit. Needs the extra `slurm`, and folders that all nodes share.

    Attributes:
        cluster: `local` runs the jobs as processes of this machine, for trying it out.
        jobs: how many units are submitted at once, each a job.
        time_min: the limit of a job, in minutes.
        partition: where the jobs go; None is the cluster's default.
        cpus_a_worker, memory_gib: that a job reserves; memory None is the cluster's default.
        gpus_a_worker: that a job reserves, where a cell runs on a GPU. None is one; `weights=spread` has to say.
        threads: of torch in each worker, which is part of a cell's id; None is as many as torch has here.
        more: further parameters of `sbatch`, as `submitit` takes them: `{account: me, constraint: h100}`.
    """

    name: Literal["slurm"] = "slurm"
    cluster: Literal["slurm", "local"] = "slurm"
    jobs: int = Field(default=64, ge=1)
    time_min: int = Field(default=60, ge=1)
    partition: str | None = None
    cpus_a_worker: int = Field(default=8, ge=1)
    gpus_a_worker: int | None = Field(default=None, ge=1)
    memory_gib: float | None = Field(default=None, gt=0)
    threads: int | None = Field(default=None, ge=1)
    more: dict[str, Any] = Field(default_factory=dict)


LauncherSettings = Annotated[
    InlineLauncherSettings | GpusLauncherSettings | RayLauncherSettings | SlurmLauncherSettings,
    Field(discriminator="name"),
]

Weights = Literal["resident", "streamed", "spread"]

FAIL_ON = ("failed", "semantic", "policy", "inconclusive", "unsupported")
"""How a cell may end that can make the exit code 1, worst first."""


class Settings(Frozen):
    """What belongs to the sweep and not to a cell.

    Attributes:
        output_dir: where `<grid>/<sweep>/` is made.
        sweep: name of the folder; None derives it from the plan, so that the same command finds its folder again.
        dry_run: print the plan and stop.
        verdict: judge every cell that differs: rounding or a bug (docs/verdict.md); some ten runs of two texts each, as
            many as decide. `full` gathers all evidence.
        latency_repeats: bare forwards that are timed of each cell, for the median. None is as many as take 0.02 s, 1 to
            5, of the first cell of those that run the same code on the same shapes and dtypes. 0 is none, and then
            nothing tells whether a cell repeats its bits.
        weights: `streamed` reads each module's weights from the checkpoint's files for every forward: for models that
            are larger than the device; `spread` lays each model on all GPUs (`device_map="auto"`). Neither changes a
            figure but the cost's.
        launcher: who runs the cells; a class of `LauncherSettings` each.
        isolation: `process` runs the cells in a process of their own, which lives on from cell to cell: one that ends
            it, or does not end, costs itself. Every launcher but `inline` does.
        cell_timeout_s: how long a cell may take where it runs in another process, its reference and loading included;
            None is for ever.
        fail_on: how a cell must have ended for the exit code to be 1: exactly these of `FAIL_ON`, worst first; `none`
            for no cell. A sweep in which nothing could be compared is 1 all the same.
        record: also keep what each cell gives, as `recordings/<cell_id>.safetensors`, for `sweeper compare`; with its
            noise, which takes some ten more forwards a cell.
        record_mib: what a cell's recording may take; what no longer fits is left out, and named in it.
        wandb: see `WandbSettings`.
    """

    output_dir: Plain = "outputs"
    sweep: FolderName | None = None
    dry_run: bool = False
    verdict: bool | Literal["full"] = True
    latency_repeats: int | None = Field(default=None, ge=0, le=10_000)
    weights: Weights = "resident"
    launcher: LauncherSettings = InlineLauncherSettings()
    isolation: Literal["none", "process"] = "none"
    cell_timeout_s: float | None = Field(default=None, gt=0)
    fail_on: tuple[str, ...] = ("failed",)
    record: bool = False
    record_mib: float = Field(default=64, gt=0)
    wandb: WandbSettings = WandbSettings()

    @field_validator("fail_on", mode="before")
    @classmethod
    def _known_ends(cls, given: Any) -> tuple[str, ...]:
        words = given.split(",") if isinstance(given, str) else list(given or ["none"])
        words = [str(word).strip() for word in words]
        if words == ["none"]:
            return ()
        for word in words:
            if word == "none":
                raise ValueError("none stands alone: fail_on=none")
            if word not in FAIL_ON:
                raise ValueError(f"{word}: no cell ends so{did_you_mean(word, [*FAIL_ON, 'none'])}")
        return tuple(word for word in FAIL_ON if word in words)

    @model_validator(mode="after")
    def _says_how_many_gpus(self) -> Settings:
        clusters = (RayLauncherSettings, SlurmLauncherSettings)
        if self.weights == "spread" and isinstance(self.launcher, clusters) and self.launcher.gpus_a_worker is None:
            raise ValueError(
                f"launcher={self.launcher.name} has to know over how many GPUs weights=spread lays a model; "
                "add launcher.gpus_a_worker=N"
            )
        return self

    @model_validator(mode="after")
    def _can_end_a_cell(self) -> Settings:
        if self.cell_timeout_s is not None and self.launcher.name == "inline" and self.isolation == "none":
            raise ValueError(
                f"cell_timeout_s={self.cell_timeout_s:g} can end a cell only in another process; add isolation=process"
            )
        return self

    @model_validator(mode="after")
    def _sees_what_it_guards(self) -> Settings:
        verdicts = [word for word in self.fail_on if word not in ("failed", "unsupported")]
        if verdicts and not self.verdict:
            raise ValueError(
                f"fail_on={','.join(verdicts)} needs verdicts: leave out verdict=false, or use fail_on=failed"
            )
        return self
