"""ActivityNet-QA: questions about videos of everyday activities, in nine types (Yu et al., AAAI 2019)."""

from __future__ import annotations

from collections.abc import Mapping

from longvlm.evaluation import zero_shot_qa
from longvlm.evaluation.benchmark import Benchmark
from longvlm.evaluation.rows import Annotation

_NAME = "activitynet-qa"
_TYPES = (
    "motion",
    "spatial relation",
    "temporal relation",
    "yes/no",
    "color",
    "object",
    "location",
    "number",
    "other",
)


def _groups(annotation: Annotation) -> Mapping[str, str]:
    number = annotation.fields.get("type")
    if isinstance(number, str) and number.isdecimal():
        number = int(number)
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(_TYPES):
        return {"type": _TYPES[number]}
    return {}


ACTIVITYNET_QA = Benchmark(
    name=_NAME,
    read=zero_shot_qa.reader(_NAME, groups=_groups),
    axes=zero_shot_qa.axes(_NAME),
    published=zero_shot_qa.published(longvlm=(47.6, 3.3), video_chatgpt=(35.2, 2.7)),
)
