"""The clients are tried against a real daemon in this process, and against peers a test plays."""

from __future__ import annotations

from tests.control.conftest import directory, key, logs, start

__all__ = ["directory", "key", "logs", "start"]
