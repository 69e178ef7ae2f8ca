"""`longvlm encode`: a video to an index file."""

from __future__ import annotations

from pathlib import Path

from longvlm.commands import console
from longvlm.commands.loading import encode_video, load_model, require_source
from longvlm.commands.options import EncoderOptions, VideoOptions
from longvlm.errors import LongVLMError
from longvlm.stages.video_access import INDEX_SUFFIX, is_index
from longvlm.whole_files import require_writable


def encode(video: str, output: Path, video_options: VideoOptions, model_options: EncoderOptions) -> None:
    require_source(video)
    if is_index(video):
        raise LongVLMError(f"{video} is an index already; ask it, or give a video to encode.")
    if output.suffix != INDEX_SUFFIX:
        raise LongVLMError(f"The index is to be called {output}; give it a name that ends in {INDEX_SUFFIX}.")
    require_writable(output)
    with console.Progress("Loading the model") as progress:
        index = encode_video(load_model(model_options), video, video_options, progress)
        index.save(output)
    from longvlm.stages.tokens import count_visual_tokens

    tokens = count_visual_tokens(index.num_segments, index.compression)
    console.note(
        f"wrote {output}: {index.num_frames} frames, {index.num_segments} segments, {tokens} visual tokens, "
        f"{output.stat().st_size / 1e6:.1f} MB."
    )
