#!/bin/sh
# Remakes the hashed requirement files from pyproject.toml. No file names a package index.
set -eu
cd "$(dirname "$0")/.."
compile() {
    .venv/bin/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-header --python-version 3.11 "$@"
}
compile pyproject.toml --group build --output-file requirements/build.txt --no-emit-package fep >/dev/null
compile pyproject.toml --group build --group test --group dev --output-file requirements/all.txt >/dev/null
