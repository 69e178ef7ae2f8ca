"""One row of the study, trained and scored; what was finished before is not done again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, set_seed

from longvlm.differences import first_difference
from longvlm.errors import LongVLMError
from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.model.processing import LongVLMProcessor
from longvlm.stages.vision import VisionEncoder
from longvlm.study.blocks import BlockFeatures, plan_blocks
from longvlm.study.rows import Row, StudySettings, make_bank
from longvlm.study.start import build_learner, load_start
from longvlm.training import default_model
from longvlm.training.checkpointing import naming_what_is_damaged
from longvlm.training.examples import (
    IGNORED,
    Example,
    collate,
    describe_example,
    draw_weighted,
    pack_conversations,
)
from longvlm.training.ground_truth import NameFinder, list_names
from longvlm.training.segment_bank import ComposedVideo, SegmentBank
from longvlm.training.stage import run_stage
from longvlm.training.untrained_model import build_tokenizer
from longvlm.whole_files import write_whole
from longvlm.world.questions import make_questions
from longvlm.world.render import NO_EVENT

_WARM_UP_SHARE = 1 / 3  # of the steps, on videos of one block
_FIRST_HELD_OUT = 100_000  # the number of that block, far above all that are trained on
# What every result depends on, beside the settings.
_CODE = (
    *(f"stages/{name}.py" for name in ("merging", "tokens", "vision")),
    *(f"model/{name}.py" for name in ("modeling", "processing")),
    *(f"study/{name}.py" for name in ("blocks", "course", "rows", "spelling", "start")),
    *(f"training/{name}.py" for name in ("augmentation", "auxiliary_losses", "drawn_blocks", "encoder_heads")),
    *(f"training/{name}.py" for name in ("examples", "ground_truth", "segment_bank", "shared_attention", "stage")),
    "training/untrained_model.py",
    *(f"world/{name}.py" for name in ("questions", "render", "scene", "shapes", "wordings")),
)
_READ = ("input_ids", "position_ids", "attention_mask", "visual_tokens")


class Answer(NamedTuple):
    """To one question about a scored video; `chance`: how likely the best guess is right; `said`: the likeliest words,
    each after the right ones before it.
    """

    video: int
    kind: str
    is_right: bool
    chance: float
    said: str = ""


@dataclasses.dataclass(frozen=True)
class Run:
    """A row as one seed trained it: mean visual tokens of a video, the share of objects that some token of a video
    shows, and what it answered."""

    row: str
    seed: int
    tokens_per_video: float
    shown_objects: float
    answers: list[Answer]


class Study:
    """Encoded blocks, and runs that are trained on them; everything lies in `folder`.

    Raises LongVLMError where a study with other settings, other rows of these names, another encoder or other code
    lies there, and for damaged files.
    """

    def __init__(self, settings: StudySettings, encoder: VisionEncoder, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self._shape = dataclasses.replace(
            default_model.load_recipe(default_model.RECIPE).model,
            text_width=settings.text_width,
            text_layers=settings.text_layers,
            text_heads=settings.text_heads,
            timestamps=False,
        )
        self._latest_banks: dict[tuple[Row, str], SegmentBank] = {}  # the seeds of a row follow one another
        self._claim(encoder)
        torch.set_num_threads(settings.threads)
        self._encode_blocks(encoder)

    def _claim(self, encoder: VisionEncoder) -> None:
        """Note what all results depend on, and compare it with what is there."""
        content = json.loads(json.dumps(dataclasses.asdict(self.settings)))
        del content["threads"]
        rows = {row.pop("name"): row for row in content.pop("rows")}
        for row in rows.values():
            del row["group"], row["seeds"]  # no single run depends on them
        wanted = {
            "encoder": encoder.fingerprint,
            "encoder_dtype": str(encoder.tower.dtype).removeprefix("torch."),
            "code": _digest_code(),
            **content,
            "model": json.loads(json.dumps(dataclasses.asdict(self._shape))),
        }
        path = self.folder / "settings.json"
        with naming_what_is_damaged(path, removed=self.folder):  # nothing else tells what made the rest of it
            found = json.loads(path.read_text()) if path.is_file() else {**wanted, "rows": {}}
            known_rows = found.pop("rows")
        same = known_rows.keys() & rows.keys()
        differing = first_difference(found, wanted) or first_difference(
            {name: known_rows[name] for name in same}, {name: rows[name] for name in same}
        )
        if differing is not None:
            raise LongVLMError(
                f"{self.folder} holds a study that differs in {differing[0].partition('.')[0]}; choose another folder "
                "with --runs, or remove that one."
            )
        write_whole(path, json.dumps({**wanted, "rows": {**known_rows, **rows}}, indent=1).encode())

    def _encode_blocks(self, encoder: VisionEncoder) -> None:
        """Draw and encode the blocks, unless that was done before."""
        settings = self.settings
        for part, first, count in (
            ("training", 0, settings.blocks),
            ("held-out", _FIRST_HELD_OUT, settings.held_out_blocks),
        ):
            path = self._blocks_path(part)
            if not path.is_file():
                plans = plan_blocks(count, first=first, seconds=settings.block_seconds)
                BlockFeatures.encode(plans, encoder, settings.block_seconds).save(path)

    def start(self) -> dict[str, torch.Tensor]:
        """What all rows start from, trained unless it was before."""
        return load_start(self.folder, self._shape, build_tokenizer(), self.settings)

    def run(self, row: Row, seed: int) -> Run:
        """Train and score a row, or read what it scored before."""
        folder = self.folder / f"{row.file_name}-{seed}"
        finished = folder.with_suffix(".json")
        if finished.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            with naming_what_is_damaged(finished):
                content = json.loads(finished.read_text())
                return Run(**{**content, "answers": [Answer(*answer) for answer in content["answers"]]})
        tokenizer = build_tokenizer()
        start = self.start()
        set_seed(seed)
        learner = build_learner(self._shape, tokenizer)
        learner.load_state_dict(start, strict=False)  # all but the encoder and the row's own projector
        training = dataclasses.replace(self.settings.training, steps=row.steps or self.settings.training.steps)
        lessons = StudyLessons(self._videos(row, "training", tokenizer), self.settings, seed, training.steps)
        run_stage(learner, lessons, default_model.take_only, training, folder, seed=seed)
        run = self._score(learner.model, tokenizer, row, seed)
        write_whole(finished, json.dumps(dataclasses.asdict(run)).encode())
        shutil.rmtree(folder)  # its checkpoint
        return run

    def _blocks_path(self, part: str) -> Path:
        return self.folder / f"{part}-blocks.safetensors"

    def _videos(self, row: Row, part: str, tokenizer: PreTrainedTokenizerFast) -> StudyVideos:
        """Those of one part of the blocks."""
        if (row, part) not in self._latest_banks:
            for other in [key for key in self._latest_banks if key[0] != row]:
                del self._latest_banks[other]  # banks of two rows need not be in memory
            self._latest_banks[row, part] = make_bank(BlockFeatures.load(self._blocks_path(part)), row)
        return StudyVideos(self._latest_banks[row, part], tokenizer, globals_last=row.method == "pool")

    @torch.no_grad()
    def _score(
        self, model: LongVLMForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, row: Row, seed: int
    ) -> Run:
        """Whether greedy decoding would say each answer word for word, which one pass over the answers tells; "a" in
        place of "an" is no other word.
        """
        model.eval()
        articles = torch.tensor(tokenizer.convert_tokens_to_ids(["a", "an"]))
        videos = self._videos(row, "held-out", tokenizer)
        answers: list[Answer] = []
        num_tokens = num_shown = num_objects = 0
        for number in range(self.settings.scored_videos):
            video = videos.compose(random.Random(f"exam {number}"), self.settings.blocks_per_video)
            questions = make_questions(video.scene, seed=number, kinds=self.settings.kinds, per_kind=1)
            example = videos.make_example(video, [[(question.text, question.answer)] for question in questions])
            batch = collate([example])
            guesses = model(**{name: batch[name] for name in _READ}).logits[0, :-1].argmax(-1)
            answer = batch["labels"][0, 1:]
            is_said = answer != IGNORED
            is_wrong = (guesses != answer) & is_said & ~(torch.isin(guesses, articles) & torch.isin(answer, articles))
            for branch, question in enumerate(questions, start=1):
                is_its = example["branches"][1:] == branch
                said = tokenizer.decode(guesses[is_its & is_said], skip_special_tokens=True)
                is_right = not is_wrong[is_its].any()
                answers.append(Answer(number, question.kind, is_right, question.chance, said))
            num_tokens += len(video.visual_tokens)
            num_shown += len(set(video.token_events.tolist()) - {NO_EVENT})
            num_objects += len(video.scene.events)
        return Run(row.name, seed, num_tokens / self.settings.scored_videos, num_shown / num_objects, answers)


def _digest_code() -> str:
    """Of the files that results depend on: what other code has finished is not to stand beside what this one finds."""
    package = Path(default_model.__file__).parents[1]
    return hashlib.sha256(b"\n".join((package / name).read_bytes() for name in _CODE)).hexdigest()[:16]


class StudyVideos:
    """Videos joined from a row's blocks. The same numbers give every row the same scenes and the same questions.

    `globals_last`: what was averaged over the whole video stands after what was not, as Video-ChatGPT has it.
    """

    def __init__(self, bank: SegmentBank, tokenizer: PreTrainedTokenizerFast, *, globals_last: bool = False) -> None:
        self.bank = bank
        self.globals_last = globals_last
        self._names = NameFinder(tokenizer)
        # Rows differ in what a segment is; to the prompt each visual token is one.
        each_a_segment = {"frames_per_segment": 1, "tokens_per_segment": 1, "global_layers": 0}
        self._processor = LongVLMProcessor(tokenizer, compression=each_a_segment)

    def compose(self, rng: random.Random, blocks: tuple[int, int]) -> ComposedVideo:
        """A video of some blocks, with something to ask about."""
        per_block = self.bank.plans[0].num_segments
        while True:
            video = self.bank.compose(per_block * rng.randint(*blocks), rng)
            if video.scene.events:
                return _put_globals_last(video) if self.globals_last else video

    def make_example(self, video: ComposedVideo, conversations: list[list[tuple[str, str]]]) -> Example:
        example = pack_conversations(self._processor, conversations, video.visual_tokens, len(video.visual_tokens))
        return {**example, **describe_example(example["input_ids"], video, self._names)}


def _put_globals_last(video: ComposedVideo) -> ComposedVideo:
    """There they have all of the video before them, and can be asked about it as any token of its last segment."""
    num_globals = int((video.token_segments == 0).sum())
    names = ("visual_tokens", "token_events", "token_poses", "token_frames", "token_segments")
    moved = {name: getattr(video, name).roll(-num_globals, 0) for name in names}
    moved["token_segments"][-num_globals:] = video.token_segments.max()
    return dataclasses.replace(video, **moved)


class StudyLessons(Dataset):
    """Batches of as many videos for every row, lists of names and questions in turn; item i is always the same, but for
    the warm-up, which is a share of the `steps`.
    """

    def __init__(self, videos: StudyVideos, settings: StudySettings, seed: int, steps: int) -> None:
        self.videos, self.settings, self.seed, self.steps = videos, settings, seed, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Example:
        settings = self.settings
        rng = random.Random(f"study {self.seed} {index}")
        is_warm_up = index < _WARM_UP_SHARE * len(self)
        names = rng.random() < settings.names_share
        num_blocks = 1 if is_warm_up else rng.randint(*settings.blocks_per_video)  # the same for all: less to pad
        examples = []
        for _ in range(settings.videos_per_batch):
            video = self.videos.compose(rng, (num_blocks, num_blocks))
            if names:
                conversations = [[(" ".join(list_names(video.scene, rng)), "")]]
            else:
                questions = make_questions(video.scene, seed=rng.randrange(10**9), kinds=settings.kinds, per_kind=3)
                chosen = draw_weighted(questions, settings.questions_per_video, lambda q: settings.kinds[q.kind], rng)
                conversations = [[(question.text, question.answer)] for question in chosen]
            examples.append(self.videos.make_example(video, conversations))
        batch = collate(examples)
        if names:
            del batch["labels"]  # there is nothing to answer
        return batch
