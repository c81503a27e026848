"""A git repository for a test."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git(folder: Path, *arguments: str) -> None:
    """Run git in a directory, independently of the user's settings."""
    identity = (
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@example.org",
        "-c",
        "init.defaultBranch=main",
        "-c",
        "core.hooksPath=/none",
    )
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)
