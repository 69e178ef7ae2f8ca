"""The reference's features of many videos, two pickles a video: its own command, carried out by `longvlm extract`.

    python scripts/save_features.py --video_dir_path DIR --list_file FILE \
        --clip_feat_path_local DIR --clip_feat_path_mem DIR

`--pretrained_path` names the CLIP model; any option of `longvlm extract` may follow, as `-o DIR` for indexes.
"""

from __future__ import annotations

import argparse
import sys

from longvlm.cli import main

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
)
parser.add_argument("--video_dir_path", required=True, help="the folder of the videos")
parser.add_argument("--list_file", help="their names, one a line; all videos of the folder without it")
parser.add_argument("--clip_feat_path_local", required=True, help="folder to write local features into")
parser.add_argument("--clip_feat_path_mem", "--clip_feat_path_memory", required=True, help="and [CLS] features")
parser.add_argument("--pretrained_path", help="folder or hub id of the CLIP; openai/clip-vit-large-patch14 without it")
parser.add_argument("--infer_batch", type=int, help="read and not used: --batch-segments says what is encoded at once")
arguments, others = parser.parse_known_args()

sources = [arguments.video_dir_path]
if arguments.list_file is not None:
    sources = [arguments.list_file, "--video-folder", arguments.video_dir_path]
folders = ["--reference-features", arguments.clip_feat_path_local, arguments.clip_feat_path_mem]
tower = arguments.pretrained_path
if tower is None and not any(option.partition("=")[0] == "--model" for option in others):
    tower = "openai/clip-vit-large-patch14"
encoder = [] if tower is None else ["--vision-tower", tower]
sys.argv = ["longvlm", "extract", *sources, *folders, *encoder, *others]
main()
