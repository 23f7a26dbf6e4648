# Sourced by the other scripts (or run once, by itself): makes or reuses .venv in the repository root, installs megagpt with pinned versions, and
# activates it. Quick when nothing changed: a stamp in .venv holds a hash of setup.py, constraints, C++ sources and
# Python's version.
#
# Variables that it reads:
#   PYTHON             the Python (3.10 to 3.13) to make .venv with; default: the first of python3.12, 3.11, 3.10, python3
#   MEGAGPT_EXTRAS     extras of setup.py to install, separated by commas, such as dev,export
#   TORCH_INDEX        package index that torch comes from; default without an NVIDIA GPU: PyTorch's CPU builds,
#                      with one: what pip is set to, whose torch brings CUDA
#   RANKS_PER_MACHINE  processes that share this machine's cores; default 1
#   NET_INTERFACE      network interface of NCCL and gloo; default: they choose
#
# Variables that it exports, each with its reason, are at its end. Not set, for want of a measurement or a reason: torch's
# allocator (PYTORCH_CUDA_ALLOC_CONF), NCCL's algorithms and buffers, and its error handling, whose defaults are right.

MEGAGPT_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
MEGAGPT_VENV="$MEGAGPT_ROOT/.venv"
_PYTHON_OK='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'
_NEEDED_GB=3

env_fail() {
    printf 'error: %s\n' "$@" >&2
    exit 1
}

# Prints the path of a Python that works, or fails with what was tried.
find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" >/dev/null || env_fail "PYTHON=$PYTHON does not exist or cannot be run"
        "$PYTHON" -c "$_PYTHON_OK" 2>/dev/null ||
            env_fail "PYTHON=$PYTHON is not a Python 3.10 to 3.13: $("$PYTHON" --version 2>&1 | head -n 1)"
        printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3.12 python3.11 python3.10 python3; do
        if "$candidate" -c "$_PYTHON_OK" >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    env_fail "no Python 3.10 to 3.13 found (python3: $(python3 --version 2>/dev/null || echo missing))" \
        "install one (Debian, Ubuntu: apt install python3 python3-venv), or name it: PYTHON=/path/to/python bash ..."
}

