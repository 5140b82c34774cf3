#!/usr/bin/env bash
# The recipe of the shipped weights: six runs of stage one, each from the one before, and a stage two after the fifth
# (weights/faces-112) and the sixth (weights/faces-96). Start it again after a stop, it goes on.
#   tools/train_weights.sh DATA RUNS [OPTIONS]     DATA as in the README's results, RUNS a folder for the runs; OPTIONS
#   go to every stage: with --epochs 1 it is a rehearsal
set -euo pipefail
data=$1 runs=$2
shift 2
options=("$@")
configs=$(cd "$(dirname "$0")/../configs" && pwd)
faces=(fiw="$data/fiw112.tar" pins="$data/pins112.tar" celeba="$data/celeba112.tar"
    --val-identities "$data/splits/val_identities.txt" --merge "$configs/shipped_merge.csv"
    --leave-out "$configs/shipped_leave_out.txt")

stage() {  # command, run folder, options: resumed where it stopped, left alone where it is complete
    local command=$1 out=$2
    shift 2
    [ -e "$out/complete" ] && return
    facemetric "$command" "${faces[@]}" --out "$out" "$@" "${options[@]}" $([ -e "$out/checkpoint.pt" ] && echo --resume)
    touch "$out/complete"
}

stage pretrain "$runs/start" --config "$configs/shipped_start.toml"
stage pretrain "$runs/margin" --config "$configs/shipped_margin.toml" --weights "$runs/start"
stage pretrain "$runs/longer" --config "$configs/shipped_longer.toml" --weights "$runs/margin"
stage pretrain "$runs/robust" --config "$configs/shipped_robust.toml" --weights "$runs/longer"
stage pretrain "$runs/full" --config "$configs/shipped_full.toml" --weights "$runs/robust"
stage pretrain "$runs/fast" --config "$configs/shipped_fast.toml" --weights "$runs/full"
stage finetune "$runs/faces-112" --config "$configs/shipped_triplets.toml" --weights "$runs/full"
stage finetune "$runs/faces-96" --config "$configs/shipped_triplets.toml" --weights "$runs/fast"
