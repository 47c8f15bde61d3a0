#!/bin/sh
# Remakes the hashed requirement files from pyproject.toml. No file names a package index.
#   all.txt    everything: what builds, runs, tests and checks
#   build.txt  what builds the project and pyscard; installed first
#   base.txt   what runs in production, in the versions of all.txt
set -eu
cd "$(dirname "$0")/.."
compile() {
    .venv/bin/uv pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-header \
        --python-version 3.11 "$@" >/dev/null
}
compile pyproject.toml --group build --group test --group browser --group dev --output-file requirements/all.txt
compile --group pyproject.toml:build --constraint requirements/all.txt \
    --output-file requirements/build.txt
compile pyproject.toml --constraint requirements/all.txt --output-file requirements/base.txt
