"""Helping processes, when the one that started them is killed."""

import os
import subprocess
import sys
from pathlib import Path

from processes import family_of, needs_processes_listed, parents_of_the_living
from waiting import wait_until


@needs_processes_listed
def test_what_draws_videos_ends_with_a_killed_parent(tmp_path: Path) -> None:
    drawn = tmp_path / "drawn"
    program = f"""
from pathlib import Path
from longvlm.world.planned_videos import _rendered, plan_videos
if __name__ == "__main__":
    videos = _rendered(plan_videos(4, seed=0, min_seconds=30, max_seconds=30))
    next(videos)
    Path({str(drawn)!r}).touch()
    next(videos), input()
"""
    script = tmp_path / "script.py"  # which a spawned process reads again
    script.write_text(program)
    inside = os.environ | {"TMPDIR": str(tmp_path)}  # what a killed process cannot remove
    with subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, env=inside) as parent:
        wait_until(drawn.exists)
        family = family_of(parent.pid)
        parent.kill()
    assert len(family) >= 2  # one that draws, and one that cleans up behind it
    wait_until(lambda: not family & parents_of_the_living().keys())
