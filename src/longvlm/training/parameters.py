"""The parts of a model in training: which are frozen, what is added to them, and how fast each learns."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import embedding

from longvlm.errors import LongVLMError
from longvlm.model.configuration import LongVLMConfig
from longvlm.model.llava_config import VIDEO_TOKENS
from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.model.processing import LongVLMProcessor
from longvlm.model.trained_part import TOWER_PREFIX, Base, TrainedPart
from longvlm.training.recipe import LearningRates, LoraSettings, Recipe
from longvlm.training.settings import require_known

Part = Literal["encoder", "projector", "new_tokens", "language_model", "lora"]
PROJECTOR_PREFIX = "model.multi_modal_projector."
_VIDEO_MARKS = list(VIDEO_TOKENS[1:])
_NEW_ROWS = "new_rows"
_LOW_RANK = re.compile(r"\.lora_([AB])\.default\.weight$")
# Names of parameters that weight decay leaves alone: what shifts and scales, in towers and language models alike.
_UNDECAYED = re.compile(r"bias$|norm")


class EmbeddingWithNewTokens(nn.Embedding):
    """An embedding table of which only the rows of some tokens learn, beside the table, which stays as it is.

    `head_rows` are those tokens' rows in the head, which stay as they are, too; None for a head that is the table:
    that one is made to speak the new rows as well.
    """

    new_ids: torch.Tensor

    def __init__(self, table: nn.Embedding, token_ids: Sequence[int], head: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim
        self.padding_idx, self.max_norm, self.sparse = table.padding_idx, None, False
        self.scale_grad_by_freq, self.norm_type = False, 2.0
        self.weight = table.weight
        ids = torch.tensor(sorted(token_ids), device=table.weight.device)
        self.register_buffer("new_ids", ids, persistent=False)
        self.head_rows = None if head.weight is table.weight else head.weight.detach()[ids].float().cpu()
        self.new_rows = nn.Parameter(table.weight.detach()[ids].float().clone())
        if self.head_rows is None:
            head.register_forward_hook(self._speak_new_rows)

    def _speak_new_rows(self, _: nn.Module, inputs: tuple[torch.Tensor, ...], logits: torch.Tensor) -> torch.Tensor:
        of_new = inputs[0] @ self.new_rows.to(inputs[0]).T
        return logits.index_copy(-1, self.new_ids, of_new.to(logits))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        embedded = embedding(input, self.weight)
        place = torch.searchsorted(self.new_ids, input).clamp(max=len(self.new_ids) - 1)
        is_new = self.new_ids[place] == input
        rows = embedding(place, self.new_rows).to(embedded.dtype)
        return torch.where(is_new[..., None], rows, embedded)


def part_of(name: str) -> Part:
    """The part to which a parameter of the model belongs, by its name."""
    if _LOW_RANK.search(name):
        return "lora"
    if name.endswith(f".{_NEW_ROWS}"):
        return "new_tokens"
    if TOWER_PREFIX in name:
        return "encoder"
    return "projector" if PROJECTOR_PREFIX in name else "language_model"


def video_token_ids(processor: LongVLMProcessor) -> list[int]:
    """Ids of the tokens that only a model for videos knows; none for a base that is used without marks."""
    marks = [processor.video_start_token, processor.video_end_token]
    if marks != _VIDEO_MARKS:  # none, or those around a picture
        return []
    return sorted(processor.tokenizer.convert_tokens_to_ids([processor.video_token, *marks]))


def add_video_marks(model: LongVLMForConditionalGeneration, processor: LongVLMProcessor) -> None:
    """Give a base without them the tokens before and after a video; their rows are the mean of the words'.

    A table that was padded has rows for them already, in which nothing has been learned.
    """
    tokenizer = processor.tokenizer
    num_words, num_rows = len(tokenizer), len(model.get_input_embeddings().weight)
    new = [mark for mark in _VIDEO_MARKS if mark not in tokenizer.get_vocab()]
    if [processor.video_start_token, processor.video_end_token] != _VIDEO_MARKS:
        tokenizer.add_special_tokens({"additional_special_tokens": _VIDEO_MARKS}, replace_extra_special_tokens=False)
        processor.video_start_token, processor.video_end_token = _VIDEO_MARKS
    if len(tokenizer) > num_rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    untaught = sorted({*tokenizer.convert_tokens_to_ids(new), *range(num_rows, len(tokenizer))})
    with torch.no_grad():
        for table in {id(t): t for t in (model.get_input_embeddings().weight, model.lm_head.weight)}.values():
            table[untaught] = table[: min(num_words, num_rows)].float().mean(0).to(table)


def prepare_parts(
    model: LongVLMForConditionalGeneration,
    rates: LearningRates,
    lora: LoraSettings,
    token_ids: Sequence[int],
    seed: int,
) -> None:
    """Freeze what has no learning rate; put what learns in float32; add LoRA's matrices and trainable rows."""
    if rates.lora is not None:
        _add_lora(model, lora, seed)
    if rates.language_model is None and token_ids:
        table = EmbeddingWithNewTokens(model.get_input_embeddings(), token_ids, model.lm_head)
        model.set_input_embeddings(table)
    for name, parameter in model.named_parameters():
        learns = getattr(rates, part_of(name)) is not None
        parameter.requires_grad_(learns)
        if learns:
            parameter.data = parameter.data.float()


