"""How much the benchmark measures."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Plan:
    """The numbers of iterations, images and seconds.

    Attributes:
        batches: images per training batch, in the order in which they are measured.
        rounds: timed rounds. In each round, every candidate runs once.
        images_per_round: of training and of inference; a round has 4 to 16 iterations.
        start_iterations: training iterations of a start, with the first of ``batches``.
        profiled: iterations that are profiled.
        predicted: different images for inference.
        compared: images whose detections are compared.
        step_seconds: limit for one command of one candidate.
        start_seconds: limit for the start of a candidate that is not compiled. It is more than the target allows, and
            so short that several candidates that stall leave time for the others.
        minutes: limit for the whole benchmark.
    """

    batches: Sequence[int] = (2, 16, 8, 1)
    rounds: int = 3
    images_per_round: int = 16
    start_iterations: int = 20
    profiled: int = 3
    predicted: int = 8
    compared: int = 4
    step_seconds: float = 100.0
    start_seconds: float = 45.0
    minutes: float = 8.0

    def iterations(self, batch: int) -> int:
        """Return the number of iterations per round for a batch size."""
        return max(min(4, self.images_per_round), self.images_per_round // batch)


# What shows that everything works, where there is no GPU.
ON_CPU = Plan((2, 1), rounds=2, images_per_round=1, start_iterations=2, profiled=1, predicted=2, compared=2)
