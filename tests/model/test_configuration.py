"""LongVLMConfig: the paper's defaults, checked settings, no stale derived values."""

import pytest
from transformers import AutoConfig, LlavaConfig, SiglipVisionConfig

from longvlm.errors import LongVLMError
from longvlm.model import LongVLMConfig
from longvlm.stages.tokens import count_visual_tokens
from longvlm.types import Compression


def test_defaults_are_the_papers():
    config = LongVLMConfig()
    assert config.compression_settings == Compression()
    assert config.projector_num_layers == 1 and config.visual_width == 1024
    assert config.default_num_frames == 100
    assert count_visual_tokens(100 // 10, config.compression_settings) == 305


def test_compression_is_saved_whole_and_read_anew(tmp_path):
    config = LongVLMConfig(compression={"tokens_per_segment": 20, "merge_schedule": [1280, 640]})
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is LongVLMConfig
    assert loaded.compression_settings == Compression(tokens_per_segment=20, merge_schedule=(1280, 640))
    loaded.compression["tokens_per_segment"] = 7
    assert loaded.compression_settings.tokens_per_segment == 7


def test_unknown_compression_key_is_an_error():
    with pytest.raises(LongVLMError, match="'token_per_segment'"):
        LongVLMConfig(compression={"token_per_segment": 30})


def test_global_tokens_beside_several_feature_layers_are_an_error():
    with pytest.raises(LongVLMError, match="global_layers is 5"):
        LongVLMConfig(vision_feature_layer=[-2, -5])
    config = LongVLMConfig(vision_feature_layer=[-2, -5], compression={"global_layers": 0})
    assert config.visual_width == 2048
    with pytest.raises(LongVLMError, match="global_layers is 1"):
        config.override_compression({"global_layers": 1})
    assert config.compression_settings.global_layers == 0
    assert LongVLMConfig(vision_feature_layer=[-2]).visual_width == 1024


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens_per_segment": "30"},
        {"frames_per_segment": 2.5},
        {"global_layers": None},
        {"merge_schedule": 5},
        {"merge_schedule": ["many"]},
        {"frame_code": "3"},
    ],
    ids=str,
)
def test_a_setting_of_another_kind_is_named(wrong):
    (name,) = wrong
    with pytest.raises(LongVLMError, match=name):
        LongVLMConfig(compression=wrong)


def test_from_llava_takes_over_and_leaves_the_original_alone():
    llava = LlavaConfig(vision_config=SiglipVisionConfig(hidden_size=72, num_attention_heads=6), image_token_index=7)
    config = LongVLMConfig.from_llava(llava, fit="squash")
    assert config.compression_settings == Compression(
        global_layers=0, merge_order="temporal", merge_heads=6, fit="squash"
    )
    assert (config.video_token_index, config.video_token_id, config.projector_num_layers) == (7, 7, 2)
    config.text_config.hidden_size = 5
    assert llava.text_config.hidden_size != 5
