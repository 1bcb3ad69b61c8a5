#!/bin/sh
# One virtual environment per peer, bench/peers/.venv-<peer>. Idempotent: a finished one is left alone.
#   bench/peers/setup.sh [sb3] [sbx] [rejax] [mdptoolbox] [hiive]     (default: all)
set -eu
cd "$(dirname "$0")"

# The interpreter $1 (such as 3.11): on PATH, or among pyenv's or uv's.
interpreter() {
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python \
        "${XDG_DATA_HOME:-$HOME/.local/share}"/uv/python/cpython-"$1".*/bin/python"$1"; do
        if "$candidate" -c "import sys, venv, ensurepip; assert '%d.%d' % sys.version_info[:2] == '$1'" 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    echo "bench/peers/setup.sh: no Python $1 found on PATH, under pyenv or under uv; install one." >&2
    return 1
}

for peer in ${*:-sb3 sbx rejax mdptoolbox hiive}; do
    case $peer in
    sb3 | sbx) version=3.11 ;;
    rejax | mdptoolbox | hiive) version=3.12 ;;
    *) echo "bench/peers/setup.sh: unknown peer '$peer'; there are sb3, sbx, rejax, mdptoolbox and hiive." >&2 && exit 2 ;;
    esac
    venv=.venv-$peer
    if cmp -s "requirements-$peer.txt" "$venv/installed.txt"; then
        echo "$peer: ready"
        continue
    fi
    python=$(interpreter "$version")
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "requirements-$peer.txt"
    cp "requirements-$peer.txt" "$venv/installed.txt" # last: an interrupted installation starts anew
    echo "$peer: installed"
done
