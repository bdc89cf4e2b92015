"""Data sets in COCO's format, the generated shapes, and checks of annotations."""
