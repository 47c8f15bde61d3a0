#!/bin/sh
# Brings a Debian 12 machine to where `make demo` and `make test` run. A second run finds all done.
#   requirements/setup.sh debian   the Debian packages of debian.txt that are missing
#   requirements/setup.sh venv     .venv/ with the hashed requirements, and this project in it
set -eu
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
seconds() { date +%s; }

missing_packages() {
    sed 's/#.*//' requirements/debian.txt | while read -r name; do
        [ -n "$name" ] || continue
        dpkg-query -W -f='${Status}' "$name" 2>/dev/null | grep -q '^install ok installed$' ||
            printf '%s ' "$name"
    done
}

# PostgreSQL's packages make and start a server when they are installed; nobody here wants it.
no_cluster() {
    file=/etc/postgresql-common/createcluster.conf
    [ ! -e "$file" ] || return 0
    mkdir -p "${file%/*}"
    printf 'create_main_cluster = false\n' >"$file"
}

debian() {
    if ! command -v dpkg-query >/dev/null; then
        say "this is not Debian; install the like of requirements/debian.txt yourself"
        return
    fi
    missing=$(missing_packages)
    if [ -z "$missing" ]; then
        say "Debian packages: all there"
        return
    fi
    if [ "$(id -u)" != 0 ]; then
        say "these Debian packages are missing; as root:" >&2
        say "    apt-get install -y --no-install-recommends $missing" >&2
        say "(or run 'make setup' once as root)" >&2
        exit 1
    fi
    begun=$(seconds)
    say "Debian packages: installing $missing"
    export DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1
    no_cluster
    apt-get update -qq
    # shellcheck disable=SC2086 # one word a package
    apt-get install -y -qq --no-install-recommends $missing >/dev/null
    say "Debian packages: done in $(($(seconds) - begun)) s"
}

python_3_11() {
    for one in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
        if "$one" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$one"
            return
        fi
    done
    say "Python 3.11 or later is needed; python3 here is $(python3 --version 2>&1 || true)" >&2
    exit 1
}

venv() {
    begun=$(seconds)
    python=$(python_3_11)
    # One that was left half-made, or whose Python has gone, is made again.
    if ! .venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        say "Python environment: making .venv with $("$python" --version)"
        "$python" -m venv --clear .venv
    fi
    pip=".venv/bin/python -m pip --quiet --quiet --disable-pip-version-check"
    say "Python environment: what builds (hashes are checked)"
    $pip install --require-hashes -r requirements/build.txt
    say "Python environment: what runs and tests (hashes are checked)"
    # pyscard is built here, with the tools just installed and nothing fetched beside the hashes.
    PATH="$PWD/.venv/bin:$PATH" $pip install --no-build-isolation --require-hashes -r requirements/all.txt
    $pip install --no-build-isolation --no-deps --editable .
    say "Python environment: done in $(($(seconds) - begun)) s"
}

case "${1:-}" in
    debian) debian ;;
    venv) venv ;;
    *) echo "usage: requirements/setup.sh debian|venv" >&2; exit 2 ;;
esac
