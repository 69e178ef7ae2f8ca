"""TGIF-QA, its frame questions: short animated pictures, as GIF or converted (Jang et al., CVPR 2017)."""

from __future__ import annotations

from longvlm.evaluation import zero_shot_qa
from longvlm.evaluation.benchmark import VIDEO_SUFFIXES, Benchmark

_NAME = "tgif-qa"

TGIF_QA = Benchmark(
    name=_NAME,
    read=zero_shot_qa.reader(_NAME, video_fields=("video_name", "gif_name", "video", "video_id")),
    axes=zero_shot_qa.axes(_NAME),
    video_suffixes=(*VIDEO_SUFFIXES, ".gif"),
    video_stems=lambda name: (name,),
)
