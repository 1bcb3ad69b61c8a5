#!/bin/sh
# Prints the newest Python that can make a virtual environment: 3.13, 3.12 (PATH, pyenv, uv), then 3.11.
# jax for Python 3.11 ends at 0.10.2, so an old `python3` on PATH must not win over a newer interpreter.

usable() { # a pyenv shim exists for versions that are not active, and Debian may lack ensurepip: so run it
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

offer() {
    if [ -n "$1" ] && usable "$1"; then
        command -v "$1"
        exit 0
    fi
}

pyenv_root=${PYENV_ROOT:-$HOME/.pyenv}
for version in 3.13 3.12 3.11; do
    offer "python$version"
    # shellcheck disable=SC2012  # the names are versions
    newest=$(ls -d "$pyenv_root/versions/$version".* 2>/dev/null | sort -V | tail -n 1)
    offer "${newest:+$newest/bin/python}"
    if command -v uv >/dev/null 2>&1; then
        offer "$(uv python find --no-project "$version" 2>/dev/null)"
    fi
done
offer python3
echo "polyak needs Python 3.11 or newer (3.12+ for the newest jax), with venv and ensurepip; none was found" >&2
exit 1
