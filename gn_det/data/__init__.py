"""Register datasets in COCO format, check their annotations, and generate a sample dataset."""