def require_parts(recipe: Recipe, config: LongVLMConfig, processor: LongVLMProcessor) -> None:
    """Raise LongVLMError where the base, of this `config`, lacks what the recipe trains; needs no weights."""
    if recipe.learning_rates.new_tokens is not None and not recipe.model.video_marks and not video_token_ids(processor):
        raise LongVLMError(
            "learning_rates.new_tokens is set, but the base has no tokens around a video; set model.video_marks=true, "
            "or leave that learning rate out."
        )
    if recipe.learning_rates.lora is not None:
        with torch.device("meta"):
            _require_targets(LongVLMForConditionalGeneration(config), recipe.lora.targets)


def _require_targets(model: nn.Module, targets: Sequence[str]) -> None:
    paths = [name.split(".") for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    paths = [path[path.index("language_model") + 1 :] for path in paths if "language_model" in path]
    known = {path[-1]: None for path in paths}
    ends = {".".join(path[i:]) for path in paths for i in range(len(path))}  # "self_attn.q_proj" is one, too
    require_known([target for target in targets if target not in ends], known, "lora.targets")


def require_peft() -> None:
    """Raise LongVLMError where low-rank changes can't be made."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise LongVLMError("LoRA needs peft: pip install 'longvlm[train]'.") from error


def _add_lora(model: LongVLMForConditionalGeneration, settings: LoraSettings, seed: int) -> None:
    from peft import LoraConfig

    targets = "|".join(re.escape(target) for target in settings.targets)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=rf".*\.language_model\.(.*\.)?({targets})",
    )
    torch.manual_seed(seed)
    model.add_adapter(config)


def parameter_groups(model: nn.Module, rates: LearningRates, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters for an optimizer, by part, and by whether weight decay is for them."""
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part, decays = part_of(name), not (parameter.ndim < 2 or _UNDECAYED.search(name.lower()))
        group = groups.setdefault(
            (part, decays),
            {"params": [], "lr": getattr(rates, part), "weight_decay": weight_decay if decays else 0.0, "part": part},
        )
        group["params"].append(parameter)
    return list(groups.values())


@dataclass(frozen=True)
class PartRow:
    """One line of the table that is printed before a training starts."""

    part: str
    parameters: int
    trained: int
    learning_rate: float | None
    dtype: str


def describe_parts(model: nn.Module, rates: LearningRates) -> list[PartRow]:
    """Every part with its numbers of parameters, all and trained, its learning rate, and how it is stored."""
    found: dict[str, list[nn.Parameter]] = {field.name: [] for field in dataclasses.fields(LearningRates)}
    for name, parameter in model.named_parameters():
        found[part_of(name)].append(parameter)
    rows = []
    for part, parameters in found.items():
        if parameters:
            dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters})
            trained = sum(_count(parameter) for parameter in parameters if parameter.requires_grad)
            total = sum(_count(parameter) for parameter in parameters)
            rows.append(PartRow(part, total, trained, getattr(rates, part), ", ".join(dtypes)))
    return rows


def _count(parameter: nn.Parameter) -> int:
    """Its numbers; one in 4 bits holds two of them in a byte."""
    stored = getattr(parameter, "quant_state", None)
    return parameter.numel() if stored is None else math.prod(stored.shape)


def is_trained(name: str, rates: LearningRates) -> bool:
    """Whether a weight of this name is a part's that learns, or of the new tokens, which the base may not have."""
    part = part_of(name)
    return part == "new_tokens" or getattr(rates, part) is not None


def collect_part(state: dict[str, torch.Tensor], model: LongVLMForConditionalGeneration, base: Base) -> TrainedPart:
    """What was trained, and the rows of new tokens, of a model whose language model was not trained itself.

    `state` holds those of its weights that `is_trained`, by name.
    """
    weights, low_rank = {}, {}
    input_rows = None
    for name, tensor in state.items():
        part = part_of(name)
        if part == "new_tokens":
            input_rows = tensor
        elif part != "lora":
            weights[name] = tensor
        elif name.endswith(".lora_A.default.weight"):
            layer = _LOW_RANK.sub("", name)
            low_rank[layer] = (tensor, state[f"{layer}.lora_B.default.weight"])
    table = model.get_input_embeddings()
    has_rows = isinstance(table, EmbeddingWithNewTokens)
    token_ids = tuple(table.new_ids.tolist()) if has_rows else ()
    output_rows = table.head_rows if has_rows else None
    return TrainedPart(base, weights, token_ids, input_rows, output_rows, low_rank, _lora_scale(model))


def restore_part(model: LongVLMForConditionalGeneration, part: TrainedPart) -> None:
    """Put what `collect_part` took back into a model that was prepared in the same way."""
    state = dict(part.weights)
    for layer, (a, b) in part.low_rank.items():
        state |= {f"{layer}.lora_A.default.weight": a, f"{layer}.lora_B.default.weight": b}
    if part.input_rows is not None:
        state[f"{_embedding_name(model)}.{_NEW_ROWS}"] = part.input_rows
    unknown = model.load_state_dict(state, strict=False).unexpected_keys
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if unknown or learning - state.keys():
        raise LongVLMError(
            f"The checkpoint doesn't hold what this recipe trains (it differs in "
            f"{next(iter([*unknown, *sorted(learning - state.keys())]))}); choose another output folder."
        )


def _embedding_name(model: LongVLMForConditionalGeneration) -> str:
    table = model.get_input_embeddings()
    return next(name for name, module in model.named_modules() if module is table)


def _lora_scale(model: nn.Module) -> float:
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "lora_A")]
    return float(layers[0].scaling["default"]) if layers else 1.0  # one recipe, one scale
