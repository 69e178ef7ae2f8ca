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

    def must_end_with(self, status: int) -> Ended:
        assert self.status == status, self.stderr
        return self

    def must_complain(self, *words: str) -> Ended:
        """One clear line on stderr: status 2, nothing on stdout, no traceback."""
        assert (self.status, self.stdout) == (2, ""), self
        last_line = self.stderr.splitlines()[-1]
        assert last_line.startswith("Error: ") and "Traceback" not in self.stderr, self.stderr
        for word in words:
            assert word in last_line, self.stderr
        return self


RunCommand = Callable[..., Ended]
