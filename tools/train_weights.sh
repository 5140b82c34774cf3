#!/usr/bin/env bash
# The recipe of weights/faces-96: two runs of stage one and one of stage two; start it again after a stop, it goes on.
#   tools/train_weights.sh DATA RUNS     DATA as in the README's results, RUNS a folder for the runs
set -euo pipefail
data=$1 runs=$2
root=$(cd "$(dirname "$0")/.." && pwd)
faces=(fiw="$data/fiw112.tar" pins="$data/pins112.tar" celeba="$data/celeba112.tar"
    --val-identities "$data/splits/val_identities.txt" --merge "$data/splits/likely_same_person.csv")

stage() {  # command, run folder, options: resumed where it stopped, left alone where it is complete
    local command=$1 out=$2
    shift 2
    [ -e "$out/complete" ] && return
    facemetric "$command" "${faces[@]}" --out "$out" "$@" $([ -e "$out/checkpoint.pt" ] && echo --resume)
    touch "$out/complete"
}

stage pretrain "$runs/start" --config "$root/configs/faces_start.toml"
stage pretrain "$runs/margin" --config "$root/configs/faces_strong.toml" --weights "$runs/start"
stage finetune "$runs/finetune" --config "$root/configs/faces_finetune.toml" --weights "$runs/margin"
