"""MSRVTT-QA: questions made of captions of clips in twenty categories (Xu et al., ACM MM 2017)."""

from __future__ import annotations

from longvlm.evaluation import zero_shot_qa
from longvlm.evaluation.benchmark import Benchmark

_NAME = "msrvtt-qa"

MSRVTT_QA = Benchmark(
    name=_NAME,
    read=zero_shot_qa.reader(_NAME, video_fields=("video_name", "video", "video_id")),
    axes=zero_shot_qa.axes(_NAME),
    published=zero_shot_qa.published(longvlm=(59.8, 3.3), video_chatgpt=(49.3, 2.8)),
    video_stems=lambda name: (name, f"video{name}"),  # the data set's own files count their videos
)
