"""Compare gn_det with the ways in which people run stock detectron2 on a GPU: speed, start, launches, memory.

Each candidate runs in a process of its own, so that one that fails or stalls does not end the benchmark.
"""
