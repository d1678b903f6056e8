"""Folders of test files that are not part of the project; tests that need them skip where they are absent."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("VIDEOATTN_SHARED", Path(__file__).parents[2] / "shared"))
GOLDEN, CLIPS = SHARED / "golden", SHARED / "clips"

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the tensors made by the official code are not at hand")
needs_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason="the real video clips are not at hand")
