"""The index of published weights, and its page."""
