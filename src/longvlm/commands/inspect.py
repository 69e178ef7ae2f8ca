"""`longvlm inspect`: a page that shows what the model sees."""

from __future__ import annotations

from pathlib import Path

from longvlm.commands import console
from longvlm.commands.loading import encode_video, load_model, require_source
from longvlm.commands.options import EncoderOptions, VideoOptions
from longvlm.errors import LongVLMError
from longvlm.stages.video_access import is_index, local_path, source_scheme
from longvlm.whole_files import require_writable


def inspect(video: str, output: Path, video_options: VideoOptions, model_options: EncoderOptions) -> None:
    require_source(video)
    if is_index(video):
        raise LongVLMError(f"{video} is an index and holds no pictures; inspect the video that it was made from.")
    require_writable(output)
    is_address = source_scheme(video) != "file"
    if not is_address and output.exists() and local_path(video).exists() and output.samefile(local_path(video)):
        raise LongVLMError(f"{output} is the video itself; choose another name for the page.")
    with console.Progress("Loading the model") as progress:
        model = load_model(model_options)
        from longvlm.report.inspect import require_readable_twice, write_page

        if is_address:
            require_readable_twice(video, video_options.frame_rate, allow_references=video_options.allow_references)
        index = encode_video(model, video, video_options, progress)
        progress.begin("Drawing the page")
        write_page(
            video,
            index,
            model.name,
            output,
            frame_rate=video_options.frame_rate,
            allow_references=video_options.allow_references,
        )
    console.note(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB); open it in a browser.")
