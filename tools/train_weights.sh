#!/usr/bin/env bash
# The recipe of the shipped weights: six runs of stage one on labels, each from the one before; from the sixth two short
# ones, whose mean with it goes to stage two; from there some that follow a teacher's embeddings, with labels and without;
# and last some whose teacher is asked about blended faces too. Start it again after a stop, it goes on.
#   BLENDS=50048 tools/train_weights.sh DATA RUNS [OPTIONS]     DATA as in the README's results, and teacher/dlib.onnx in
#   it (tools/dlib_to_onnx.py); RUNS a folder for the runs of this recipe alone, as what is complete is not looked at
#   again; OPTIONS go to every stage: with --epochs 1 and few BLENDS it is a rehearsal, of minutes where DATA is a cut
#   (tars and teacher's tables of the same names with some of the people, the validation people among them; the lists may
#   name others)
set -euo pipefail
data=$1 runs=$2 blends=${BLENDS:-50048}
shift 2
options=("$@")
for file in "$data/teacher/dlib.onnx" "$data/teacher/dlib.toml"; do
    [ -e "$file" ] || { echo "$file is missing; make it by tools/dlib_to_onnx.py" >&2; exit 2; }
done
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
named=("${teacher[@]}")
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

plain=(--refit-teacher 0 --refit-constant 0)
settle settled more "${plain[@]}"
stage pretrain "$runs/long" "$last" --config "$configs/shipped_long.toml" --weights "$runs/settled" "${taught[@]}"
settle before long "${plain[@]}"
stage pretrain "$runs/large" "$last" --config "$configs/shipped_large.toml" --weights "$runs/before" "${taught[@]}"
settle faces-160 large --refit-penalty 3 "${plain[@]}"

# Faces blended from those of the run before, which the teacher is asked about; no other pictures without a name.
blended() {  # run, config, weights, numbers of the blends, further options
    local run=$1 config=$2 weights=$3 numbers=$4 unlabelled=() teacher=("${named[@]}")
    shift 4
    for seed in $numbers; do
        unlabelled+=("blends$seed=$runs/blends$seed.tar") teacher+=("blends$seed=$runs/blends$seed.npz")
    done
    stage pretrain "$runs/$run" "$last" --config "$configs/$config" --weights "$runs/$weights" \
        --unlabelled "${unlabelled[@]}" --teacher "${teacher[@]}" "$@"
}

for seed in 1 2 3 4 5 6 7 8 21 22 23 24; do
    [ -e "$runs/blends$seed.tar" ] || python "$(dirname "$0")/blend_faces.py" "$runs/long" --count "$blends" --seed "$seed" \
        --out "$runs/blends$seed.tar"
    [ -e "$runs/blends$seed.npz" ] || facemetric embed "$runs/blends$seed.tar" --weights "$data/teacher/dlib.onnx" \
        --faces off --out "$runs/blends$seed.npz"
done
blended blended shipped_blended.toml before "1 2 3 4"
settle mixed blended --teacher "${named[@]}"
blended clear shipped_clear.toml mixed "5 6 7 8"
settle clear-settled clear --teacher "${named[@]}"
blended fresh shipped_clear.toml clear-settled "21 22 23 24" --seed 32
blended small shipped_small.toml clear 5
settle faces-112 fresh --refit-penalty 1 --refit-teacher 0.5 --refit-constant 0.35 --teacher "${named[@]}"
settle faces-96 small --refit-teacher 0.5 --teacher "${named[@]}"
# Of the validation people those that DATA holds, as calibrate refuses names that are not there.
for name in fiw pins celeba; do tar tf "$data/${name}112.tar" | sed "s#/.*##; s#^#$name/#"; done | sort -u > "$runs/people.txt"
grep -xFf "$runs/people.txt" "$last" > "$runs/calibrated_on.txt"
for name in faces-160 faces-112 faces-96; do
    # The hashes of the photographs behind the blends, not of the blends, which show nobody.
    [ "$name" = faces-160 ] || cp "$runs/long/best/training_images.npz" "$runs/$name/best/"
    facemetric calibrate "${faces[@]:0:3}" --merge "$configs/shipped_merge.csv" --identities "$runs/calibrated_on.txt" \
        --weights "$runs/$name" --far 0.1 0.01 0.001 0.0001 --out "$runs/calibrate-$name"
done
# Then, for each name: tools/measure_weights.py "$runs/$name" --data "$data" --flip --ship weights/$name, and
# tools/measure_beyond_lfw.py weights/$name --data "$data".
