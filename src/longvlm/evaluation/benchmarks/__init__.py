"""The benchmarks by the names that the command line knows them by; one small file each."""

from longvlm.evaluation.benchmark import Benchmark
from longvlm.evaluation.benchmarks.activitynet_qa import ACTIVITYNET_QA
from longvlm.evaluation.benchmarks.msrvtt_qa import MSRVTT_QA
from longvlm.evaluation.benchmarks.msvd_qa import MSVD_QA
from longvlm.evaluation.benchmarks.multiple_choice import MULTIPLE_CHOICE
from longvlm.evaluation.benchmarks.tgif_qa import TGIF_QA
from longvlm.evaluation.benchmarks.video_chatgpt import VIDEO_CHATGPT

BENCHMARKS: dict[str, Benchmark] = {
    one.name: one for one in (VIDEO_CHATGPT, ACTIVITYNET_QA, MSVD_QA, MSRVTT_QA, TGIF_QA, MULTIPLE_CHOICE)
}
