"""How a command of the command line ended, for tests that run it in their own process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    status: int
    stdout: str
    stderr: str

    def must_succeed(self) -> Ended:
        return self.must_end_with(0)

    def must_end_with(self, status: int) -> Ended:
        assert self.status == status, self.stderr
        return self

    def must_complain(self, *words: str) -> Ended:
        """One clear message on stderr: status 2, nothing on stdout, three lines at most, no traceback."""
        assert (self.status, self.stdout) == (2, ""), self
        lines = self.stderr.splitlines()
        assert len(lines) <= 3 and lines[-1].startswith("Error: "), self.stderr
        assert "Traceback" not in self.stderr
        for word in words:
            assert word in lines[-1], self.stderr
        return self


RunCommand = Callable[..., Ended]
