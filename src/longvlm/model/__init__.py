"""The model by the conventions of transformers: importing this package registers it with the Auto classes."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from longvlm.model.configuration import LongVLMConfig
from longvlm.model.modeling import LongVLMForConditionalGeneration, LongVLMModel
from longvlm.model.processing import LongVLMProcessor

AutoConfig.register(LongVLMConfig.model_type, LongVLMConfig)
AutoModel.register(LongVLMConfig, LongVLMModel)
AutoModelForImageTextToText.register(LongVLMConfig, LongVLMForConditionalGeneration)
AutoProcessor.register(LongVLMConfig, LongVLMProcessor)

# On disk the weights have the names of a LLaVA checkpoint, old or new; transformers maps them both ways.
for own_name, llava_name in {LongVLMConfig.model_type: "llava", LongVLMModel.__name__: "LlavaModel"}.items():
    register_checkpoint_conversion_mapping(own_name, get_checkpoint_conversion_mapping(llava_name), overwrite=True)
