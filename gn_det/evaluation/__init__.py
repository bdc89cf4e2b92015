"""COCO evaluation, result records, the files of a run, and comparison of runs."""
