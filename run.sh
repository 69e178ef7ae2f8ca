#!/bin/sh
# The whole path: features of the training videos, training, features of the test videos, inference and evaluation.
#
# As it is, it draws a small data set in ActivityNet's shape, trains a tiny model on the CPU and scores it with the
# offline judge. For the paper's own run, name the data, the model and a judge here or in the environment:
#
#     DATA=datasets/anet RECIPE=paper.yaml ENCODER=openai/clip-vit-large-patch14 JUDGE="--judge-model gpt-4o-mini" sh run.sh
set -eu

DATA=${DATA:-datasets/generated}                 # v1-2, v1-3, Test_Videos, instructions and questions
RECIPE=${RECIPE:-tiny.yaml}                      # tiny.yaml, paper.yaml, paper-lora.yaml, full.yaml, or a file
ENCODER=${ENCODER:-}                             # a vision tower's folder or hub id; the bundled one if empty
OUTPUT=${OUTPUT:-runs/run}                       # features, checkpoints, the model, results
JUDGE=${JUDGE:-}                                 # for example: --judge-model gpt-4o-mini, with OPENAI_API_KEY set
PYTHON=${PYTHON:-.venv/bin/python}

longvlm() { "$PYTHON" -m longvlm "$@"; }

if [ ! -e "$DATA" ]; then
    "$PYTHON" -m longvlm.world dataset "$DATA" --videos 100 --test-videos 16
fi
longvlm data check "$DATA"

# 1. Features of the training videos: every video is decoded and encoded once.
for split in v1-2/train v1-2/val v1-3/train_val; do
    longvlm extract "$DATA/$split" -o "$OUTPUT/features/train" ${ENCODER:+--vision-tower "$ENCODER"}
done

# 2. Training, from the features alone. Run again after a stop, it goes on.
longvlm train "$RECIPE" output="$OUTPUT/training" \
    data.0.instructions="$DATA/video_chatgpt_training.json" data.0.features="$OUTPUT/features/train"

# 3. Features of the test videos.
longvlm extract "$DATA/Test_Videos" -o "$OUTPUT/features/test" ${ENCODER:+--vision-tower "$ENCODER"}

# 4. and 5. Inference and evaluation: the five axes, and question answering. No video is opened again.
longvlm eval video-chatgpt --model "$OUTPUT/training/model" --videos "$OUTPUT/features/test" $JUDGE \
    -o "$OUTPUT/results/video-chatgpt" \
    --annotations "$DATA/generic_qa.json" "$DATA/temporal_qa.json" "$DATA/consistency_qa.json"
longvlm eval activitynet-qa --model "$OUTPUT/training/model" --videos "$OUTPUT/features/test" $JUDGE \
    -o "$OUTPUT/results/activitynet-qa" --annotations "$DATA/test_q.json" "$DATA/test_a.json"
