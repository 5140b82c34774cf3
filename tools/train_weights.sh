#!/usr/bin/env bash
# The recipe of the shipped weights: six runs of stage one on labels, each from the one before; from the sixth two short
# ones, whose mean with it goes to stage two; and from there one that follows a teacher's embeddings, also of people
# without a name, with labels and without. Start it again after a stop, it goes on.
#   tools/train_weights.sh DATA RUNS [OPTIONS]     DATA as in the README's results, RUNS a folder for the runs; OPTIONS
#   go to every stage: with --epochs 1 it is a rehearsal, of minutes where DATA is a cut (tars and teacher's tables of the
#   same names with some of the people, the validation people among them; the lists may name others)
set -euo pipefail
data=$1 runs=$2
shift 2
options=("$@")
configs=$(cd "$(dirname "$0")/../configs" && pwd)
faces=(fiw="$data/fiw112.tar" pins="$data/pins112.tar" celeba="$data/celeba112.tar"
    --merge "$configs/shipped_merge.csv" --leave-out "$configs/shipped_leave_out.txt")
choosing=$data/splits/val_identities.txt
last=$configs/shipped_validation.txt  # a third of them: the others are trained on when they have chosen

stage() {  # command, run folder, people to validate on, options: resumed where it stopped, left alone where complete
    local command=$1 out=$2 people=$3
    shift 3
    [ -e "$out/complete" ] && return
    facemetric "$command" "${faces[@]}" --val-identities "$people" --out "$out" "$@" "${options[@]}" \
        $([ -e "$out/checkpoint.pt" ] && echo --resume)
    touch "$out/complete"
}

stage pretrain "$runs/start" "$choosing" --config "$configs/shipped_start.toml"
stage pretrain "$runs/margin" "$choosing" --config "$configs/shipped_margin.toml" --weights "$runs/start"
stage pretrain "$runs/longer" "$choosing" --config "$configs/shipped_longer.toml" --weights "$runs/margin"
stage pretrain "$runs/robust" "$choosing" --config "$configs/shipped_robust.toml" --weights "$runs/longer"
stage pretrain "$runs/full" "$choosing" --config "$configs/shipped_full.toml" --weights "$runs/robust"
stage pretrain "$runs/wider" "$last" --config "$configs/shipped_wider.toml" --weights "$runs/full"
for seed in 6 7; do
    stage pretrain "$runs/again$seed" "$last" --config "$configs/shipped_again.toml" --weights "$runs/wider" --seed "$seed"
done
[ -e "$runs/mean" ] || python "$(dirname "$0")/average_weights.py" "$runs"/{wider,again6,again7} --out "$runs/mean"
stage finetune "$runs/labels" "$last" --config "$configs/shipped_triplets.toml" --weights "$runs/mean"

# The teacher's run: other lists, as more of CelebA joins, and pictures of people without a name.
faces=() unlabelled=() teacher=()
for name in fiw pins celeba celeba_more; do
    faces+=("$name=$data/${name}112.tar") teacher+=("$name=$data/teacher/$name.npz")
done
for name in fairface aaf celeba256 utkface; do
    unlabelled+=("$name=$data/${name}112.tar") teacher+=("$name=$data/teacher/$name.npz")
done
faces+=(--merge "$configs/shipped_teacher_merge.csv" --leave-out "$configs/shipped_teacher_leave_out.txt"
    --leave-out-images "$configs/shipped_teacher_leave_out_images.txt")
taught=(--unlabelled "${unlabelled[@]}" --teacher "${teacher[@]}")
stage pretrain "$runs/teacher" "$last" --config "$configs/shipped_teacher_start.toml" --weights "$runs/labels" "${taught[@]}"
stage pretrain "$runs/taught" "$last" --config "$configs/shipped_teacher.toml" --weights "$runs/teacher" "${taught[@]}"
stage finetune "$runs/followed" "$last" --config "$configs/shipped_teacher_triplets.toml" --weights "$runs/taught"

# Labels beside the teacher, FairFace's test part kept apart for measuring; then triplets of the people with names, and
# the layer of least squares to their embeddings.
{ cat "$configs/shipped_teacher_leave_out_images.txt"; tar tf "$data/fairface112.tar" | grep /test_ | sed 's#^#fairface/#'; } \
    > "$runs/leave_out_images.txt"
faces[-1]=$runs/leave_out_images.txt
stage pretrain "$runs/joint" "$last" --config "$configs/shipped_joint.toml" --weights "$runs/followed" "${taught[@]}"
stage pretrain "$runs/more" "$last" --config "$configs/shipped_more.toml" --weights "$runs/joint" "${taught[@]}"

settle() {  # name, run, options of the refit: the triplets, and the layer of least squares
    local name=$1 run=$2
    shift 2
    stage finetune "$runs/$name-triplets" "$last" --config "$configs/shipped_more_triplets.toml" --weights "$runs/$run"
    stage finetune "$runs/$name" "$last" --config "$configs/shipped_refit.toml" --weights "$runs/$name-triplets" "$@"
}

settle settled more
stage pretrain "$runs/long" "$last" --config "$configs/shipped_long.toml" --weights "$runs/settled" "${taught[@]}"
stage pretrain "$runs/small" "$last" --config "$configs/shipped_small.toml" --weights "$runs/long" "${taught[@]}"
settle faces-112 long
settle faces-96 small
stage pretrain "$runs/large" "$last" --config "$configs/shipped_large.toml" --weights "$runs/faces-112" "${taught[@]}"
settle faces-160 large --refit-penalty 3
for name in faces-160 faces-112 faces-96; do
    facemetric calibrate "${faces[@]:0:3}" --merge "$configs/shipped_merge.csv" --identities "$last" --weights "$runs/$name" \
        --far 0.1 0.01 0.001 0.0001 --out "$runs/calibrate-$name"
done
# Then, for each name: tools/measure_weights.py "$runs/$name" --data "$data" --flip --ship weights/$name, and
# tools/measure_beyond_lfw.py weights/$name --data "$data".
