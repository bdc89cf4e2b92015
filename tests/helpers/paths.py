"""Where the checkout and the test data are."""

from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
TOOLS = REPO / "tools"
# 100 images' annotations and detections of the COCO API's own test, and the AP that it publishes for them.
COCO_FIXTURE = REPO / "tests" / "data" / "coco_eval_fixture"
