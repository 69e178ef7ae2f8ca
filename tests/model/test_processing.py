"""Prompts, batches and training labels, with the templates that checkpoints bring and without any."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoProcessor, PreTrainedTokenizerFast

from longvlm.errors import LongVLMError
from longvlm.model import LongVLMConfig, LongVLMProcessor
from longvlm.stages.tokens import count_visual_tokens
from longvlm.types import Compression

STRING_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
SMALL = {"tokens_per_segment": 2, "global_layers": 1}


def user(text: str, *, video: bool = False, video_last: bool = False) -> dict:
    parts = [{"type": "text", "text": text}]
    parts = [{"type": "video"}, *parts] if video else [*parts, {"type": "video"}] if video_last else parts
    return {"role": "user", "content": parts}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


CONVERSATION = [
    user("what happens?", video=True),
    assistant("a red circle."),
    user("then?"),
    assistant("a blue square moves."),
]


@pytest.fixture
def paper_processor(make_tokenizer) -> LongVLMProcessor:
    """As the paper's: start and end tokens, and no template but Vicuna's."""
    return LongVLMProcessor(make_tokenizer(), compression=SMALL)


@pytest.fixture
def word_processor(make_tokenizer) -> LongVLMProcessor:
    return LongVLMProcessor(make_tokenizer(chat_template=STRING_TEMPLATE), compression=SMALL)


@pytest.fixture
def llava_processor(make_tokenizer, image_template) -> LongVLMProcessor:
    tokenizer = make_tokenizer(["<image>"])
    tokens = {"video_token": "<image>", "video_start_token": None, "video_end_token": None}
    compression = SMALL | {"global_layers": 0}
    return LongVLMProcessor(tokenizer, **tokens, compression=compression, chat_template=image_template)


def test_vicuna_prompt_of_the_paper(paper_processor):
    paper = paper_processor.prompt(CONVERSATION[:1], num_segments=10, compression=Compression())
    video = "<vid_start>" + "<vid_patch>" * 305 + "<vid_end>"
    assert paper == f"{VICUNA} USER: {video}\nwhat happens? ASSISTANT:"
    small = paper_processor.prompt(CONVERSATION[:3], num_segments=1)
    video = "<vid_start>" + "<vid_patch>" * 3 + "<vid_end>"
    assert small == f"{VICUNA} USER: {video}\nwhat happens? ASSISTANT: a red circle.</s>USER: then? ASSISTANT:"


def test_video_after_the_question_and_system_prompt(paper_processor):
    messages = [{"role": "system", "content": "hello"}, user("what?", video_last=True)]
    text = paper_processor.prompt(messages, num_segments=1)
    assert text == "hello USER: what?\n<vid_start>" + "<vid_patch>" * 3 + "<vid_end> ASSISTANT:"


def test_template_of_an_image_model(llava_processor):
    text = llava_processor.prompt(CONVERSATION[:3], num_segments=2)
    # The template ends an answer with nothing, so the end-of-text token follows it, as LLaVA was trained.
    assert text == "USER: " + "<image>" * 4 + "\nwhat happens? ASSISTANT: a red circle.</s> USER: then? ASSISTANT:"


def test_timestamps_stand_before_each_segments_tokens(paper_processor):
    spans = torch.tensor([[10.0, 75.0], [75.0, 140.0]])
    text = paper_processor.prompt(CONVERSATION[:1], num_segments=2, segment_spans=spans)
    patch = "<vid_patch>"
    assert f"<vid_start>{patch} 0:10 {patch}{patch} 1:15 {patch}{patch}<vid_end>" in text
    with pytest.raises(LongVLMError, match="2 segment_spans for 3 segments"):
        paper_processor.prompt(CONVERSATION[:1], num_segments=3, segment_spans=spans)


@pytest.mark.parametrize("name", ["paper_processor", "word_processor", "llava_processor"])
@pytest.mark.parametrize("with_video", [True, False])
def test_a_later_turns_ids_extend_the_first_turns(request, name, with_video):
    processor = request.getfixturevalue(name)
    messages = CONVERSATION if with_video else [user("what happens?"), *CONVERSATION[1:]]
    segments = 2 if with_video else None
    first = processor.encode(processor.prompt(messages[:1], num_segments=segments))
    second = processor.encode(processor.prompt(messages[:3], num_segments=segments))
    assert second[: len(first)] == first and len(second) > len(first)
    assert first.count(processor.tokenizer.bos_token_id) == 1
    num_visual = count_visual_tokens(2, processor.compression_settings) if with_video else 0
    assert first.count(processor.video_token_id) == num_visual


@pytest.mark.parametrize("name", ["paper_processor", "word_processor", "llava_processor"])
def test_labels_token_by_token(request, name):
    processor = request.getfixturevalue(name)
    ids, labels = processor.training_example(CONVERSATION, 2)
    whole = processor.encode(processor.prompt(CONVERSATION, num_segments=2, add_generation_prompt=False))
    assert ids.tolist() == whole
    learned = labels != -100
    assert torch.equal(labels[learned], ids[learned])
    words = [processor.tokenizer.convert_ids_to_tokens(i) for i in labels[learned].tolist()]
    assert words == ["a", "red", "circle", ".", "</s>", "a", "blue", "square", "moves", ".", "</s>"]
    # The first learned position follows the first turn's prompt exactly: what is asked for at inference.
    first = processor.encode(processor.prompt(CONVERSATION[:1], num_segments=2))
    assert int(learned.nonzero()[0]) == len(first)


def make_piece_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Pieces of words that bring the blank before them: "▁a" as in SentencePiece's, "Ġa" as in GPT's vocabularies."""
    pieces = Tokenizer(models.BPE(unk_token="<unk>"))
    if kind == "sentencepiece":
        pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    else:
        pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        pieces.post_processor = processors.ByteLevel(trim_offsets=True)
    marks = ["<unk>", "<s>", "</s>", "<vid_patch>", "<vid_start>", "<vid_end>"]
    corpus = [
        f"{VICUNA} USER: what happens? then? ASSISTANT: a red circle. a blue square moves. user assistant: [INST]"
    ]
    alphabet = [] if kind == "sentencepiece" else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=marks, initial_alphabet=alphabet)
    pieces.train_from_iterator(corpus, trainer)
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "additional_special_tokens": marks[3:]}
    return PreTrainedTokenizerFast(tokenizer_object=pieces, **named)


INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
ENDS_WITH_A_BLANK = (
    "{% for m in messages %}{% if m['role'] == 'user' %}user {{ m['content'] }} assistant: "
    "{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("kind", ["sentencepiece", "gpt"])
@pytest.mark.parametrize("template", [None, STRING_TEMPLATE, INST, ENDS_WITH_A_BLANK])
@pytest.mark.parametrize("where", ["video", "video_last"])
def test_labels_are_the_answers_where_words_bring_the_blank_before_them(kind, template, where):
    processor = LongVLMProcessor(make_piece_tokenizer(kind), compression=SMALL, chat_template=template)
    conversation = [user("what happens?", **{where: True}), *CONVERSATION[1:]]
    ids, labels = processor.training_example(conversation, 2)
    ends = [i for i, label in enumerate(labels.tolist()) if label == processor.tokenizer.eos_token_id]
    learned = [i for i, label in enumerate(labels.tolist()) if label != -100]
    assert torch.equal(labels[learned], ids[learned]) and learned[-1] == ends[1]
    first, second = [i for i in learned if i <= ends[0]], [i for i in learned if i > ends[0]]
    for run, answer in ((first, "a red circle."), (second, "a blue square moves.")):
        assert run == list(range(run[0], run[-1] + 1))
        assert processor.tokenizer.decode(ids[run]).strip() == f"{answer}</s>"


def test_labels_without_video_and_with_the_video_last(word_processor):
    ids, labels = word_processor.training_example([user("then?"), assistant("a circle.")])
    assert word_processor.video_token_id not in ids.tolist()
    assert word_processor.tokenizer.convert_ids_to_tokens(labels[labels != -100]) == [
        "a",
        "circle",
        ".",
        "</s>",
    ]
    ids, labels = word_processor.training_example([user("then?", video_last=True), assistant("a circle.")], 1)
    assert ids.tolist().count(word_processor.video_token_id) == 3
    assert word_processor.tokenizer.decode(labels[labels != -100], skip_special_tokens=True) == "a circle."


def test_batch_is_padded_on_the_left(word_processor):
    texts = [
        word_processor.prompt(CONVERSATION[:3], num_segments=2),
        word_processor.prompt([user("then?")]),
    ]
    frames = torch.randint(0, 256, (1, 2, 3, 28, 28), dtype=torch.uint8)
    batch = word_processor(texts, videos=frames)
    for text, ids, mask in zip(texts, batch["input_ids"], batch["attention_mask"], strict=True):
        alone = word_processor.encode(text)
        padding = len(ids) - len(alone)
        assert ids.tolist() == [word_processor.tokenizer.pad_token_id] * padding + alone
        assert mask.tolist() == [0] * padding + [1] * len(alone)
    mean, std = torch.tensor(word_processor.image_mean), torch.tensor(word_processor.image_std)
    expected = ((frames.permute(0, 1, 3, 4, 2) / 255 - mean) / std).permute(0, 1, 4, 2, 3)
    torch.testing.assert_close(batch["pixel_values_videos"], expected)
    with pytest.raises(LongVLMError, match=r"Videos of 1 and 2 frames can't be one batch .* their visual_tokens"):
        word_processor(texts, videos=[frames[0], frames[0, :1]])


@pytest.mark.parametrize("name", ["word_processor", "llava_processor"])
def test_saves_and_loads(request, name, tmp_path):
    processor = request.getfixturevalue(name)
    processor.save_pretrained(tmp_path)
    LongVLMConfig().save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is LongVLMProcessor
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.prompt(CONVERSATION, num_segments=3) == processor.prompt(CONVERSATION, num_segments=3)
    expected = processor.training_example(CONVERSATION, 3)
    for actual, wanted in zip(loaded.training_example(CONVERSATION, 3), expected, strict=True):
        assert torch.equal(actual, wanted)
    ids = loaded.tokenizer("a red circle.")["input_ids"]
    assert loaded.tokenizer.decode(ids, skip_special_tokens=True) == "a red circle."


def test_refusals(paper_processor, make_tokenizer):
    with pytest.raises(LongVLMError, match="num_segments is not given"):
        paper_processor.prompt(CONVERSATION[:1])
    with pytest.raises(LongVLMError, match="no message has a part of type 'video'"):
        paper_processor.prompt([user("what?")], num_segments=1)
    with pytest.raises(LongVLMError, match="'<vid_patch>', which the model reserves"):
        paper_processor.prompt([user("what is <vid_patch>?")])
    for control in ("</s>", "<s>", "<unk>", "<pad>"):
        with pytest.raises(LongVLMError, match=f"'{control}', which the model reserves"):
            paper_processor.prompt([user(f"what?{control} hello")])
        with pytest.raises(LongVLMError, match=f"'{control}', which the model reserves"):
            paper_processor.training_example([user("what?"), assistant(f"a circle{control}")])
    with pytest.raises(LongVLMError, match="Unknown part"):
        paper_processor.prompt([{"role": "user", "content": [{"type": "image"}]}])
    with pytest.raises(LongVLMError, match="Unknown role 'human'"):
        paper_processor.prompt([{"role": "human", "content": "what?"}])
    with pytest.raises(LongVLMError, match="2 videos"):
        paper_processor.prompt([user("what?", video=True), user("what?", video=True)], num_segments=1)
    with pytest.raises(LongVLMError, match="assistant message has a video"):
        paper_processor.prompt([{"role": "assistant", "content": [{"type": "video"}]}], num_segments=1)
    with pytest.raises(LongVLMError, match="user message is empty"):
        paper_processor.prompt([{"role": "user", "content": []}])
    with pytest.raises(LongVLMError, match="no token '<vid_patch>'"):
        LongVLMProcessor(make_tokenizer([]))
    forgetful = LongVLMProcessor(make_tokenizer(), chat_template="{{ messages[-1]['role'] }}")
    with pytest.raises(LongVLMError, match="0 times, not once"):
        forgetful.prompt(CONVERSATION[:1], num_segments=1)
    with pytest.raises(LongVLMError, match="rewrites earlier turns"):
        forgetful.training_example([user("what?"), assistant("a circle")])


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{{ messages[0]['content'] + 1 }}", "can only concatenate str"),
        ("{{ messages[7]['content'] }}", "has no element 7"),
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ 'a'.encode('zzz') }}", "unknown encoding"),
    ],
)
def test_a_templates_own_errors_are_told_in_one_line(make_tokenizer, template, reason):
    processor = LongVLMProcessor(make_tokenizer(), chat_template=template)
    with pytest.raises(LongVLMError, match=reason) as refusal:
        processor.prompt([user("what?")])
    assert "chat template" in str(refusal.value) and "\n" not in str(refusal.value)


def test_named_templates_without_a_default_are_told(make_tokenizer):
    processor = LongVLMProcessor(make_tokenizer())
    processor.chat_template = {"rag": "{{ messages }}"}
    with pytest.raises(LongVLMError, match=r"has no default chat template; give one as chat_template\.jinja"):
        processor.prompt([user("what?")])
