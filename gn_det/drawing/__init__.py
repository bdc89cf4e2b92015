"""Drawings of instances on images, and what figures share."""
