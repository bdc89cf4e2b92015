"""Paths of the checkout and of the test data."""

from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
TOOLS = REPO / "tools"
# Annotations and detections of 100 images from the COCO API's own test, and the AP that it publishes for them.
COCO_FIXTURE = REPO / "tests" / "data" / "coco_eval_fixture"
