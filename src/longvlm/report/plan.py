"""The plan: what a video and a model will cost in tokens, memory and time, worked out before anything is encoded.

Counts are exact. Times are measured on this machine with random weights, one and two layers deep, and extended in
proportion to the model's layers and the video's frames; decoding is timed on the video's first segments. Reading the
weights from disk is left out.
"""

from __future__ import annotations

import copy
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache, PretrainedConfig

from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.pipeline import LongVLM
from longvlm.stages.tokens import count_visual_tokens
from longvlm.stages.video import VideoReader
from longvlm.types import Sampling
