#!/bin/sh
# The whole path: features of the training videos, training, features of the test videos, inference and evaluation.
#
# As it is, it draws a small data set in ActivityNet's shape, trains a tiny model on the CPU and scores it with the
# offline judge. For the paper's own run, name the data, the models and a judge here or in the environment:
#
#     OUTPUT=runs/paper DATA=datasets/anet INSTRUCTIONS=datasets/video_chatgpt_training.json RECIPE=paper.yaml \
#     BASE=LLAVA_7B ENCODER=openai/clip-vit-large-patch14 PROCESSES=4 \
#     ANSWERS="--temperature 0.2 --max-new-tokens 1024 --seed 0" JUDGE="--judge-model gpt-4o-mini" sh run.sh
#
# Started again after a stop, it goes on. Videos that are missing or can't be read are named, and left out.
set -eu

GENERATED=${GENERATED:-datasets/generated}       # drawn there, with VIDEOS to train on
DATA=${DATA:-$GENERATED}                         # v1-2, v1-3, Test_Videos, and questions
INSTRUCTIONS=${INSTRUCTIONS:-$DATA/video_chatgpt_training.json}
RECIPE=${RECIPE:-tiny.yaml}                      # tiny.yaml, paper.yaml, paper-lora.yaml, full.yaml, or a file
BASE=${BASE:-}                                   # what the recipe trains; the recipe's own base if empty
ENCODER=${ENCODER:-}                             # a vision tower's folder or hub id; the bundled one if empty
OUTPUT=${OUTPUT:-runs/run}                       # features, checkpoints, the model, results; of this run alone
ANSWERS=${ANSWERS:-}                             # how they are generated; the likeliest words if empty
JUDGE=${JUDGE:-}                                 # for example: --judge-model gpt-4o-mini, with OPENAI_API_KEY set
VIDEOS=${VIDEOS:-100}                            # of the generated data, to train on
if [ -x .venv/bin/python ]; then python=.venv/bin/python; else python=python3; fi
PYTHON=${PYTHON:-$python}                        # what has longvlm installed
PROCESSES=${PROCESSES:-1}                        # that train together, each on a GPU of its own
CHANGES=${CHANGES:-}                             # to the recipe, such as schedule.epochs=1

if [ "$PROCESSES" = 1 ]; then launch= ; else launch="-m torch.distributed.run --nproc-per-node $PROCESSES"; fi

longvlm() { "$PYTHON" -m longvlm "$@"; }

# Status 1: it ran, and some videos or rows had to be left out. It said which.
leaving_out() {
    "$@" || { status=$?; [ "$status" -eq 1 ] || exit "$status"; echo "run.sh goes on without them." >&2; }
}

if [ "$RECIPE" = tiny.yaml ] || { [ -f "$RECIPE" ] && ! grep -q 'base:' "$RECIPE"; }; then
    base=$BASE  # none: the bundled model
else
    base=${BASE:-$RECIPE}
fi
if [ -n "$base" ] && [ -z "$ENCODER" ]; then
    echo "run.sh: $base needs features of its own encoder; name in ENCODER the vision tower it was trained with." >&2
    exit 2
fi
if [ -n "$JUDGE" ] && [ -z "${OPENAI_API_KEY:-}" ]; then
    echo "run.sh: JUDGE is $JUDGE, and there is no key for it; set OPENAI_API_KEY (any word, where none is asked for)." >&2
    exit 2
fi
"$PYTHON" -c "import longvlm, matplotlib${JUDGE:+, openai}" || {
    echo "run.sh: $PYTHON lacks something that is needed; pip install -r requirements.txt, or name another in PYTHON." >&2
    exit 2
}
train() {
    "$PYTHON" $launch -m longvlm train "$@" "$RECIPE" output="$OUTPUT/training" ${BASE:+model.base="$BASE"} \
        ${ENCODER:+model.vision_tower="$ENCODER"} data.0.instructions="$INSTRUCTIONS" \
        data.0.features="$OUTPUT/features/train" data.0.missing=drop $CHANGES
}
train --check  # before hours of encoding
if [ "$DATA" = "$GENERATED" ]; then  # what is there already is kept
    "$PYTHON" -m longvlm.world dataset "$DATA" --videos "$VIDEOS" --test-videos 16
fi
for needed in "$INSTRUCTIONS" "$DATA/Test_Videos" "$DATA/generic_qa.json" "$DATA/temporal_qa.json" \
    "$DATA/consistency_qa.json" "$DATA/test_q.json" "$DATA/test_a.json"; do
    [ -e "$needed" ] || { echo "run.sh: there is no $needed, which a later step reads; add it." >&2; exit 2; }
done
leaving_out longvlm data check --names-only "$DATA"  # a video that can't be read is named when it is encoded

# 1. Features of the training videos: every video is decoded and encoded once.
for split in v1-2/train v1-2/val v1-3/train_val; do
    [ -n "$(ls "$DATA/$split" 2>/dev/null)" ] || continue
    leaving_out longvlm extract "$DATA/$split" -o "$OUTPUT/features/train" ${ENCODER:+--vision-tower "$ENCODER"}
done

# 2. Training, from the features alone.
train

# 3. Features of the test videos.
leaving_out longvlm extract "$DATA/Test_Videos" -o "$OUTPUT/features/test" ${ENCODER:+--vision-tower "$ENCODER"}

# 4. and 5. Inference and evaluation: the five axes, and question answering. No video is opened again.
leaving_out longvlm eval video-chatgpt --model "$OUTPUT/training/model" --videos "$OUTPUT/features/test" \
    -o "$OUTPUT/results/video-chatgpt" $ANSWERS $JUDGE \
    --annotations "$DATA/generic_qa.json" "$DATA/temporal_qa.json" "$DATA/consistency_qa.json"
leaving_out longvlm eval activitynet-qa --model "$OUTPUT/training/model" --videos "$OUTPUT/features/test" \
    -o "$OUTPUT/results/activitynet-qa" $ANSWERS $JUDGE --annotations "$DATA/test_q.json" "$DATA/test_a.json"