# The hash that says whether the installed environment still fits.
wanted_stamp() {
    {
        cat "$MEGAGPT_ROOT/setup.py" "$MEGAGPT_ROOT"/constraints/*.txt "$MEGAGPT_ROOT"/megagpt/native/*.{cpp,h}
        "$1" -c 'import sys; print(*sys.version_info[:2])'
        printf '%s %s\n' "$MEGAGPT_ROOT" "${TORCH_INDEX:-}"
    } | sha256sum | cut -d ' ' -f 1
}

check_machine() {
    local python="$1" free_kb
    "$python" -c 'import venv, ensurepip' 2>/dev/null || env_fail \
        "$python has no venv module; install it (Debian, Ubuntu: apt install python3-venv) and run this again"
    free_kb="$(df -Pk "$MEGAGPT_ROOT" | awk 'NR == 2 {print $4}')"
    [ "$free_kb" -ge $((_NEEDED_GB * 1024 * 1024)) ] || env_fail \
        "the environment needs $_NEEDED_GB GB in $MEGAGPT_ROOT and $((free_kb / 1024)) MB are free; make room and run this again"
    command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || printf '%s\n' \
        "note: no C++ compiler found; packages without a ready build for this machine will not install" \
        "      (Debian, Ubuntu: apt install build-essential)" >&2
}

# pip_install TITLE ARGUMENTS...: quiet where nobody looks; everything is in .venv/install.log.
pip_install() {
    local title="$1" log="$MEGAGPT_VENV/install.log" quiet=() pins=(-c "$MEGAGPT_ROOT/constraints/cpu.txt")
    shift
    command -v nvidia-smi >/dev/null || pins+=(-c "$MEGAGPT_ROOT/constraints/triton.txt")
    printf '%s\n' "$title"
    [ -t 1 ] || quiet=(--quiet --progress-bar off)
    DS_BUILD_OPS=0 "$MEGAGPT_VENV/bin/python" -m pip install "${quiet[@]}" --log "$log" --disable-pip-version-check \
        "${pins[@]}" "$@"
}

pip_failed() {
    local log="$MEGAGPT_VENV/install.log"
    if grep -qE 'name resolution|NewConnectionError|ConnectTimeout|Network is unreachable|ProxyError' "$log"; then
        env_fail "the package index could not be reached; connect this machine, or name a local index or folder" \
            "(PIP_INDEX_URL=..., PIP_FIND_LINKS=...), and run this again: what is installed already is kept"
    elif grep -q 'No space left on device' "$log"; then
        env_fail "the disk is full; make room and run this again: what is installed already is kept"
    fi
    env_fail "the install failed; the reason is above and in $log. Run this again when it is solved: what is installed is kept"
}

# torch first and by itself: the pinned build, from the index that suits the machine.
install_torch() {
    local torch index="${TORCH_INDEX:-}"
    torch="$(grep '^torch==' "$MEGAGPT_ROOT/constraints/cpu.txt")"
    if "$MEGAGPT_VENV/bin/python" -c "import importlib.metadata as m, sys
sys.exit(m.version('torch').split('+')[0] != '${torch#torch==}')" 2>/dev/null; then return; fi
    if [ -n "$index" ]; then
        pip_install "installing $torch from $index" --no-deps --index-url "$index" "$torch"
    elif command -v nvidia-smi >/dev/null; then
        pip_install "installing $torch" "$torch"
    elif pip_install "installing $torch: looking for a local file" -qqq --no-deps --no-index "$torch"; then
        return
    elif ! pip_install "installing $torch, CPU build" --no-deps --retries 1 --timeout 20 \
        --index-url https://download.pytorch.org/whl/cpu "$torch"; then
        printf '%s\n' "note: PyTorch's index of CPU builds did not answer; taking torch from pip's own index, which may bring" \
            "      several GB of CUDA libraries. TORCH_INDEX=... names another index (docs/install.md)" >&2
        pip_install "installing $torch" "$torch"
    fi
}

install_environment() {
    local python="$1" extras="$2" hash="$3"
    check_machine "$python"
    # pip answers an interrupt with an ordinary failure: without this the script would try the next way to install.
    trap 'env_fail "interrupted; run this again to go on: what is installed is kept"' INT TERM
    rm -f "$MEGAGPT_VENV/megagpt-stamp"
    if ! "$MEGAGPT_VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        printf 'making .venv with %s\n' "$("$python" --version)"
        "$python" -m venv --clear "$MEGAGPT_VENV" || env_fail "could not make $MEGAGPT_VENV; the reason is above"
    fi
    : > "$MEGAGPT_VENV/install.log"
    pip_install "installing build tools" setuptools wheel || pip_failed
    install_torch || pip_failed
    cd "$MEGAGPT_ROOT" # a path with blanks or brackets would not go with [extras]
    pip_install "installing megagpt${extras:+ with $extras} (a few minutes the first time)" --no-build-isolation \
        -e ".${extras:+[$extras]}" || pip_failed
    cd "$OLDPWD"
    printf '%s\n%s\n' "$hash" "$extras" > "$MEGAGPT_VENV/megagpt-stamp" # last: an interrupted install is done again
    trap - INT TERM
}

# Installs what is missing for the extras in MEGAGPT_EXTRAS; extras that are there stay.
ensure_environment() {
    local python hash="" extras="${MEGAGPT_EXTRAS:-}" stamp=() extra
    python="$MEGAGPT_VENV/bin/python"
    if [ -n "${PYTHON:-}" ] || ! "$python" -c "$_PYTHON_OK" 2>/dev/null; then
        python="$(find_python)" || exit 1
    fi
    hash="$(wanted_stamp "$python")"
    [ -f "$MEGAGPT_VENV/megagpt-stamp" ] && mapfile -t stamp < "$MEGAGPT_VENV/megagpt-stamp"
    for extra in ${stamp[1]:+${stamp[1]//,/ }}; do
        case ",$extras," in *",$extra,"*) ;; *) extras="${extras:+$extras,}$extra" ;; esac
    done
    if [ "${stamp[0]:-}" != "$hash" ] || [ "${#extras}" -ne "${#stamp[1]}" ]; then
        # Another Python, or another folder than the one .venv was made in: its scripts name the old one.
        if [ -f "$MEGAGPT_VENV/pyvenv.cfg" ] && ! venv_fits "$python"; then rm -rf "$MEGAGPT_VENV"; fi
        install_environment "$python" "$extras" "$hash"
    fi
}

# Whether .venv was made with this Python's version and in this folder.
venv_fits() {
    local version
    version="$("$1" -c 'import sys; print("%d.%d." % sys.version_info[:2])')"
    grep -qF "version = $version" "$MEGAGPT_VENV/pyvenv.cfg" && grep -qF "$MEGAGPT_VENV" "$MEGAGPT_VENV/bin/activate"
}

# One install at a time: tests, quickstart and the tasks of a job may be started together. Opened for writing, though
# nothing is written: NFS gives an exclusive lock on no other file.
if command -v flock >/dev/null && [ -w "${BASH_SOURCE[0]}" ]; then
    exec 9<> "${BASH_SOURCE[0]}"
    flock --nonblock 9 || { printf 'waiting for another process that makes or checks the environment\n' && flock 9; } ||
        printf 'note: no locks on this file system; let one process make .venv before others start\n' >&2
fi
ensure_environment
exec 9<&-

. "$MEGAGPT_VENV/bin/activate"

# Ranks on one machine share its cores: without this each would start a thread for every core and wait for the others.
_cores="$(nproc)"
_threads=$((_cores / ${RANKS_PER_MACHINE:-1}))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((_threads > 1 ? _threads : 1))}"
# NCCL and gloo pick a network interface by themselves, and the wrong one on nodes with several, or where the node's own
# name stands for 127.0.1.1 (Debian): NET_INTERFACE=ib0 (or eth0, as `ip route` shows) names it for both.
if [ -n "${NET_INTERFACE:-}" ]; then
    export NCCL_SOCKET_IFNAME="$NET_INTERFACE" GLOO_SOCKET_IFNAME="$NET_INTERFACE"
fi
# The tokenizers library warns and stops using threads when a process forks after it encoded; say so before.
export TOKENIZERS_PARALLELISM=false
# Progress appears at once when the output goes to a file or a pipe (SLURM, tee).
export PYTHONUNBUFFERED=1
# One hardware queue: tensor parallelism starts a transfer before the matrix product that hides it, and the GPU must keep
# that order (megatron-core warns without it).
export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"
