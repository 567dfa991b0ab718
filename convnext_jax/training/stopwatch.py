"""Where the time of a start goes."""

import time


class Stopwatch:
    """Divides the time since the program began into parts that follow one another.

    Attributes:
      began: when the program did, by `time.perf_counter`.
      parts: seconds by name, in their order; a part may come in several pieces.
    """

    def __init__(self, began: float | None = None):
        """Starts the first part where the program began; None: now."""
        self.began = time.perf_counter() if began is None else began
        self.parts: dict[str, float] = {}
        self._since = self.began

    @property
    def seconds(self) -> float:
        """Since the program began."""
        return time.perf_counter() - self.began

    def lap(self, name: str) -> float:
        """Ends a part: what passed since the one before belongs to `name`; returns its seconds."""
        now = time.perf_counter()
        passed, self._since = now - self._since, now
        self.parts[name] = self.parts.get(name, 0.0) + passed
        return passed

    def __str__(self) -> str:
        """The parts that took a tenth of a second or more, as `2.1 s importing, ...`."""
        shown = {name: round(seconds, 1) for name, seconds in self.parts.items()}
        return ", ".join(f"{seconds} s {name}" for name, seconds in shown.items() if seconds)
